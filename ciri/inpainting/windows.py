"""Which frames a network sees together: windows of neighbouring frames plus reference frames from further away.

The schedule of the published test programs of STTN, DSTT, FuseFormer and E2FGVI, which agree with each other: one
window around every ``stride``-th frame, reaching to the next centres on both sides, and every ``step``-th frame of
the clip as a reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ciri.errors import ClipError

#: What the published programs do with ``num_ref``: the test programs stop once they hold more than that, FuseFormer's
#: evaluation program once they hold that many.
Published = Literal["test", "evaluate"]


@dataclass(frozen=True)
class Window:
    """Frame indices that pass through the network together.

    Attributes:
        centre: the frame that the window was placed around.
        local: consecutive frames, ascending; these are filled.
        reference: further frames, ascending; these only lend their content.
    """

    centre: int
    local: tuple[int, ...]
    reference: tuple[int, ...]

    @property
    def frames(self) -> tuple[int, ...]:
        """All frames, in the order in which the network expects them."""
        return self.local + self.reference


@dataclass(frozen=True)
class Schedule:
    """How windows are placed.

    Attributes:
        stride: distance of the centres; a window reaches this far to both sides.
        step: distance of the reference frames.
        num_ref: at most this many references, around the centre; -1 takes them from the whole clip, as published. That
            makes work and memory of every window grow with the clip's length.
        published: None keeps to ``num_ref``; "test" and "evaluate" reproduce the count of the published programs, but
            never ask for a frame beyond the last one, as those do.
    """

    stride: int = 5
    step: int = 10
    num_ref: int = -1
    published: Published | None = None

    def __post_init__(self) -> None:
        if self.stride < 1 or self.step < 1 or self.num_ref < -1:
            raise ClipError(
                f"Window stride {self.stride}, reference step {self.step}, references {self.num_ref}: stride and step "
                "have to be at least 1, and references at least 0, or -1 for all."
            )

    def windows(self, length: int) -> list[Window]:
        """Return the windows of a clip of so many frames, in the order in which they are run."""
        return [self._window(centre, length) for centre in range(0, length, self.stride)]

    def _window(self, centre: int, length: int) -> Window:
        local = range(max(0, centre - self.stride), min(length - 1, centre + self.stride) + 1)
        return Window(centre, tuple(local), tuple(self._references(centre, length, local)))

    def _references(self, centre: int, length: int, local: range) -> list[int]:
        if self.num_ref == -1:
            return [i for i in range(0, length, self.step) if i not in local]
        # the published programs look equally far to both sides, so that of an odd number one is lost, and 1 means none
        one_side = self.num_ref // 2 if self.published else (self.num_ref + 1) // 2
        reach = self.step * one_side
        first, last = max(0, centre - reach), min(length, centre + reach)
        most = self.num_ref + 1 if self.published == "test" else self.num_ref
        candidates = [i for i in range(first, last + 1, self.step) if i not in local]
        # the published programs count an index one past the end before they fail on it
        return [i for i in candidates[:most] if i < length]


def without_holes(windows: Iterable[Window], has_hole: Sequence[bool]) -> list[Window]:
    """Drop the windows in whose local frames there is nothing to fill: they would change no pixel."""
    return [window for window in windows if any(has_hole[i] for i in window.local)]
