"""Convolutions whose bfloat16 weights stay in the layout that the processor's kernels read.

PyTorch rearranges a convolution's weights at every call. Where frames pass one by one and maps are small, that is a
tenth of a network's time. oneDNN, which PyTorch convolves with on processors, takes weights rearranged beforehand;
PyTorch's compiler uses that, by functions that are no public part of it. So they are tried first, and where a build of
PyTorch lacks them or they answer otherwise, the convolution stays as it is. Inference only.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn


class PackedConv2d(nn.Module):
    """The same function as a convolution of bfloat16 weights, bit for bit.

    Args:
        conv: the convolution; see :func:`suits`.

    Attributes:
        weight: as it was, until the first call rearranges it; then only this class can read it.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = conv.weight.detach()
        self._bias = None if conv.bias is None else conv.bias.detach()
        assert not isinstance(conv.padding, str)
        self._shape = (conv.padding, conv.stride, conv.dilation, conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, o, h', w')."""
        if not self.weight.is_mkldnn:
            # the kernel, and with it the layout, is chosen for the first input; others are right as well
            pack = torch._C._nn.mkldnn_reorder_conv2d_weight  # type: ignore[attr-defined]
            self.weight = pack(self.weight.to_mkldnn(), *self._shape, x.shape)
        convolve = torch.ops.mkldnn._convolution_pointwise
        out: Tensor = convolve(x, self.weight, self._bias, *self._shape, "none", [], "")
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
    conv = nn.Conv2d(8, 8, 3, 2, 1).to(torch.bfloat16).requires_grad_(False)
    image = torch.linspace(-1, 1, 8 * 81).view(1, 8, 9, 9).bfloat16().contiguous(memory_format=torch.channels_last)
    try:
        return torch.equal(PackedConv2d(conv)(image), conv(image))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


def pack_convolutions(module: nn.Module) -> None:
    """Replace every convolution in a module that suits, in place, where :func:`available`."""
    for name, child in list(module.named_children()):
        if suits(child):
            if available():
                assert isinstance(child, nn.Conv2d)
                setattr(module, name, PackedConv2d(child))
        else:
            pack_convolutions(child)
