"""The propagators by name, for the command line, scripts and benchmarks.

Each is imported only when it is built, so that asking for one does not load what another needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ciri.errors import CheckpointError, CiriError
from ciri.propagation.base import Propagator


def _flow(**options: Any) -> Propagator:
    from ciri.propagation.flow import FlowPropagator

    # classical: it has no weights and works where the clip is
    options.pop("device", None)
    return FlowPropagator(**options)


def _lite(**options: Any) -> Propagator:
    from ciri.propagation.lite import build_lite

    return build_lite(**options)


def _stcn(**options: Any) -> Propagator:
    from ciri.propagation.stcn import build_stcn

    if options.get("weights") is None:
        raise CheckpointError(
            "The propagator 'stcn' needs a weight file, the stcn.pth that its authors published: give it with "
            "--propagator-weights."
        )
    return build_stcn(**options)


_BUILDERS: dict[str, Callable[..., Propagator]] = {
    "flow": _flow,
    "lite": _lite,
    "stcn": _stcn,
}


#: What the command line takes where nothing else is asked for.
DEFAULT = "lite"


def names() -> list[str]:
    """The names that :func:`build` knows."""
    return list(_BUILDERS)


def build(name: str, **options: Any) -> Propagator:
    """Return a new propagator.

    Args:
        name: one of :func:`names`.
        options: ``device`` for any propagator; the others as that propagator's constructor takes them.

    Raises:
        CiriError: an unknown name (the message lists the known ones) or an option that it does not have.
    """
    if name not in _BUILDERS:
        raise CiriError(f"There is no propagator called '{name}'; choose one of: {', '.join(names())}.")
    try:
        return _BUILDERS[name](**options)
    except TypeError as error:
        raise CiriError(f"The propagator '{name}' cannot be built with options {sorted(options)}: {error}") from error
