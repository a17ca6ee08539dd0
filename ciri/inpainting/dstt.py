"""DSTT (Liu et al., "Decoupled Spatial-Temporal Transformer for Video Inpainting", 2021), written from its
description; loads the published checkpoint.

::

    frames -> encoder X0 -> hierarchy F -> 7 x 7 patches -> 8 blocks: in turn over time within a quarter of the
           frame, and over the frame -> composition -> + F -> decoder -> tanh

No weight depends on the frame's size; the 2 x 2 zones ask for an even token grid, hence multiples of 24 pixels. The
published weights carry no licence: the pack never ships them.

Dimensions: B windows of T frames, the first L local, h w features, gh gw tokens a frame, zh zw zones (2 x 2), D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from ciri.frames import Multiple
from ciri.inpainting.attention import TokenAttention
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.blocks import NARROW_HIERARCHY, Decoder, hierarchy_layers, merge_levels, run, stem_layers
from ciri.inpainting.network import Stage, WindowNetwork, in_chunks
from ciri.inpainting.soft_split import KERNEL, PADDING, STRIDE, SoftComposition

WIDTH, BLOCKS, ZONES = 512, 8, 2


class DSTT(WindowNetwork):
    """The generator."""

    name = "dstt"
    facts = BackboneFacts(
        # the released program knows one size, which fits
        needs_divisible_by=Multiple(24, 24, mirrored=True),
        least_window=(240, 432),
        trained_for="hard mask",
        licence="none given by its authors",
    )

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*stem_layers())
        self.hier_enc = Hierarchy()
        self.patch2vec = nn.Conv2d(128, WIDTH, KERNEL, STRIDE, PADDING)
        self.transformer = nn.ModuleList(Block(over_time=index % 2 == 0) for index in range(BLOCKS))
        self.vec2patch = SoftComposition()
        self.decoder = Decoder()

    def stages(self) -> Mapping[str, Stage]:
        return {
            "half": lambda x: run(list(self.encoder)[:4], x),
            "x0": lambda x: run(list(self.encoder)[4:], x),
            "out": self.hier_enc,
        }

    def decode_window(self, features: Tensor, local: int, flows: Tensor | None = None) -> Tensor:
        windows, size = len(features), (features.shape[-2], features.shape[-1])
        some = self.at_once(4 * size[0], 4 * size[1])
        with self.autocast(features.device):
            tokens = in_chunks(self.patch2vec, features.flatten(0, 1), some).float()
            tokens = rearrange(tokens, "(b t) d gh gw -> b t gh gw d", b=windows)
            for index, block in enumerate(self.transformer):
                # the last block looks at each frame alone, so the one before is the last to ask the references
                tokens = block(tokens, local if index >= BLOCKS - 2 else None)
            composed = in_chunks(lambda x: self.vec2patch(x, size), tokens.flatten(0, 1), some)
            filled = in_chunks(self.decoder, features[:, :local].flatten(0, 1) + composed, some)
        return torch.tanh(filled.float()).unflatten(0, (windows, local))


class Hierarchy(nn.Module):
    """Five grouped convolutions: X0 (N, 256, h, w) to F (N, 128, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(hierarchy_layers(NARROW_HIERARCHY))

    def forward(self, x0: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Merge the levels; ``taps`` receives every convolution's activated output."""
        return merge_levels(list(self.layers), x0, taps)


class Block(nn.Module):
    """Transformer block over time (within each of 2 x 2 zones, all frames) or over space (each frame alone).

    Its attention adds to the *normalised* tokens: the input reaches the output through the first norm only. That is
    unusual, and how the published weights were trained.
    """

    def __init__(self, *, over_time: bool) -> None:
        super().__init__()
        self.over_time = over_time
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = TokenAttention(WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.ffn = FeedForward()

    def forward(self, tokens: Tensor, local: int | None = None) -> Tensor:
        """Map tokens (B, T, gh, gw, D) to the same, or to those of the first ``local`` frames only."""
        normalised = self.norm1(tokens)
        frames = tokens.shape[1] if local is None else local
        tokens = normalised[:, :frames] + self.attend(normalised, frames)
        return tokens + self.ffn(self.norm2(tokens))

    def attend(self, tokens: Tensor, frames: int) -> Tensor:
        """Attention alone, for the first frames: (B, T, gh, gw, D) to (B, frames, gh, gw, D)."""
        b, _, gh, gw, _ = tokens.shape
        if not self.over_time:
            each = rearrange(tokens[:, :frames], "b t gh gw d -> (b t) (gh gw) d")
            return rearrange(self.attention(each), "(b t) (gh gw) d -> b t gh gw d", b=b, gh=gh)
        zones = rearrange(tokens, "b t (zh h) (zw w) d -> (b zh zw) (t h w) d", zh=ZONES, zw=ZONES)
        asked = self.attention(zones, frames * (gh // ZONES) * (gw // ZONES))
        shape = {"b": b, "zh": ZONES, "zw": ZONES, "t": frames, "h": gh // ZONES}
        return rearrange(asked, "(b zh zw) (t h w) d -> b t (zh h) (zw w) d", **shape)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between."""

    def __init__(self) -> None:
        super().__init__()
        # indices as published: dropouts stood at 2 and 4
        self.conv = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(inplace=True), nn.Identity(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.conv(tokens)
