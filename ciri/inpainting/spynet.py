"""SPyNet, optical flow from coarse to fine (Ranjan and Black, CVPR 2017), as E2FGVI uses and fine-tunes it.

Dimensions: N image pairs, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciri.inpainting.deform import warp

LEVELS = 6

#: The coarsest level is 1/32 of the image.
MULTIPLE = 32

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Refinement(nn.Module):
    """One level's network: five 7 x 7 convolutions that correct the flow. The nesting is that of the weight files."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((8, 32), (32, 64), (64, 32), (32, 16), (16, 2))
        self.basic_module = nn.ModuleList(nn.ModuleDict({"conv": nn.Conv2d(c, out, 7, padding=3)}) for c, out in widths)

    def forward(self, x: Tensor) -> Tensor:
        """Reference, warped image and flow (N, 8, H, W) to a flow correction (N, 2, H, W)."""
        for level, layer in enumerate(self.basic_module):
            assert isinstance(layer, nn.ModuleDict)
            x = layer["conv"](x if level == 0 else F.relu(x))
        return x


class SPyNet(nn.Module):
    """Flow from one image to another, six levels with weights of their own."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.basic_module = nn.ModuleList(Refinement() for _ in range(LEVELS))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, reference: Tensor, other: Tensor) -> Tensor:
        """Return the flow (N, 2, H, W), (dx, dy) in pixels, along which ``other`` looks like ``reference``.

        Args:
            reference: (N, 3, H, W) in [0, 1].
            other: the same shape.
        """
        h, w = reference.shape[2:]
        size = (-(-h // MULTIPLE) * MULTIPLE, -(-w // MULTIPLE) * MULTIPLE)
        flow = self.aligned(resize(reference, size), resize(other, size))
        scale = torch.tensor([w / size[1], h / size[0]], device=flow.device).view(1, 2, 1, 1)
        return resize(flow, (h, w)) * scale

    def aligned(self, reference: Tensor, other: Tensor) -> Tensor:
        """The flow of images whose sides are multiples of 32. The flow itself is kept in float32 at every level."""
        references, others = self.pyramid(reference), self.pyramid(other)
        coarsest = references[0]
        flow = coarsest.new_zeros(len(coarsest), 2, *coarsest.shape[2:], dtype=torch.float32)
        for level, (refine, ref, supp) in enumerate(zip(self.basic_module, references, others, strict=True)):
            if level:
                flow = 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
            warped = warp(supp, flow, "border")
            flow = flow + refine(torch.cat([ref, warped, flow], 1)).float()
        return flow

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Normalised images, coarse to fine."""
        levels = [(images - self.mean) / self.std]
        for _ in range(LEVELS - 1):
            levels.insert(0, F.avg_pool2d(levels[0], 2))
        return levels


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, pixel centres aligned."""
    return x if tuple(x.shape[2:]) == size else F.interpolate(x, size, mode="bilinear", align_corners=False)
