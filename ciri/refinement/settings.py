"""What a person may set for refinement, and the numbers that its guards go by."""

from __future__ import annotations

from dataclasses import dataclass

from ciri.errors import CiriError

MODES = ("auto", "mask", "weights", "paper")
#: Those that tune a propagator's weights.
TUNING = ("weights", "paper")


@dataclass(frozen=True)
class RefinementSettings:
    """How refinement is done.

    Attributes:
        mode: "auto" grows masks over what was found, in the shape that the picture gives it; "mask" then moves them by
            gradient descent too (measured: three times the extra time, no gain); "weights" tunes a copy of the
            propagator's decoder on the suspicious frames; "paper" is Eq. 8-10 as printed, without any guard.
        epochs: how often each suspicious frame is visited by gradient descent; in mode "paper" once at least.
        strength: 1 is the tested amount; it scales how far a mask may grow, and 0.5 halves that.
        time_budget: seconds after which refinement ends; what was not judged by then stays as it was, so gradient
            descent leaves about the time that judging takes. None: no limit.
        seed: of the jitter by which pictures are judged.
        grow, feather, crop: as in :func:`ciri.inpainting.remove.remove`; give those that the clip was inpainted with.

    Raises:
        CiriError: a value out of its range.
    """

    mode: str = "auto"
    epochs: int = 2
    strength: float = 1.0
    time_budget: float | None = None
    seed: int = 0
    grow: int = 4
    feather: int = 3
    crop: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise CiriError(f"There is no refinement mode {self.mode!r}; choose one of: {', '.join(MODES)}.")
        if not 0 <= self.epochs <= 100:
            raise CiriError(f"{self.epochs} epochs of refinement; expected 0 to 100 (2 is the paper's number).")
        if not 0 < self.strength <= 4:
            raise CiriError(f"The refinement strength is {self.strength}; expected more than 0 and at most 4.")
        if self.time_budget is not None and not self.time_budget >= 0:
            raise CiriError(f"The time budget is {self.time_budget} seconds; expected 0 or more, or none.")

    def shortage(self) -> str:
        """What to tell a person where memory runs out."""
        what = f"Memory ran out in refinement mode '{self.mode}', which "
        if self.mode in TUNING:
            return f"{what}tunes a network. Use mode 'auto', smaller frames, or the device 'cpu'."
        return f"{what}holds the clip several times. Do a part of the clip at a time, or use smaller frames."
