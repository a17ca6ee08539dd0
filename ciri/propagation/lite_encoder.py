"""EfficientNet-Lite0 as an encoder (Tan and Le, ICML 2019; "Lite" by its authors: no squeeze-and-excitation, ReLU6).

There is no batch normalisation: the pretrained one is folded to a scale and a shift per channel, so one clip trains and
refines exactly as a batch does.

Dimensions: b frames in a batch, h w pixels; f2 .. f32 are feature maps at 1/2 .. 1/32 of the frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciri.packed import PackedConv2d

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
#: Size of a strip of an expanded map, where it is made in strips.
STRIP_BYTES = 4 << 20


class ScaledConv(nn.Module):
    """A convolution with TensorFlow's "same" padding, then a scale and a shift per channel (a folded batch norm).

    ``fold`` multiplies the scale into the weights: the same function, one tensor fewer.
    """

    scale: nn.Parameter | None
    _packed: PackedConv2d | None

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, depthwise: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.groups = inputs if depthwise else 1
        self.weight = nn.Parameter(torch.empty(outputs, inputs // self.groups, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        self.scale = nn.Parameter(torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self._packed = None

    def forward(self, x: Tensor, *, clamp: bool = False) -> Tensor:
        """Convolve; with ``clamp``, a ReLU6 follows."""
        height, width = x.shape[-2:]
        return self.convolve(x, (*self.padding(width), *self.padding(height)), clamp=clamp)

    def padding(self, size: int) -> tuple[int, int]:
        """How many zeros "same" puts before and behind a side of this length.

        For a stride of 2 the bottom and the right get more: the pretrained weights expect that.
        """
        total = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
        return total // 2, total - total // 2

    def convolve(self, x: Tensor, padding: tuple[int, int, int, int], *, clamp: bool = False) -> Tensor:
        """Convolve with so many zeros to the left, right, top and bottom; with ``clamp``, a ReLU6 follows."""
        left, right, top, bottom = padding
        if left != right or top != bottom:
            x, left, top = F.pad(x, padding), 0, 0
        if self._packed is not None:
            return self._packed(x, (top, left), clamp=clamp)
        weight = self.weight if self.scale is None else self.weight * self.scale[:, None, None, None]
        out = F.conv2d(x, weight, self.bias, self.stride, (top, left), groups=self.groups)
        return F.relu6(out, inplace=True) if clamp else out

    def pack(self) -> None:
        """Keep the folded weights as the processor reads them; see :mod:`ciri.packed`."""
        assert self.scale is None, "fold first"
        self._packed = PackedConv2d(self.weight, self.bias, (0, 0), (self.stride, self.stride), groups=self.groups)

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
        strip = self._strip(x)
        if strip is None:
            return self._rows(x, 0, -(-x.shape[-2] // self.depthwise.stride))
        height = -(-x.shape[-2] // self.depthwise.stride)
        return torch.cat([self._rows(x, top, min(top + strip, height)) for top in range(0, height, strip)], 2)

    def _strip(self, x: Tensor) -> int | None:
        """How many rows of output to make at once; None: all.

        The expanded map is six times as wide as what goes in and comes out. Where it would be large, a processor makes
        it in strips that stay in its caches: the same numbers, sooner. Gradients need it whole.
        """
        if x.device.type != "cpu" or torch.is_grad_enabled():
            return None
        row = self.depthwise.weight.shape[0] * x.shape[0] * x.shape[-1] * x.element_size()
        if row * x.shape[-2] <= 2 * STRIP_BYTES:
            return None
        return max(1, STRIP_BYTES // (row * self.depthwise.stride))

    def _rows(self, x: Tensor, top: int, bottom: int) -> Tensor:
        """The rows from top to bottom (excluded) of the output."""
        conv, height = self.depthwise, int(x.shape[-2])
        before = conv.padding(height)[0]
        first, last = top * conv.stride - before, (bottom - 1) * conv.stride - before + conv.kernel
        seen = x[..., max(first, 0) : min(last, height), :]
        out = seen if self.expand is None else self.expand(seen, clamp=True)
        padding = (*conv.padding(int(x.shape[-1])), max(-first, 0), max(last - height, 0))
        out = self.project(conv.convolve(out, padding, clamp=True))
        return out + x[..., top:bottom, :] if self.shortcut else out


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
        x = self.stem(frames * 2 - 1, clamp=True)
        maps: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in LITE0_TAPS:
                maps.append(x * TAP_SCALES[len(maps)])
        return maps
