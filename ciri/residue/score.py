"""From a response map to a number: the score that is reported and compared, and the loss that is minimised (Eq. 9).

The paper sums the map. A harmless 0.02 on every pixel then outweighs a left-over limb, and a sigmoid has no slope
where the detection is surest. So responses below the detector's threshold count as nothing, which makes a clean frame
contribute exactly 0, and the loss goes by the logit. The literal sum stays for comparison.

Dimensions: n frames, h w cells of a response map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.errors import CiriError
from ciri.residue.base import Box
from ciri.residue.crops import search_window

#: Cells at the border of a map that do not count: a convolution sees less there.
BORDER = 3


def counted(boxes: Sequence[Box], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return bool (N, 1, h, w), the cells that count: not at the map's border, and with their centre in the frame.

    Args:
        boxes: the target's boxes; the maps cover their search windows.
        grid: (h, w) of the maps.
        size: (H, W) of the frame.
    """
    masks = []
    for box in boxes:
        window = search_window(box)
        sides = []
        for cells, start, length, limit in (
            (grid[0], window.y, window.height, size[0]),
            (grid[1], window.x, window.width, size[1]),
        ):
            index = torch.arange(cells)
            centre = start + (index + 0.5) * (length / cells)
            inside = (centre >= 0) & (centre <= limit)
            sides.append(inside & (index >= BORDER) & (index < cells - BORDER))
        masks.append(sides[0][:, None] & sides[1][None])
    return torch.stack(masks)[:, None]


def _share_of_box(boxes: Sequence[Box], grid: tuple[int, int], like: Tensor) -> Tensor:
    """Area of one cell over the area of the box, (N,)."""
    shares = []
    for box in boxes:
        window = search_window(box)
        shares.append((window.width / grid[1]) * (window.height / grid[0]) / (box.width * box.height))
    return torch.tensor(shares, dtype=like.dtype, device=like.device)


def score(logits: Tensor, boxes: Sequence[Box], size: tuple[int, int], threshold: float) -> Tensor:
    """Return r_t (N,) >= 0 in target areas: the sum of max(0, M - tau), in units of the target's box.

    Args:
        logits: (N, 1, h, w), as a detector returns them.
        boxes: N boxes of the target.
        size: (H, W) of the frame.
        threshold: tau in (0, 1).
    """
    grid = (logits.shape[-2], logits.shape[-1])
    excess = (logits.sigmoid() - threshold).clamp(min=0) * counted(boxes, grid, size).to(logits)
    return excess.sum((1, 2, 3)) * _share_of_box(boxes, grid, logits)


def residue_loss(
    logits: Tensor, boxes: Sequence[Box], size: tuple[int, int], threshold: float, *, mode: str = "hinge"
) -> Tensor:
    """Return the loss of each frame (N,); gradients flow to the logits.

    Args:
        logits, boxes, size, threshold: as :func:`score` takes them.
        mode: "hinge": softplus(z) - softplus(logit tau) where M > tau, in units of the target's box. It is zero where
            the score is, and its slope does not vanish where detection is sure. "paper": the sum of M over the
            whole map, Eq. 9 as printed.

    Raises:
        CiriError: another mode.
    """
    if mode == "paper":
        return logits.sigmoid().sum((1, 2, 3))
    if mode != "hinge":
        raise CiriError(f"The residue loss has no mode {mode!r}; choose 'hinge' or 'paper'.")
    grid = (logits.shape[-2], logits.shape[-1])
    edge = math.log(threshold / (1 - threshold))
    counts = counted(boxes, grid, size).to(logits.device) & (logits.detach() > edge)
    above = F.softplus(logits) - math.log1p(math.exp(edge))
    return torch.where(counts, above, torch.zeros_like(above)).sum((1, 2, 3)) * _share_of_box(boxes, grid, logits)
