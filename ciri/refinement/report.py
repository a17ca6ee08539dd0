"""What refinement did, frame by frame, in numbers and in words."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ciri.numbering import number, ranges


@dataclass(frozen=True)
class FrameReport:
    """One suspicious frame.

    Attributes:
        frame: its index in the clip; the text tells its number instead (:mod:`ciri.numbering`).
        before, after: residue scores in target areas; ``after`` is that of the frame as it is returned.
        area_ratio: area of the returned mask over that of the given one; 1.0 where nothing changed, infinite where an
            empty one was filled.
        accepted: whether a new mask was taken.
        reason: why not; empty if it was.
    """

    frame: int
    before: float
    after: float
    area_ratio: float
    accepted: bool
    reason: str = ""


@dataclass
class RefinementReport:
    """The whole clip.

    Attributes:
        frames: the suspicious frames, in order.
        outcome: one sentence.
        mode: what was tried: "mask" (for the setting "auto" too), "weights" or "paper"; "off" if nothing was found.
        steps: gradient steps taken.
        repainted: frames whose picture changed, whether or not their mask did.
        seconds: wall-clock time of each stage.
        peak_bytes: largest memory of the process (CPU) or on the device so far.
        notes: further sentences for the person who started this.
    """

    frames: list[FrameReport] = field(default_factory=list)
    outcome: str = ""
    mode: str = "off"
    steps: int = 0
    repainted: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def accepted(self) -> list[int]:
        """Frames whose mask changed."""
        return [entry.frame for entry in self.frames if entry.accepted]

    @property
    def total_seconds(self) -> float:
        """Of all stages."""
        return sum(self.seconds.values())

    def text(self) -> str:
        """The report for a person to read."""
        lines = [self.outcome]
        if self.frames:
            before, after = (sum(getattr(entry, key) for entry in self.frames) for key in ("before", "after"))
            lines.append(
                f"Suspicious frames: {len(self.frames)}; masks changed: {len(self.accepted)}; pictures changed: "
                f"{len(self.repainted)}; residue over the suspicious frames: {before:.3f} -> {after:.3f} target areas."
            )
            lines += self._rows()
        for reason, count in Counter(entry.reason for entry in self.frames if entry.reason).most_common():
            at = ranges([entry.frame for entry in self.frames if entry.reason == reason])
            lines.append(f"Not changed, {count}: {reason} (frames {at})")
        if self.seconds:
            stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in self.seconds.items())
            lines.append(f"Seconds: {self.total_seconds:.1f} ({stages}); gradient steps: {self.steps}.")
        if self.peak_bytes:
            lines.append(f"Peak memory since the program began: {self.peak_bytes / 2**20:.0f} MiB.")
        return "\n".join(lines + self.notes)

    def _rows(self) -> list[str]:
        rows = ["frame  residue before -> after  mask area"]
        for entry in self.frames:
            if entry.accepted:
                change = f"{entry.before:.3f} -> {entry.after:.3f}"
                area = f"x {entry.area_ratio:.2f}" if math.isfinite(entry.area_ratio) else "was empty"
                rows.append(f"{number(entry.frame):5d}  {change:>24s}  {area}")
        return rows if len(rows) > 1 else []


def area_ratios(new: Tensor, old: Tensor) -> list[float]:
    """Areas of masks (T, 1, H, W) over those of others, as :class:`FrameReport` has them."""
    areas = [(masks > 0.5).flatten(1).sum(1) for masks in (new, old)]
    ratios: list[float] = (areas[0] / areas[1]).nan_to_num(nan=1.0, posinf=math.inf).tolist()
    return ratios


def peak_memory(device: torch.device) -> int:
    """Largest memory in bytes: on a GPU what was allocated there, elsewhere that of the process; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
