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
        features: (n, c, h, w), of unit length along c.
        cells: of one template for all (m = 1), or of one for each (m = n). Without any valid cell the answer is -1.
    """
    h, w = features.shape[-2:]
    # padding is of length 0, so that what is added is what it answers
    padding = (cells.valid.to(features) - 1).transpose(1, 2)
    remembered, padding = (x.expand(len(features), -1, -1) for x in (cells.features.transpose(1, 2), padding))
    cosines = torch.baddbmm(padding, remembered, features.flatten(2))
    return mean_of_largest(cosines, NEAREST, 1).unflatten(1, (h, w))[:, None]


def mean_of_largest(values: Tensor, k: int, dim: int) -> Tensor:
    """Return the mean of the k largest along an axis (of all, if there are fewer), differentiable.

    Slices are sorted in one after the other. For k of a few and a hundred slices that is faster than ``topk``, the more
    so the longer runs the slices have in memory: along the first axes. The gradient of so many steps is not.
    """
    if values.requires_grad:
        index = values.detach().topk(min(k, values.shape[dim]), dim, sorted=False).indices
        return values.gather(dim, index).mean(dim)
    largest: list[Tensor] = []
    for value in values.unbind(dim):
        for rank, held in enumerate(largest):
            largest[rank], value = torch.maximum(held, value), torch.minimum(held, value)
        if len(largest) < k:
            largest.append(value)
    return torch.stack(largest).mean(0)


def evidence(features: Tensor, target: Cells, background: Cells) -> Tensor:
    """Return (n, 3, h, w): how much each cell is like the target, like the background, and the difference.

    The arguments are those of :func:`similarity`.
    """
    own, other = similarity(features, target), similarity(features, background)
    return torch.cat([own, other, own - other], 1)
