"""What the lite network is told besides the frames: what copying along the flow finds, and the complete classical fill.

The network starts as the classical backbone and learns where that is wrong; left to fill empty holes itself, it stays
at grey blobs for thousands of steps. Dimensions: t frames, h w pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ciri.flow.addresses import Candidates, cues_of
from ciri.flow.propagate import propagate_pixels
from ciri.inpainting.flow import classical_fill
from ciri.progress import OnStep, ignore, part


@dataclass
class Guidance:
    """Dense inputs of some frames; all float32 in [0, 1] unless said otherwise.

    Attributes:
        base: (T, 3, H, W), the classical fill.
        before, after: (T, 3, H, W), copies from the past and from the future; the base where there is none.
        cues: (T, 4, H, W), trust in before and after (0 = none), then the inverse distances to their sources.
    """

    base: Tensor
    before: Tensor
    after: Tensor
    cues: Tensor

    def to(self, device: torch.device | str) -> Guidance:
        """Return a copy on another device."""
        return Guidance(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


@dataclass
class Copies:
    """What the classical methods make of a clip.

    Attributes:
        candidates: the sources of every covered pixel.
        fill: float32 (T, 3, H, W), the clip with all of them filled.
    """

    candidates: Candidates
    fill: Tensor


def find_copies(frames: Tensor, inactivation: Tensor, *, on_step: OnStep = ignore) -> Copies:
    """Find the sources of every covered pixel of a clip, and fill it classically.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        inactivation: float32 (T, 1, H, W) in [0, 1].
        on_step: progress callback; may raise to stop.
    """
    candidates = propagate_pixels(frames, inactivation, on_step=part(on_step, 0.0, 0.7))
    return Copies(candidates, classical_fill(candidates, on_step=part(on_step, 0.7, 1.0)))


def guidance(copies: Copies, window: Iterable[int]) -> Guidance:
    """Return the network's inputs for some frames of a clip.

    Args:
        copies: of :func:`find_copies`.
        window: frame numbers.
    """
    rows = [_frame(copies, t) for t in window]
    return Guidance(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _frame(copies: Copies, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return base, before, after and cues of one frame."""
    base = copies.fill[t]
    sides = [copies.candidates.copied(t, side) for side in ("before", "after")]
    before, after = (torch.where(copy.valid, copy.colours, base) for copy in sides)
    return base, before, after, cues_of(*sides)
