"""Part matching: every cell of a search map against cells of the target and of the background in the annotated frame.

A left-over foot matches the target's cells one by one, though the target as a whole is gone; a background that looks
like the target matches the background's cells as well and is cancelled.

Dimensions: n search maps, m templates (1, or n), c channels, h w cells of a map, k remembered cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: A cell belongs to the target above this share of target pixels, to the background below that one.
TARGET_ABOVE, BACKGROUND_BELOW = 0.7, 0.05
#: Similarities that are averaged: one alone would follow a single odd cell.
NEAREST = 3


@dataclass(frozen=True)
class Cells:
    """Remembered cells of one kind, at one scale.

    Attributes:
        features: (m, c, k), of unit length; padding is 0.
        valid: bool (m, 1, k), False for padding.
    """

    features: Tensor
    valid: Tensor


def choose_cells(target: Tensor, near: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return the flat indices of the target's and the background's cells, each evenly thinned out to the limit.

    Args:
        target: (h, w), share of target pixels in each cell.
        near: (h, w), the same of the dilated target: what is close to it belongs to neither.
        limit: most cells of each kind.

    A target without a cell of its own (a thin one) gets those four that show most of it.
    """
    share = target.flatten()
    own = torch.nonzero(share > TARGET_ABOVE).flatten()
    if not len(own):
        own = share.topk(min(4, len(share))).indices.sort().values
    other = torch.nonzero(near.flatten() < BACKGROUND_BELOW).flatten()
    return _thinned(own, limit), _thinned(other, limit)


def _thinned(index: Tensor, limit: int) -> Tensor:
    if len(index) <= limit:
        return index
    return index[torch.linspace(0, len(index) - 1, limit).round().long()]


def gather_cells(features: Tensor, index: list[Tensor], limit: int) -> Cells:
    """Pick cells out of maps (m, c, h, w), normalise them, and pad them to the limit."""
    flat = features.flatten(2)
    valid = torch.zeros(len(flat), 1, limit, dtype=torch.bool, device=features.device)
    padded = torch.zeros(len(flat), limit, dtype=torch.int64, device=features.device)
    for row, chosen in enumerate(index):
        valid[row, 0, : len(chosen)] = True
        padded[row, : len(chosen)] = chosen.to(features.device)
    picked = flat.gather(2, padded[:, None].expand(-1, flat.shape[1], -1))
    return Cells(F.normalize(picked, dim=1) * valid, valid)


def similarity(features: Tensor, cells: Cells) -> Tensor:
    """Return (n, 1, h, w): the mean of the three largest cosine similarities of each cell to the remembered ones.

    Args:
        features: (n, c, h, w), of any length.
        cells: of one template for all (m = 1), or of one for each (m = n). Without any valid cell the answer is -1.
    """
    h, w = features.shape[-2:]
    own = F.normalize(features, dim=1).flatten(2)
    cosines = torch.einsum("ncp,nck->npk", own, cells.features.expand(len(own), -1, -1))
    cosines = cosines.masked_fill(~cells.valid, -1)
    return mean_of_largest(cosines, NEAREST).unflatten(1, (h, w))[:, None]


def mean_of_largest(values: Tensor, k: int) -> Tensor:
    """Return the mean of the k largest of the last axis (of all, if there are fewer), differentiable.

    One maximum after the other: for a handful of a hundred values a processor is faster so than with ``topk``.
    """
    k = min(k, values.shape[-1])
    total: Tensor | int = 0
    for _ in range(k):
        largest, index = values.max(-1, keepdim=True)
        total = total + largest
        values = values.scatter(-1, index, -torch.inf)
    assert isinstance(total, Tensor)
    return total[..., 0] / k


def evidence(features: Tensor, target: Cells, background: Cells) -> Tensor:
    """Return (n, 3, h, w): how much each cell is like the target, like the background, and the difference."""
    own, other = similarity(features, target), similarity(features, background)
    return torch.cat([own, other, own - other], 1)
