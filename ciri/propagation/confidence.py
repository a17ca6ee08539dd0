"""How much to believe of a predicted mask.

Dimensions: k objects, h w pixels, gh gw cells of the memory's grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.frames import widen

#: A pixel that may be target although the mask leaves it out.
POSSIBLE = 0.1

#: How much of the confidence is lost where two propagators have nothing in common.
DISSENT = 0.6


def mask_confidence(probs: Tensor, explained: Tensor) -> Tensor:
    """Return float32 (k,) in [0, 1]: certainty of the mask times how well memory explains the target's cells.

    0 where no pixel exceeds 0.5. Certainty is the mean of |2 P - 1| over the pixels that may be target (P > 0.1), a
    pixel's width of soft edge aside: small targets are all edge and would never be certain.

    Args:
        probs: float32 (k, 1, h, w).
        explained: float32 (k, 1, gh, gw) in [0, 1], see :class:`ciri.propagation.memory.Attention`.
    """
    # the strongest pixel in reach stands for an edge pixel
    peak = widen(widen(probs, 2), 3)
    possible = (probs > POSSIBLE).float()
    certainty = _mean(2 * peak.sub(0.5).abs(), possible)
    cells = F.avg_pool2d((probs > 0.5).float(), probs.shape[-1] // explained.shape[-1])
    known = _mean(explained, cells)
    present = (probs > 0.5).flatten(1).any(1)
    return torch.where(present, certainty * known, torch.zeros_like(known))


def agreement(probs: Tensor, hints: Tensor, lost: Tensor) -> Tensor:
    """How far masks and hints show the same, [1 - DISSENT, 1]; 1 where there is no hint.

    Where two propagators that work differently disagree, one of them is wrong, however sure it is of itself.

    Args:
        probs: (k, 1, h, w).
        hints: (k, 2, h, w), see :meth:`ciri.propagation.network.MemoryNetwork.decode`.
        lost: bool (k,), where the other one looked and found nothing.

    Returns:
        float32 (k,).
    """
    ours, theirs = probs.flatten(1) > 0.5, hints[:, 0].flatten(1) > 0.5
    union = (ours | theirs).sum(1)
    overlap = torch.where(union > 0, (ours & theirs).sum(1) / union.clamp(min=1), 1.0)
    overlap = torch.where(lost | (hints[:, 1].flatten(1).amax(1) > 0), overlap, 1.0)
    return 1 - DISSENT * (1 - overlap)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over all but the first dimension; 0 where there is no weight."""
    return (values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1e-6)
