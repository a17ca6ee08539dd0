"""What SiamMask does with the features of template and search: depth-wise correlation heads, and mask refinement.

Attribute names are those of the published checkpoint. Dimensions: b pairs, n correlation cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ciri.residue.siammask_trunk import TrunkMaps

#: Side of a mask patch that the refinement makes for one correlation cell.
PATCH = 127


def correlate(search: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every channel of every search with its own template's: (b, c, H, W), (b, c, h, w) -> valid part."""
    b = len(search)
    folded = F.conv2d(
        rearrange(search, "b c h w -> 1 (b c) h w"),
        rearrange(kernel, "b c h w -> (b c) 1 h w"),
        groups=kernel.shape[0] * kernel.shape[1],
    )
    return rearrange(folded, "1 (b c) h w -> b c h w", b=b)


class CorrelationHead(nn.Module):
    """Template (b, 256, 7, 7) and search (b, 256, 31, 31), adjusted -> (b, outputs, 25, 25).

    Cell i is centred on crop pixel 8i + 31, which is cell i + 3 of p2.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv_kernel = _unit(3)
        self.conv_search = _unit(3)
        self.head = nn.Sequential(*_unit(1), nn.Conv2d(256, outputs, 1))

    def correlation(self, template: Tensor, search: Tensor) -> Tensor:
        """The correlation before the last layers, (b, 256, 25, 25)."""
        return correlate(self.conv_search(search), self.conv_kernel(template))

    def forward(self, template: Tensor, search: Tensor) -> Tensor:
        out: Tensor = self.head(self.correlation(template, search))
        return out


def _unit(kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(256, 256, kernel, bias=False), nn.BatchNorm2d(256), nn.ReLU())


class Refine(nn.Module):
    """The "sharp" variant's module: a correlation vector and the finer maps around it -> mask patch, 127 pixels a side.

    The patch of cell (y, x) covers crop pixels 8y-32 .. 8y+94, and x alike.
    """

    def __init__(self) -> None:
        super().__init__()
        self.v0, self.v1, self.v2 = _branch(64, 16, 4), _branch(256, 64, 16), _branch(512, 128, 32)
        self.h2, self.h1, self.h0 = _branch(32, 32, 32), _branch(16, 16, 16), _branch(4, 4, 4)
        self.deconv = nn.ConvTranspose2d(256, 32, 15, 15)
        self.post0 = nn.Conv2d(32, 16, 3, padding=1)
        self.post1 = nn.Conv2d(16, 4, 3, padding=1)
        self.post2 = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, correlation: Tensor, maps: TrunkMaps, positions: Tensor) -> Tensor:
        """Mask logits of some cells of one search.

        Args:
            correlation: (1, 256, 25, 25) of the mask head.
            maps: of the search, (1, ...).
            positions: integer (n, 2), rows and columns of correlation cells.

        Returns:
            (n, 127, 127).
        """
        cells = positions.tolist()
        vectors = torch.stack([correlation[0, :, y, x] for y, x in cells])[..., None, None]
        # the windows are the ones that the patch covers: 15, 31 and 61 cells at strides 8, 4 and 2
        w2 = _windows(maps.p2, cells, step=1, padding=4, side=15)
        w1 = _windows(maps.p1, cells, step=2, padding=8, side=31)
        w0 = _windows(maps.p0, cells, step=4, padding=16, side=61)
        out = self.deconv(vectors)
        out = self.post0(_enlarge(self.h2(out) + self.v2(w2), 31))
        out = self.post1(_enlarge(self.h1(out) + self.v1(w1), 61))
        out = self.post2(_enlarge(self.h0(out) + self.v0(w0), PATCH))
        logits: Tensor = out[:, 0]
        return logits


def _branch(*widths: int) -> nn.Sequential:
    a, b, c = widths
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, c, 3, padding=1), nn.ReLU())


def _windows(features: Tensor, cells: list[list[int]], *, step: int, padding: int, side: int) -> Tensor:
    padded = F.pad(features[0], (padding,) * 4)
    return torch.stack([padded[:, step * y : step * y + side, step * x : step * x + side] for y, x in cells])


def _enlarge(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, size=(side, side), mode="nearest")
