"""The input that says what a network computes in."""

from __future__ import annotations

from comfy_api.latest import io

from ciri.precision import PRECISIONS

from ._adapt import choose


def precision_input() -> io.Combo.Input:
    """The combo, with "auto" as its default."""
    return io.Combo.Input(
        "precision",
        options=list(PRECISIONS),
        default="auto",
        tooltip="auto measures whether this processor is faster in half precision.",
    )


def chosen(precision: str) -> str:
    """Return what was chosen.

    Raises:
        CiriError: none of the options, as a graph sent through the API may hold.
    """
    return choose(precision, list(PRECISIONS), "precision")
