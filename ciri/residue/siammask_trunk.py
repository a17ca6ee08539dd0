"""SiamMask's feature extractor: a ResNet-50 of three stages that keeps crops aligned, at stride 8 from stage 2 on.

Attribute names are those of the published checkpoint. Wang et al., "Fast Online Object Tracking and Segmentation: A
Unifying Approach", CVPR 2019. Dimensions: b crops; sides of maps are those of a 255-pixel search.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

#: An adjusted map narrower than this belongs to a template and loses its border.
_TEMPLATE_BELOW, _BORDER = 20, 4


class TrunkMaps(NamedTuple):
    """Feature maps of crops, fine to coarse. Cell i is centred on crop pixel 2i+3 (p0), 4i+3 (p1), 8i+7 (p2, p3).

    Attributes:
        p0: (b, 64, 125, 125), template 61.
        p1: (b, 256, 63, 63), template 31.
        p2: (b, 512, 31, 31), template 15.
        p3: (b, 1024, 31, 31), template 15.
    """

    p0: Tensor
    p1: Tensor
    p2: Tensor
    p3: Tensor


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries stride and dilation), 1x1 to four times the width; no convolution has a bias.

    A strided block pads nothing, neither in its 3x3 nor in the shortcut: every cell stays centred on its pixels.
    """

    def __init__(
        self, inputs: int, width: int, *, stride: int = 1, dilation: int = 1, shortcut: nn.Conv2d | None = None
    ) -> None:
        super().__init__()
        outputs = 4 * width
        padding = 0 if stride > 1 else dilation
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs)) if shortcut is not None else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)) + shortcut, inplace=True)


class ResNet(nn.Module):
    """The three stages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(nn.Conv2d(64, 256, 1, bias=False), 64, blocks=3)
        self.layer2 = _stage(nn.Conv2d(256, 512, 3, 2, bias=False), 128, blocks=4, stride=2)
        self.layer3 = _stage(nn.Conv2d(512, 1024, 3, 1, 1, bias=False), 256, blocks=6, dilation=2)

    def forward(self, crops: Tensor) -> TrunkMaps:
        p0 = F.relu(self.bn1(self.conv1(crops)))
        p1 = self.layer1(F.max_pool2d(p0, 3, 2, 1))
        p2 = self.layer2(p1)
        return TrunkMaps(p0, p1, p2, self.layer3(p2))


def _stage(shortcut: nn.Conv2d, width: int, *, blocks: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Blocks of one stage; the first has the stage's stride and a shortcut, the others its dilation."""
    first = Bottleneck(shortcut.in_channels, width, stride=stride, shortcut=shortcut)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, dilation=dilation) for _ in range(blocks - 1)))


class Adjust(nn.Module):
    """Reduces p3 to the 256 channels that heads correlate: (b, 1024, n, n) -> (b, 256, n, n), not cut."""

    def __init__(self) -> None:
        super().__init__()
        self.downsample = nn.Sequential(nn.Conv2d(1024, 256, 1, bias=False), nn.BatchNorm2d(256))

    def forward(self, p3: Tensor) -> Tensor:
        adjusted: Tensor = self.downsample(p3)
        return adjusted


class Trunk(nn.Module):
    """Stages and reduction."""

    def __init__(self) -> None:
        super().__init__()
        self.features = ResNet()
        self.downsample = Adjust()

    def maps(self, crops: Tensor) -> TrunkMaps:
        """(b, 3, n, n) BGR in 0..255 -> maps."""
        maps: TrunkMaps = self.features(crops)
        return maps

    def adjusted(self, p3: Tensor) -> Tensor:
        """(b, 1024, n, n) -> (b, 256, n, n): every cell, as part matching wants them."""
        adjusted: Tensor = self.downsample(p3)
        return adjusted

    def forward(self, crops: Tensor) -> tuple[TrunkMaps, Tensor]:
        """Maps, and the adjusted map as heads take it: 31 cells a side of a search, the inner 7 of a template's 15."""
        maps = self.maps(crops)
        return maps, without_border(self.adjusted(maps.p3))


def without_border(adjusted: Tensor) -> Tensor:
    """Cut 4 cells off every side of a template's adjusted map, whose border cells saw padding; keep a search's."""
    if adjusted.shape[-1] >= _TEMPLATE_BELOW:
        return adjusted
    return adjusted[..., _BORDER:-_BORDER, _BORDER:-_BORDER]
