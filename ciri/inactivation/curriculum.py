"""The dual curriculum (paper Eq. 2): from true masks to the wrong ones that a propagator makes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Curriculum:
    """One branch: true masks until epoch ``start`` (n1), inaccurate ones after ``end`` (n2), a blend between.

    Epochs may be fractions, so that a run measured in steps or minutes follows the same rule.
    """

    start: float
    end: float

    def alpha(self, epoch: float) -> float:
        """The share of the true mask: 1 up to n1, falling linearly to 0 at n2."""
        if epoch <= self.start:
            return 1.0
        if epoch > self.end or self.end <= self.start:
            return 0.0
        return (self.end - epoch) / (self.end - self.start)

    def blend(self, true: Tensor, inaccurate: Tensor, epoch: float) -> Tensor:
        """Return the candidate map M_c of Eq. 2; both masks (..., H, W) in [0, 1]."""
        alpha = self.alpha(epoch)
        # exactly one of the two at the ends: 0 * x would still carry a gradient's graph (and NaN) along
        if alpha in (0.0, 1.0):
            return true if alpha else inaccurate
        return torch.lerp(inaccurate, true, alpha)


@dataclass(frozen=True)
class DualCurriculum:
    """Both branches, with the paper's epochs (of 30) as defaults."""

    predicted: Curriculum = Curriculum(5, 15)
    attention: Curriculum = Curriculum(5, 20)
    epochs: float = 30

    def candidates(self, true: Tensor, predicted: Tensor, attention: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Return (M_c^pred, M_c^attn) at a progress in [0, 1] of this training stage."""
        epoch = progress * self.epochs
        return self.predicted.blend(true, predicted, epoch), self.attention.blend(true, attention, epoch)
