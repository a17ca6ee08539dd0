"""Backbones by name, for the command line, scripts and tests.

To add one: write a function that makes it (import its module inside, so that one backbone's needs are not
everybody's) and enter it in ``_MAKERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ciri.errors import CiriError
from ciri.inpainting.base import Backbone


def _flow(**options: Any) -> Backbone:
    from ciri.inpainting.flow import FlowBackbone

    # classical: it has no weights and works where the clip is
    options.pop("device", None)
    return FlowBackbone(**options)


_MAKERS: dict[str, Callable[..., Backbone]] = {"flow": _flow}


def names() -> list[str]:
    """Names that :func:`build` knows; the first is the default."""
    return list(_MAKERS)


def build(name: str, **options: Any) -> Backbone:
    """Make the backbone of that name.

    Args:
        name: one of :func:`names`.
        options: ``device`` for any backbone; the others as the backbone's own constructor takes them.

    Raises:
        CiriError: an unknown name.
    """
    if name not in _MAKERS:
        raise CiriError(f"There is no backbone named {name!r}; the ones there are: {', '.join(names())}.")
    return _MAKERS[name](**options)
