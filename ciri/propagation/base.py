"""What a propagator is: it turns one annotated frame into a mask for every frame (the paper's SVOS stage)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ciri.progress import OnStep, ignore

#: Below this confidence a frame counts as lost: the mask there is empty or not to be trusted.
LOST_BELOW = 0.3


@dataclass
class MaskTrack:
    """Masks of one target over a clip.

    Attributes:
        probs: float32 (T, 1, H, W) in [0, 1], the probability that a pixel belongs to the target.
        confidence: float32 (T,) in [0, 1], on the device of probs; 1 on annotated frames, 0 where the target is gone
            or lost.
        notes: sentences for the person who started this (what was resized, where the target was lost).
        kept: float32 (T, 1, H, W) in [0, 1], what is to stay and was followed along; None where nothing was.
    """

    probs: Tensor
    confidence: Tensor
    notes: list[str] = field(default_factory=list)
    kept: Tensor | None = None

    def lost_frames(self) -> list[int]:
        """Indices of the frames in which the target is gone or was lost."""
        return [int(i) for i in torch.nonzero(self.confidence < LOST_BELOW).flatten()]


@runtime_checkable
class Propagator(Protocol):
    """Propagates masks of one target from annotated frames to all frames, in both directions."""

    name: str

    def propagate(
        self, frames: Tensor, key_masks: Tensor, key_frames: Sequence[int], *, on_step: OnStep = ignore
    ) -> MaskTrack:
        """Return the target's mask in every frame.

        Args:
            frames: float32 (T, 3, H, W) in [0, 1], checked by :func:`ciri.frames.check_clip`.
            key_masks: float32 (K, 1, H, W) in [0, 1], the annotated masks. The paper's case is K = 1.
            key_frames: the K frame indices that the key masks belong to, distinct, each in 0..T-1.
            on_step: progress callback; may raise to stop.
        """
        ...

    def parameters_to_refine(self) -> Iterable[torch.nn.Parameter]:
        """The weights that test-time refinement (paper 3.3) may change; empty where there are none."""
        ...
