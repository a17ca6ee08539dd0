"""The progress callback: how a caller watches and stops the work.

``on_step(done, total)`` is called after each unit of work with ``0 <= done <= total``. It may raise: the
exception passes through unchanged, which is how an interrupt or a time limit ends the work within one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

OnStep = Callable[[int, int], None]

#: What a whole that is made of several stages is reported in.
UNITS = 1000


def ignore(done: int, total: int) -> None:
    """The callback of a caller that does not want to know."""


def part(on_step: OnStep, start: float, end: float) -> OnStep:
    """Return a callback that maps one stage's progress to the slice [start, end] of the whole.

    ``start`` and ``end`` are fractions of the whole; the whole is reported as :data:`UNITS` units, so that stages
    of different lengths add up to one bar that only moves forward.
    """

    def step(done: int, total: int) -> None:
        fraction = done / total if total else 1.0
        on_step(round(UNITS * (start + (end - start) * fraction)), UNITS)

    return step


def parts(on_step: OnStep, count: int) -> Iterator[OnStep]:
    """Return the callbacks of so many stages, one after another, that take about equally long."""
    return (part(on_step, stage / count, (stage + 1) / count) for stage in range(count))
