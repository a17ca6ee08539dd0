"""Convolutions whose bfloat16 weights stay in the layout that the processor's kernels read.

PyTorch rearranges a convolution's weights at every call, which takes its time where frames pass one by one and maps are
small. oneDNN, which PyTorch convolves with on processors, takes weights rearranged beforehand;
PyTorch's compiler uses that, by functions that are no public part of it. So they are tried first, and where a build of
PyTorch lacks them or they answer otherwise, the convolution stays as it is. Inference only.

Which arrangement a kernel reads depends on the size of its input, and on the threads it runs in. One that was made for
another kernel is rearranged at every call, which takes far longer than what is saved, so each convolution keeps as many
as its inputs ask for: one, or a few.
"""

from __future__ import annotations

import ctypes
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

#: So many sizes of input are remembered; parts of frames come in many.
MOST_KERNELS = 512


class PackedConv2d(nn.Module):
    """The same function as a convolution of bfloat16 weights, up to the order in which a kernel sums.

    Args:
        weight: (o, c / groups, kernel, kernel).
        bias: (o,) or None.
        padding, stride, dilation: of rows and columns.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, padding: Pair, stride: Pair, dilation: Pair = (1, 1), groups: int = 1
    ) -> None:
        super().__init__()
        self.weight = weight.detach()
        self._bias = None if bias is None else bias.detach()
        self._packed: dict[object, Tensor] = {}
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
        kernel = (x.shape, padding, torch.get_num_threads())
        weight = self._packed.get(kernel)
        if weight is None:
            weight = self._keep(kernel, self._pack(x.shape, padding))
        convolve = torch.ops.mkldnn._convolution_pointwise
        out: Tensor = convolve(x, weight, self._bias, padding, *self._more, *activation)
        return out

    def _pack(self, shape: torch.Size, padding: Pair) -> Tensor:
        """Arrange the weights for inputs of a shape."""
        pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        packed: Tensor = pack(self.weight.to_mkldnn(), padding, *self._more, shape)
        return packed

    def _keep(self, kernel: object, packed: Tensor) -> Tensor:
        """Note what a kernel reads; what is arranged as others are is kept once."""
        if len(self._packed) >= MOST_KERNELS:
            self._packed.clear()
        known = {id(weight): weight for weight in self._packed.values()}
        content = _content(packed)
        same = next((weight for weight in known.values() if torch.equal(_content(weight), content)), packed)
        self._packed[kernel] = same
        return same


def _content(packed: Tensor) -> Tensor:
    """The bytes of packed weights, in the order in which they lie in memory; uint8 (n,), a view."""
    start, size = torch.ops.mkldnn.data_ptr(packed), torch.ops.mkldnn._nbytes(packed)
    return torch.frombuffer((ctypes.c_uint8 * size).from_address(start), dtype=torch.uint8)


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
