"""The parts of STCN: two residual trunks, the value fusion with its attention, the decoder.

Attribute names are those of the published checkpoint. Residual networks: He et al. 2016; CBAM: Woo et al. 2018;
their use here: Cheng et al., "Rethinking Space-Time Networks with Improved Memory Coverage", NeurIPS 2021.

Dimensions: b frames, k objects, h w pixels; f4 f8 f16 are feature maps at 1/4, 1/8 and 1/16 of the frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1 to four times the width; no convolution has a bias."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)) + shortcut, inplace=True)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, with biases besides their batch norms: the published value encoder has them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


def _shortcut(inputs: int, outputs: int, stride: int, *, bias: bool) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=bias), nn.BatchNorm2d(outputs))


class KeyEncoder(nn.Module):
    """ResNet-50 without its last stage: (b, 3, h, w) -> f4 (256 channels), f8 (512), f16 (1024)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.res2 = _stage(Bottleneck, 64, 64, 256, blocks=3, stride=1)
        self.layer2 = _stage(Bottleneck, 256, 128, 512, blocks=4, stride=2)
        self.layer3 = _stage(Bottleneck, 512, 256, 1024, blocks=6, stride=2)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f4 = self.res2(_stem(self.conv1, self.bn1, frames))
        f8 = self.layer2(f4)
        return f4, f8, self.layer3(f8)


def _stage(
    block: type[Bottleneck] | type[BasicBlock], inputs: int, width: int, outputs: int, *, blocks: int, stride: int
) -> nn.Sequential:
    first, others = block(inputs, width, stride), [block(outputs, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *others)


def _stem(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(norm(conv(x)), inplace=True), 3, 2, 1)


class KeyProjection(nn.Module):
    """f16 -> key, 64 channels, neither activated nor normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.key_proj = nn.Conv2d(1024, 64, 3, padding=1)

    def forward(self, f16: Tensor) -> Tensor:
        key: Tensor = self.key_proj(f16)
        return key


class ResidualBlock(nn.Module):
    """Pre-activation residual block without normalisation; where widths differ the shortcut is a 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(inputs, outputs, 3, padding=1) if inputs != outputs else None
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = shortcut + self.conv2(F.relu(self.conv1(F.relu(x))))
        return out


class ChannelGate(nn.Module):
    """Weighs channels by what their mean and their maximum over the map say."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        # the checkpoint counts a flattening layer and the activation: parameters are "1" and "3"
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels, channels // reduction),
            nn.ReLU(),
            nn.Linear(channels // reduction, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
        return x * gate.sigmoid()[..., None, None]


class SpatialGate(nn.Module):
    """Weighs positions by their maximum and their mean over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.ModuleDict({"conv": nn.Conv2d(2, 1, 7, padding=3)})

    def forward(self, x: Tensor) -> Tensor:
        summary = torch.stack([x.amax(1), x.mean(1)], 1)
        gate: Tensor = self.spatial["conv"](summary).sigmoid()
        return x * gate


class CBAM(nn.Module):
    """Channel gate, then spatial gate; the residual is its user's business."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ChannelGate = ChannelGate(channels)
        self.SpatialGate = SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.SpatialGate(self.ChannelGate(x))
        return out


class ValueFusion(nn.Module):
    """Joins what the mask's trunk saw (256 channels) with the frame's f16 (1024) to the value (512)."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = ResidualBlock(256 + 1024, 512)
        self.attention = CBAM(512)
        self.block2 = ResidualBlock(512, 512)

    def forward(self, trunk: Tensor, f16: Tensor) -> Tensor:
        x = self.block1(torch.cat([trunk, f16], 1))
        out: Tensor = self.block2(x + self.attention(x))
        return out


class ValueEncoder(nn.Module):
    """ResNet-18 without its last stage on (frame, mask, other objects' masks), fused with f16 of the frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(5, 64, 7, 2, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(BasicBlock, 64, 64, 64, blocks=2, stride=1)
        self.layer2 = _stage(BasicBlock, 64, 128, 128, blocks=2, stride=2)
        self.layer3 = _stage(BasicBlock, 128, 256, 256, blocks=2, stride=2)
        self.fuser = ValueFusion()

    def forward(self, frame_and_masks: Tensor, f16: Tensor) -> Tensor:
        """(k, 5, h, w) and (k, 1024, h/16, w/16) -> (k, 512, h/16, w/16)."""
        x = self.layer1(_stem(self.conv1, self.bn1, frame_and_masks))
        value: Tensor = self.fuser(self.layer3(self.layer2(x)), f16)
        return value


class Upsample(nn.Module):
    """Doubles the resolution and adds the encoder's features of that resolution."""

    def __init__(self, skip: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.skip_conv = nn.Conv2d(skip, inputs, 3, padding=1)
        self.out_conv = ResidualBlock(inputs, outputs)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        x = self.skip_conv(skip) + F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        out: Tensor = self.out_conv(x)
        return out


class Decoder(nn.Module):
    """What memory answered, and the frame's features -> logits at the frame's size."""

    def __init__(self) -> None:
        super().__init__()
        self.compress = ResidualBlock(1024, 512)
        self.up_16_8 = Upsample(512, 512, 256)
        self.up_8_4 = Upsample(256, 256, 256)
        self.pred = nn.Conv2d(256, 1, 3, padding=1)

    def forward(self, x: Tensor, f8: Tensor, f4: Tensor) -> Tensor:
        """(k, 1024, h/16, w/16), (1, 512, h/8, w/8), (1, 256, h/4, w/4) -> float32 (k, 1, h, w)."""
        x = self.up_16_8(f8, self.compress(x))
        logits = self.pred(F.relu(self.up_8_4(f4, x)))
        return F.interpolate(logits.float(), scale_factor=4, mode="bilinear", align_corners=False)
