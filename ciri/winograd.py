"""3x3 convolutions with a quarter of the multiplications, for processors that have nothing faster than float32.

Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
2016): 4x4 outputs from 6x6 inputs with 36 products per pair of channels instead of 144, as 36 matrix products. On one
core with AVX-512 it takes 0.45 to 0.55 of the time of PyTorch's convolution for 128 channels and more; its rounding is
about 6e-5 of the output's standard deviation. The transformed weights are four times as large. Inference only.

Dimensions: b images, c input and o output channels, th tw tiles of 4x4 outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Below this many channels the transforms cost more than the products save.
FEWEST_CHANNELS = 64

#: The transformed inputs of so many bytes are worked on at once: larger pieces leave the caches.
PIECE_BYTES = 16 << 20

# The transforms of the paper's section 4.3, for the points 0, 1, -1, 2, -2 and infinity.
_INPUT = torch.tensor(
    [
        [4.0, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_FILTER = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)
_OUTPUT = torch.tensor([[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


class WinogradConv2d(nn.Module):
    """The same function as a 3x3 convolution with stride 1 and padding 1, on float32.

    Args:
        conv: the convolution; see :func:`suits`.
    """

    filters: Tensor
    bias: Tensor | None
    transform: Tensor
    inverse: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        # as Kronecker products the 2D transforms are one matrix product each
        taps = conv.weight.detach().float().permute(2, 3, 1, 0).flatten(0, 1)
        filters = torch.kron(_FILTER, _FILTER).float() @ taps.flatten(1)
        self.register_buffer("filters", filters.view(36, *taps.shape[1:]))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().float())
        self.register_buffer("transform", torch.kron(_INPUT, _INPUT))
        self.register_buffer("inverse", torch.kron(_OUTPUT, _OUTPUT))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, o, h, w), both channels_last in memory."""
        b, c, h, w = x.shape
        o = self.filters.shape[2]
        th, tw = -(-h // 4), -(-w // 4)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 4 * tw - w + 1, 1, 4 * th - h + 1))
        out = x.new_empty(b, 4 * th, 4 * tw, o)
        rows = max(1, PIECE_BYTES // (36 * b * tw * max(c, o) * x.element_size()))
        for top in range(0, th, rows):
            bottom = min(th, top + rows)
            tiles = padded[:, 4 * top : 4 * bottom + 2].unfold(1, 6, 4).unfold(2, 6, 4)
            tiles = tiles.permute(4, 5, 0, 1, 2, 3).reshape(36, -1)
            products = torch.bmm((self.transform @ tiles).view(36, -1, c), self.filters)
            piece = (self.inverse @ products.view(36, -1)).view(4, 4, b, bottom - top, tw, o)
            out[:, 4 * top : 4 * bottom].view(b, bottom - top, 4, tw, 4, o).copy_(piece.permute(2, 3, 0, 4, 1, 5))
        if self.bias is not None:
            out += self.bias
        return out[:, :h, :w].permute(0, 3, 1, 2)


def suits(conv: nn.Module) -> bool:
    """Whether a module is a convolution that :class:`WinogradConv2d` computes, and faster."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.groups == 1
        and min(conv.in_channels, conv.out_channels) >= FEWEST_CHANNELS
    )


def replace_convolutions(module: nn.Module, *, keep: Sequence[str] = ()) -> None:
    """Replace every convolution in a module that suits, in place.

    Args:
        module: of float32 weights on the CPU.
        keep: names of direct children that stay as they are.
    """
    for name, child in list(module.named_children()):
        if name in keep:
            continue
        if suits(child):
            assert isinstance(child, nn.Conv2d)
            setattr(module, name, WinogradConv2d(child))
        else:
            replace_convolutions(child)
