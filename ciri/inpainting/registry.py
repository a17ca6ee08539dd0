"""Backbones by name, for the command line, scripts and tests.

To add one: write a function that makes it (import its module inside, so that one backbone's needs are not
everybody's) and enter it in ``_MAKERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ciri.errors import CheckpointError, CiriError
from ciri.inpainting.base import Backbone


def _flow(**options: Any) -> Backbone:
    from ciri.inpainting.flow import FlowBackbone

    # classical: it has no weights and works where the clip is
    options.pop("device", None)
    return FlowBackbone(**options)


def _lite(*, weights: Any = None, **options: Any) -> Backbone:
    from ciri.inpainting.lite import load_lite

    return load_lite(weights, **options)


def _published(model: str, *, weights: Any = None, **options: Any) -> Backbone:
    from ciri.inpainting.load import load_backbone

    if weights is None:
        raise CheckpointError(f"The backbone {model!r} needs a weight file: the one that its authors published.")
    return load_backbone(weights, expected=(model,), **options)


_MAKERS: dict[str, Callable[..., Backbone]] = {
    "flow": _flow,
    "lite": _lite,
    **{model: partial(_published, model) for model in ("e2fgvi", "e2fgvi_hq", "fuseformer", "dstt", "sttn")},
}


#: What the command line takes where nothing else is asked for.
DEFAULT = "lite"


def names() -> list[str]:
    """Names that :func:`build` knows."""
    return list(_MAKERS)


def build(name: str, **options: Any) -> Backbone:
    """Make the backbone of that name.

    Args:
        name: one of :func:`names`.
        options: ``device`` for any backbone, ``weights`` (a file) for the networks; the others as the
            backbone's own constructor or :func:`ciri.inpainting.load.load_backbone` takes them.

    Raises:
        CheckpointError: no weight file, or one that cannot be used.
        CiriError: an unknown name, or an option that the backbone does not have.
    """
    if name not in _MAKERS:
        raise CiriError(f"There is no backbone named {name!r}; the ones there are: {', '.join(names())}.")
    try:
        return _MAKERS[name](**options)
    except TypeError as error:
        raise CiriError(f"The backbone {name!r} cannot be built with {', '.join(sorted(options))}: {error}") from error
