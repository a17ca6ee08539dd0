"""Soft split and soft composition (FuseFormer, Liu et al., ICCV 2021) as strided convolutions.

Features are cut into overlapping 7 x 7 patches, stride 3, and every patch becomes a token by a linear layer; the way
back sums overlapping patches. Unfolding and a linear layer are one convolution, a linear layer and folding are one
transposed convolution: the same numbers without the buffer that holds every value up to nine times.

Dimensions: N frames, C channels, h w features, gh gw token grid, D token width; gh = (h - 1) // 3 + 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL, STRIDE, PADDING = 7, 3, 3

#: Values of one channel in one patch.
TAPS = KERNEL * KERNEL


def token_grid(h: int, w: int) -> tuple[int, int]:
    """Tokens along the height and the width of h x w features."""
    return (h - 1) // STRIDE + 1, (w - 1) // STRIDE + 1


def split(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Unfold (N, C, h, w), then a linear layer with weight (D, C * 49): returns the token map (N, D, gh, gw)."""
    kernel = weight.view(weight.shape[0], -1, KERNEL, KERNEL)
    return F.conv2d(features, kernel, bias, STRIDE, PADDING)


def compose(tokens: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """A linear layer with weight (C * 49, D) without bias, then fold (N, D, gh, gw): overlaps are summed."""
    kernel = weight.view(-1, KERNEL, KERNEL, weight.shape[1]).permute(3, 0, 1, 2)
    return _transposed(tokens, kernel, size)


def composed_bias(bias: Tensor, size: tuple[int, int]) -> Tensor:
    """What the linear layer's bias (C * 49) adds to every composed map: float32 (1, C, h, w)."""
    ones = torch.ones(1, 1, *token_grid(*size), device=bias.device)
    with torch.autocast(bias.device.type, enabled=False):
        return _transposed(ones, bias.float().view(1, -1, KERNEL, KERNEL), size)


def cover_count(size: tuple[int, int], device: torch.device) -> Tensor:
    """How many patches cover each position: float32 (1, 1, h, w), 1 to 9."""
    return composed_bias(torch.ones(TAPS, device=device), size)


def _transposed(tokens: Tensor, kernel: Tensor, size: tuple[int, int]) -> Tensor:
    # patches end where the last one ends; features that go on up to two positions further are covered by padding
    extra = [s - (STRIDE * (n - 1) + KERNEL - 2 * PADDING) for s, n in zip(size, tokens.shape[2:], strict=True)]
    return F.conv_transpose2d(tokens, kernel, None, STRIDE, PADDING, extra)


class SoftSplit(nn.Module):
    """Features (N, C, h, w) to tokens (N, gh, gw, D)."""

    def __init__(self, channels: int = 128, width: int = 512) -> None:
        super().__init__()
        self.embedding = nn.Linear(channels * TAPS, width)

    def forward(self, features: Tensor) -> Tensor:
        """Cut into overlapping patches and embed them."""
        return split(features, self.embedding.weight, self.embedding.bias).permute(0, 2, 3, 1)


class SoftComposition(nn.Module):
    """Tokens (N, gh, gw, D) to features (N, C, h, w): overlapping patches are summed, not averaged.

    Args:
        bias_size: (h, w) of a learned bias map, which binds the network to this size; None for no map.
        convolution: whether a 3 x 3 convolution follows (E2FGVI-HQ, in place of the map).
    """

    def __init__(
        self,
        channels: int = 128,
        width: int = 512,
        *,
        bias_size: tuple[int, int] | None = None,
        convolution: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(width, channels * TAPS)
        if bias_size is not None:
            self.bias = nn.Parameter(torch.zeros(channels, *bias_size))
        self.bias_conv = nn.Conv2d(channels, channels, 3, 1, 1) if convolution else None

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Compose features of size (h, w)."""
        composed = compose(tokens.permute(0, 3, 1, 2), self.embedding.weight, size)
        added = composed_bias(self.embedding.bias, size)
        composed = composed.float() + (added + self.bias if hasattr(self, "bias") else added)
        return composed if self.bias_conv is None else self.bias_conv(composed)


def fusion_feed_forward(
    tokens: Tensor,
    expand: nn.Linear,
    contract: nn.Linear,
    size: tuple[int, int],
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """FuseFormer's feed-forward layer: patches are folded, averaged where they overlap, and unfolded again in between.

    The activation acts on the folded map: it acts on every value alone and is 0 at 0 (ReLU, GELU), so it commutes
    with unfolding and sees each value once instead of up to nine times.

    Args:
        tokens: (N, gh, gw, D).
        expand: linear layer D to (channels * 49).
        contract: linear layer (channels * 49) to D.
        size: (h, w) of the features that the patches were cut from.
        activation: element-wise, with activation(0) = 0.

    Returns:
        (N, gh, gw, D).
    """
    folded = compose(tokens.permute(0, 3, 1, 2), expand.weight, size).float()
    averaged = (folded + composed_bias(expand.bias, size)) / cover_count(size, folded.device)
    return split(activation(averaged), contract.weight, contract.bias).permute(0, 2, 3, 1)
