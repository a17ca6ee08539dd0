"""Encoder and decoder of the transformer family of video inpainting: E2FGVI, FuseFormer, DSTT and STTN.

Sources: STTN (Zeng et al., ECCV 2020) for the four first convolutions and the decoder; FuseFormer (Liu et al.,
ICCV 2021) and DSTT (Liu et al., 2021) for the hierarchy of grouped convolutions.

Dimensions: N frames, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Slope of every leaky ReLU in encoders and decoders of this family.
SLOPE = 0.2

#: Channels in and out, and stride, of the four first convolutions: 1/2 of the frame after two, 1/4 after four.
STEM = ((3, 64, 2), (64, 64, 1), (64, 128, 2), (128, 256, 1))

#: E2FGVI's and FuseFormer's hierarchy: input channels without X0, output channels, groups.
WIDE_HIERARCHY = ((256, 384, 1), (384, 512, 2), (512, 384, 4), (384, 256, 8), (256, 128, 1))

#: DSTT's hierarchy.
NARROW_HIERARCHY = ((256, 256, 1), (256, 256, 2), (256, 256, 4), (256, 256, 8), (256, 128, 1))


def stem_layers() -> list[nn.Module]:
    """Four convolutions, each followed by its activation: frames (N, 3, H, W) to X0 (N, 256, H/4, W/4)."""
    return _activated(nn.Conv2d(c, out, 3, stride, 1) for c, out, stride in STEM)


def hierarchy_layers(widths: Sequence[tuple[int, int, int]]) -> list[nn.Module]:
    """The grouped convolutions for :func:`merge_levels`, each followed by its activation."""
    x0 = widths[0][0]
    joined = [c if level == 0 else c + x0 for level, (c, _, _) in enumerate(widths)]
    return _activated(
        nn.Conv2d(c, out, 3, 1, 1, groups=groups) for c, (_, out, groups) in zip(joined, widths, strict=True)
    )


def _activated(convolutions: Iterable[nn.Module]) -> list[nn.Module]:
    return [layer for conv in convolutions for layer in (conv, nn.LeakyReLU(SLOPE, inplace=True))]


def run(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Apply layers one after the other."""
    for layer in layers:
        x = layer(x)
    return x


def merge_levels(layers: Sequence[nn.Module], x0: Tensor, taps: list[Tensor] | None = None) -> Tensor:
    """Run the hierarchy: before every convolution but the first, X0 joins the current features group by group.

    A convolution of g groups sees [part 1 of X0, part 1 of the features, part 2 of X0, ...], so that each group
    mixes the local X0 with features of a larger receptive field.

    Args:
        layers: as :func:`hierarchy_layers` makes them, convolutions and activations in turn.
        x0: (N, 256, h, w).
        taps: receives the activated output of every convolution, if given.
    """
    x = x0
    for level, (conv, activation) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
        # what stands in for a convolution (Winograd's) has one group
        groups = conv.groups if isinstance(conv, nn.Conv2d) else 1
        x = activation(conv(x if level == 0 else interleave(x0, x, groups)))
        if taps is not None:
            taps.append(x)
    return x


def interleave(a: Tensor, b: Tensor, groups: int) -> Tensor:
    """Join channels group by group: [a part 1, b part 1, a part 2, b part 2, ...]."""
    pairs = zip(a.chunk(groups, 1), b.chunk(groups, 1), strict=True)
    return torch.cat([part for pair in pairs for part in pair], 1)


class HierarchicalEncoder(nn.Module):
    """The encoder that E2FGVI and FuseFormer share, key for key: nine convolutions, features (N, 128, H/4, W/4).

    Its three parts end at the points where inactivation may act: :meth:`to_half` (N, 64, H/2, W/2), :meth:`to_quarter`
    (X0, N, 256, H/4, W/4) and :meth:`merge` (N, 128, H/4, W/4).
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([*stem_layers(), *hierarchy_layers(WIDE_HIERARCHY)])

    def to_half(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W) to 1/2."""
        return run(self.layers[:4], frames)

    def to_quarter(self, half: Tensor) -> Tensor:
        """1/2 to X0."""
        return run(self.layers[4:8], half)

    def merge(self, x0: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """X0 to the output."""
        return merge_levels(list(self.layers[8:]), x0, taps)

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames (N, 3, H, W)."""
        return self.merge(self.to_quarter(self.to_half(frames)))


class UpsampledConv(nn.Module):
    """Twice the size by bilinear interpolation (corners aligned), then a 3 x 3 convolution."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, out, 2 h, 2 w)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))


class Decoder(nn.Sequential):
    """Features (N, C, H/4, W/4) to frames (N, 3, H, W) before the final tanh; no skip connections."""

    def __init__(self, channels: int = 128) -> None:
        super().__init__(
            UpsampledConv(channels, 128),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(128, 64, 3, 1, 1),
            nn.LeakyReLU(SLOPE, inplace=True),
            UpsampledConv(64, 64),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(64, 3, 3, 1, 1),
        )
