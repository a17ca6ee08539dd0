"""Convolutions whose bfloat16 weights stay in the layout that the processor's kernels read.

PyTorch rearranges a convolution's weights at every call, which takes its time where frames pass one by one and maps are
small. oneDNN, which PyTorch convolves with on processors, takes weights rearranged beforehand;
PyTorch's compiler uses that, by functions that are no public part of it. So they are tried first, and where a build of
PyTorch lacks them or they answer otherwise, the convolution stays as it is. Inference only.

Which arrangement a kernel reads depends on the size of its input, and on the threads it runs in. One that was made for
another kernel is rearranged at every call, which takes far longer than what is saved, so each convolution keeps as many
as its inputs ask for: one, or a few. To find out takes longer than an ordinary convolution, so after the first size it
is done for those that come again.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, int]

#: What follows a convolution at no cost, as oneDNN calls it.
_NOTHING, _RELU6 = ("none", (), ""), ("hardtanh", (0.0, 6.0), "")
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
        # by kernel; None where one was asked for once
        self._packed: dict[object, Tensor | None] = {}
        self._padding, self._more = padding, (stride, dilation, groups)

    @classmethod
    def of(cls, conv: nn.Conv2d) -> PackedConv2d:
        """For a convolution that :func:`suits`."""
        assert not isinstance(conv.padding, str)
        pairs = [(pair[0], pair[1]) for pair in (conv.padding, conv.stride, conv.dilation)]
        return cls(conv.weight, conv.bias, pairs[0], pairs[1], pairs[2], conv.groups)

    def forward(self, x: Tensor, padding: Pair | None = None, *, clamp: bool = False) -> Tensor:
        """(b, c, h, w) -> (b, o, h', w'), with another padding if one is given; with ``clamp``, a ReLU6 follows."""
        padding = self._padding if padding is None else padding
        kernel = (x.shape, padding, torch.get_num_threads())
        weight = self._packed.get(kernel)
        if weight is None:
            if self._packed and kernel not in self._packed:
                self._note(kernel, None)
                stride, dilation, groups = self._more
                out = F.conv2d(x, self.weight, self._bias, stride, padding, dilation, groups)
                return F.relu6(out, inplace=True) if clamp else out
            weight = self._kept_once(self._pack(x.shape, padding))
            self._note(kernel, weight)
        convolve: Any = torch.ops.mkldnn._convolution_pointwise
        found: Tensor = convolve(x, weight, self._bias, padding, *self._more, *(_RELU6 if clamp else _NOTHING))
        return found

    def _pack(self, shape: torch.Size, padding: Pair) -> Tensor:
        """Arrange the weights for inputs of a shape."""
        pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        packed: Tensor = pack(self.weight.to_mkldnn(), padding, *self._more, shape)
        return packed

    def _note(self, kernel: object, weight: Tensor | None) -> None:
        if len(self._packed) >= MOST_KERNELS:
            self._packed.clear()
        self._packed[kernel] = weight

    def _kept_once(self, packed: Tensor) -> Tensor:
        """The weights themselves, or those that are arranged alike and are there already."""
        known = {id(weight): weight for weight in self._packed.values() if weight is not None}
        content = _content(packed)
        return next((weight for weight in known.values() if torch.equal(_content(weight), content)), packed)


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
        packed(image)
        return torch.equal(packed(image), expected) and torch.equal(packed(image, clamp=True), F.relu6(expected))
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
