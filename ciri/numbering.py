"""The numbers of frames as a person knows them, in notes, reports and errors.

Inside the library frames count from 0 at the first one of the clip that is worked on. Where that is a part of a longer
one, what is said about a frame has to name it by its number in the whole; only who reads the part knows that number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_FIRST: ContextVar[int] = ContextVar("number of the first frame", default=0)


@contextmanager
def counted_from(first: int) -> Iterator[None]:
    """Within this, what is said about frames counts from ``first`` on; in this thread only."""
    token = _FIRST.set(first)
    try:
        yield
    finally:
        _FIRST.reset(token)


def number(index: int) -> int:
    """The number of a frame of the clip as it is told to a person."""
    return index + _FIRST.get()


def ranges(indices: Sequence[int], most: int | None = None) -> str:
    """Write the numbers of sorted frames compactly: 1, 2, 3, 7 is "1-3, 7".

    Args:
        indices: of frames of the clip.
        most: write so many ranges, and "..." for the others (default: all).
    """
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    text = [f"{number(a)}" if a == b else f"{number(a)}-{number(b)}" for a, b in runs[:most]]
    return ", ".join(text + ["..."] * (len(text) < len(runs)))
