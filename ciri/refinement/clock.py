"""A time budget: work ends within one step of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ciri.progress import OnStep


class TimeUpError(Exception):
    """The budget is spent. It never leaves this package."""


class Clock:
    """Seconds since it was made, and of each stage.

    Args:
        budget: seconds, or None for no limit.
    """

    def __init__(self, budget: float | None) -> None:
        self.budget = budget
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def left(self) -> float:
        """Seconds that are left; infinite without a budget."""
        return float("inf") if self.budget is None else self.budget - (time.perf_counter() - self._start)

    def check(self) -> None:
        """Raise TimeUpError if the budget is spent."""
        if self.left() <= 0:
            raise TimeUpError

    def watched(self, on_step: OnStep) -> OnStep:
        """The callback, which also ends the work when the budget is spent."""

        def step(done: int, total: int) -> None:
            on_step(done, total)
            self.check()

        return step

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a block."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun
