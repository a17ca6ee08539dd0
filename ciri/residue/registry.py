"""The residue detectors by name, for the command line, the nodes and the benchmarks.

Each is imported only when it is built, so that asking for one does not load what another needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ciri.errors import CheckpointError, CiriError
from ciri.residue.base import ResidueDetector


def _lite(**options: Any) -> ResidueDetector:
    from ciri.residue.lite import build_lite

    return build_lite(**options)


def _siammask(**options: Any) -> ResidueDetector:
    from ciri.residue.siammask import build_siammask

    if options.get("weights") is None:
        raise CheckpointError(
            "The residue detector 'siammask' needs a weight file: the one that SiamMask's authors published."
        )
    return build_siammask(**options)


_BUILDERS: dict[str, Callable[..., ResidueDetector]] = {"lite": _lite, "siammask": _siammask}


def names() -> list[str]:
    """The names that :func:`build` knows; the first is the default."""
    return list(_BUILDERS)


def build(name: str, **options: Any) -> ResidueDetector:
    """Return a new residue detector.

    Args:
        name: one of :func:`names`.
        options: ``device``, and ``weights``, a file (None: for 'lite' the one that ships with the pack).

    Raises:
        CheckpointError: no weight file, or one that cannot be used.
        CiriError: an unknown name (the message lists the known ones) or an option that it does not have.
    """
    if name not in _BUILDERS:
        raise CiriError(f"There is no residue detector called '{name}'; choose one of: {', '.join(names())}.")
    try:
        return _BUILDERS[name](**options)
    except TypeError as error:
        raise CiriError(f"The residue detector '{name}' cannot be built with {sorted(options)}: {error}") from error
