"""Bilinear samples of many scattered points, fast, and of the right side of a hole's rim alone.

Dimensions: t frames, n points, h w pixels. Positions are (x, y) in pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear(points: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Return the flat indices (n, 4) and the weights (n, 4) of the pixels around points (n, 2) inside the frame."""
    x, y = points.unbind(-1)
    left, top = x.long().clamp(max=max(w - 2, 0)), y.long().clamp(max=max(h - 2, 0))
    part_x, part_y = x - left, y - top
    right, down = int(w > 1), w * int(h > 1)
    corners = (top * w + left)[:, None] + torch.tensor([0, right, down, down + right])
    across = torch.stack([1 - part_x, part_x], 1)
    weights = torch.cat([across * (1 - part_y)[:, None], across * part_y[:, None]], 1)
    return corners, weights


def interpolate(table: Tensor, corners: Tensor, weights: Tensor) -> Tensor:
    """Return (n, C), the weighted sums of rows of ``table`` (pixels, C) at corners (n, 4)."""
    # one fused gather-and-sum: several times faster than indexing and summing
    return F.embedding_bag(corners, table, mode="sum", per_sample_weights=weights)


class PixelTable:
    """All pixels of a clip that may be copied, as rows to gather from.

    A row holds red, green, blue and 1 where the pixel may be copied, and zeros where it may not, so that bilinear
    samples at the rim of a hole can be made of the pixels on the right side of it alone.
    """

    def __init__(self, frames: Tensor, visible: Tensor) -> None:
        """Take frames (T, 3, H, W) and visible, bool (T, H, W)."""
        _, _, self.h, self.w = frames.shape
        self.rows = torch.cat([frames * visible[:, None], visible[:, None]], 1).permute(0, 2, 3, 1).reshape(-1, 4)
        self.limit = torch.tensor([self.w - 1, self.h - 1]).float()

    def sample(self, frame: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return colours (n, 3) at positions (n, 2), and how much of each sample may be copied, (n,) in [0, 1].

        Frames below 0 give what frame 0 holds: the caller knows that these have no source.
        """
        corners, weights = bilinear(position.clamp(min=torch.zeros(2), max=self.limit), self.h, self.w)
        corners += (frame.clamp(min=0) * (self.h * self.w))[:, None]
        values = interpolate(self.rows, corners, weights)
        share = values[:, 3]
        return values[:, :3] / share.clamp(min=1e-6)[:, None], share

    def add(self, t: int, index: Tensor, colours: Tensor) -> None:
        """Let pixels of frame t, flat indices (n,), be copied from now on, with these colours (n, 3)."""
        at = t * self.h * self.w + index
        self.rows[at, :3], self.rows[at, 3] = colours, 1.0

    def shown(self, t: int) -> Tensor:
        """Return bool (H, W): the pixels of frame t that may be copied."""
        size = self.h * self.w
        return self.rows[t * size : (t + 1) * size, 3].view(self.h, self.w) > 0
