"""Convolutions whose bfloat16 weights stay in the layout that the processor's kernels read.

PyTorch rearranges a convolution's weights at every call, which takes its time where frames pass one by one and maps are
small. oneDNN, which PyTorch convolves with on processors, takes weights rearranged beforehand;
PyTorch's compiler uses that, by functions that are no public part of it. So they are tried first, and where a build of
PyTorch lacks them or they answer otherwise, the convolution stays as it is. Inference only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, int]
Activation = tuple[str, tuple[float, ...], str]

#: What may follow a convolution at no cost, as oneDNN calls it.
NOTHING: Activation = ("none", (), "")
RELU6: Activation = ("hardtanh", (0.0, 6.0), "")


class PackedConv2d(nn.Module):
    """The same function as a convolution of bfloat16 weights, up to the order in which a kernel sums.

    Args:
        weight: (o, c / groups, kernel, kernel).
        bias: (o,) or None.
        padding, stride, dilation: of rows and columns.

    Attributes:
        weight: as it was, until the first call rearranges it; then only this class can read it.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, padding: Pair, stride: Pair, dilation: Pair = (1, 1), groups: int = 1
    ) -> None:
        super().__init__()
        self.weight = weight.detach()
        self._bias = None if bias is None else bias.detach()
        self._padding, self._more = padding, (stride, dilation, groups)

    @classmethod
    def of(cls, conv: nn.Conv2d) -> PackedConv2d:
        """For a convolution that :func:`suits`."""
        assert not isinstance(conv.padding, str)
        pairs = [(pair[0], pair[1]) for pair in (conv.padding, conv.stride, conv.dilation)]
        return cls(conv.weight, conv.bias, pairs[0], pairs[1], pairs[2], conv.groups)

    def forward(self, x: Tensor, padding: Pair | None = None, activation: Activation = NOTHING) -> Tensor:
        """(b, c, h, w) -> (b, o, h', w'), with another padding if one is given."""
        padding = self._padding if padding is None else padding
        if not self.weight.is_mkldnn:
            # the kernel, and with it the layout, is chosen for the first input; others are right as well
            pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            self.weight = pack(self.weight.to_mkldnn(), padding, *self._more, x.shape)
        convolve = torch.ops.mkldnn._convolution_pointwise
        out: Tensor = convolve(x, self.weight, self._bias, padding, *self._more, *activation)
        return out


def suits(conv: nn.Module) -> bool:
    """Whether a module is a convolution that :class:`PackedConv2d` computes."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.weight.dtype == torch.bfloat16
        and conv.weight.device.type == "cpu"
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


@lru_cache
def available() -> bool:
    """Whether this build of PyTorch has the functions, and they answer as its convolution does."""
    # no random weights: whoever draws numbers afterwards would get others than without this pack
    image, weight = (torch.linspace(-1, 1, n).bfloat16() for n in (8 * 81, 8 * 8 * 9))
    image, weight = image.view(1, 8, 9, 9).contiguous(memory_format=torch.channels_last), weight.view(8, 8, 3, 3)
    expected = F.conv2d(image, weight, stride=2, padding=1)
    try:
        packed = PackedConv2d(weight, None, (1, 1), (2, 2))
        return torch.equal(packed(image), expected) and torch.equal(packed(image, None, RELU6), F.relu6(expected))
    # no such function, other arguments, or a processor that they do not take
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


def pack_convolutions(module: nn.Module) -> None:
    """Replace every convolution in a module that suits, in place, where :func:`available`.

    Modules of other kinds that convolve may have a method ``pack``, which is called.
    """
    if not available():
        return
    for name, child in list(module.named_children()):
        if suits(child):
            assert isinstance(child, nn.Conv2d)
            setattr(module, name, PackedConv2d.of(child))
        elif callable(pack := getattr(child, "pack", None)):
            pack()
        else:
            pack_convolutions(child)
