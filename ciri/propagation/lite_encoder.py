"""EfficientNet-Lite0 as an encoder (Tan and Le, ICML 2019; "Lite" by its authors: no squeeze-and-excitation, ReLU6).

There is no batch normalisation: the pretrained one is folded to a scale and a shift per channel, so one clip trains and
refines exactly as a batch does.

Dimensions: b frames in a batch, h w pixels; f2 .. f32 are feature maps at 1/2 .. 1/32 of the frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: EfficientNet-Lite0's inverted residual blocks: (kernel, stride, expansion, output channels), Table 1 of the paper
#: with the Lite changes. The classifier's last convolution is not needed.
LITE0_BLOCKS = (
    (3, 1, 1, 16),
    *((3, 2, 6, 24), (3, 1, 6, 24)),
    *((5, 2, 6, 40), (5, 1, 6, 40)),
    *((3, 2, 6, 80), (3, 1, 6, 80), (3, 1, 6, 80)),
    *((5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112)),
    *((5, 2, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192)),
    (3, 1, 6, 320),
)
#: After which blocks the maps at 1/2, 1/4, 1/8, 1/16 and 1/32 are complete, and their channels.
LITE0_TAPS = (0, 2, 4, 10, 15)
C2, C4, C8, C16, C32 = 16, 24, 40, 112, 320
#: Bring the maps to a spread of about 1 (their mean magnitudes with the pretrained weights: 8.3, 8.7, 5.7, 3.1, 1.4).
TAP_SCALES = (0.1, 0.1, 0.15, 0.3, 0.6)


class ScaledConv(nn.Module):
    """A convolution with TensorFlow's "same" padding, then a scale and a shift per channel (a folded batch norm).

    ``fold`` multiplies the scale into the weights: the same function, one tensor fewer.
    """

    scale: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, depthwise: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.groups = inputs if depthwise else 1
        self.weight = nn.Parameter(torch.empty(outputs, inputs // self.groups, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        self.scale = nn.Parameter(torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.scale is None else self.weight * self.scale[:, None, None, None]
        if self.stride == 1:
            return F.conv2d(x, weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        # "same" for a stride of 2 pads the bottom and the right more: the pretrained weights expect that
        pads = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), weight, self.bias, stride=self.stride, groups=self.groups)

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the scale into the weights and drop it."""
        if self.scale is not None:
            self.weight.mul_(self.scale[:, None, None, None])
            self.scale = None


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand 1x1, depthwise, project 1x1; a shortcut where the shape allows one."""

    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = ScaledConv(inputs, wide, 1) if expansion != 1 else None
        self.depthwise = ScaledConv(wide, wide, kernel, stride, depthwise=True)
        self.project = ScaledConv(wide, outputs, 1)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.expand is None else F.relu6(self.expand(x))
        out = self.project(F.relu6(self.depthwise(out)))
        return x + out if self.shortcut else out


class Lite0Encoder(nn.Module):
    """EfficientNet-Lite0 without its classifier; returns f2, f4, f8, f16, f32, scaled by TAP_SCALES."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ScaledConv(3, 32, 3, 2)
        channels, blocks = 32, []
        for kernel, stride, expansion, outputs in LITE0_BLOCKS:
            blocks.append(InvertedResidual(kernel, stride, expansion, channels, outputs))
            channels = outputs
        self.blocks = nn.ModuleList(blocks)

    def forward(self, frames: Tensor) -> list[Tensor]:
        x = F.relu6(self.stem(frames * 2 - 1))
        maps: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in LITE0_TAPS:
                maps.append(x * TAP_SCALES[len(maps)])
        return maps
