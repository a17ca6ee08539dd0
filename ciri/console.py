"""What a command shows while it works: a progress bar and remarks, on standard error."""

from __future__ import annotations

import sys
import time
from typing import TextIO

#: Without a terminal, seconds between two lines of progress.
_QUIET_INTERVAL = 30.0
_WIDTH = 30


class ProgressBar:
    """An ``on_step`` callback that draws a bar; where no terminal is, it writes a line now and then.

    Args:
        title: what is being done.
        stream: where to write (default: standard error).
    """

    def __init__(self, title: str, stream: TextIO | None = None):
        self.title, self.stream = title, stream or sys.stderr
        self.live = self.stream.isatty()
        self.start = time.monotonic()
        self.last = self.start - (1.0 if self.live else 0.0)
        self.fraction = 0.0

    def __call__(self, done: int, total: int) -> None:
        self.fraction = done / total if total else 1.0
        now = time.monotonic()
        if self.live and (now - self.last > 0.1 or self.fraction >= 1):
            filled = round(_WIDTH * self.fraction)
            self.stream.write(f"\r{self.title:12s} [{'#' * filled:{_WIDTH}s}] {self.fraction:4.0%} {self._left(now)}")
        elif not self.live and now - self.last > _QUIET_INTERVAL:
            self.stream.write(f"{self.title}: {self.fraction:.0%} after {now - self.start:.0f} s\n")
        else:
            return
        self.last = now
        self.stream.flush()

    def close(self) -> None:
        """End the line of the bar; without a terminal, say how long it took."""
        took = f"{time.monotonic() - self.start:.1f} s"
        self.stream.write(f"\r\033[K{self.title:12s} {took}\n" if self.live else f"{self.title}: {took}\n")
        self.stream.flush()

    def _left(self, now: float) -> str:
        if self.fraction < 0.02:
            return ""
        return f"{(now - self.start) * (1 - self.fraction) / self.fraction:4.0f} s left "


def remark(text: str, stream: TextIO | None = None) -> None:
    """Write one line for the person who started the command."""
    (stream or sys.stderr).write(text + "\n")
