"""FuseFormer (Liu et al., "FuseFormer: Fusing Fine-Grained Information in Transformers for Video Inpainting",
ICCV 2021), written from its description; loads the published checkpoint.

::

    frames -> encoder F -> soft split -> + position -> 8 blocks: joint attention, fusion feed-forward
           -> soft composition -> + F -> decoder -> tanh

The position embedding and the map that soft composition adds bind it to 240 x 432. The published weights carry no
licence: the pack never ships them.

Dimensions: B windows of T frames, the first L local, h w features (60 x 108), gh gw tokens a frame (20 x 36), D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ciri.inpainting.attention import TokenAttention
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.blocks import Decoder, HierarchicalEncoder
from ciri.inpainting.network import Stage, WindowNetwork, in_chunks
from ciri.inpainting.soft_split import TAPS, SoftComposition, SoftSplit, fusion_feed_forward, token_grid

WIDTH, BLOCKS, FUSION_CHANNELS = 512, 8, 40
SIZE = (240, 432)
FEATURES = (60, 108)


class FuseFormer(WindowNetwork):
    """The generator."""

    name = "fuseformer"
    facts = BackboneFacts(
        fixed_size=SIZE, least_window=SIZE, trained_for="hard mask", licence="none given by its authors"
    )

    def __init__(self) -> None:
        super().__init__()
        self.encoder = HierarchicalEncoder()
        self.ss = SoftSplit()
        self.add_pos_emb = PositionEmbedding()
        self.transformer = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.sc = SoftComposition(bias_size=FEATURES)
        self.decoder = Decoder()

    def stages(self) -> Mapping[str, Stage]:
        return {"half": self.encoder.to_half, "x0": self.encoder.to_quarter, "out": self.encoder.merge}

    def decode_window(self, features: Tensor, local: int, flows: Tensor | None = None) -> Tensor:
        windows, size = len(features), (features.shape[-2], features.shape[-1])
        with self.autocast(features.device):
            tokens = in_chunks(self.ss, features.flatten(0, 1), self.chunk).float()
            tokens = rearrange(self.add_pos_emb(tokens), "(b t) gh gw d -> b t gh gw d", b=windows)
            for block in self.transformer[:-1]:
                tokens = block(tokens, size)
            # what references would still learn in the last block, nobody reads
            tokens = self.transformer[-1](tokens, size, local)
            composed = in_chunks(lambda x: self.sc(x, size), tokens.flatten(0, 1), self.chunk)
            filled = in_chunks(self.decoder, features[:, :local].flatten(0, 1) + composed, self.chunk)
        return torch.tanh(filled.float()).unflatten(0, (windows, local))


class PositionEmbedding(nn.Module):
    """A learned vector per token of a frame; the same for every frame, so time has no position."""

    def __init__(self) -> None:
        super().__init__()
        gh, gw = token_grid(*FEATURES)
        self.pos_emb = nn.Parameter(torch.zeros(1, 1, gh * gw, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        """Add it to tokens (N, gh, gw, D)."""
        return tokens + self.pos_emb.view(1, *tokens.shape[1:])


class Block(nn.Module):
    """Pre-norm transformer block: attention over all tokens of all frames, then the fusion feed-forward per frame."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = TokenAttention(WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.ffn = FusionFeedForward()

    def forward(self, tokens: Tensor, size: tuple[int, int], local: int | None = None) -> Tensor:
        """Map tokens (B, T, gh, gw, D) to the same, or to those of the first ``local`` frames only."""
        b, t, gh, gw, _ = tokens.shape
        frames = t if local is None else local
        sequence = tokens.flatten(1, 3)
        asking = frames * gh * gw
        sequence = sequence[:, :asking] + self.attention(self.norm1(sequence), asking)
        tokens = sequence.view(b * frames, gh, gw, -1)
        tokens = tokens + self.ffn(self.norm2(tokens), size)
        return tokens.unflatten(0, (b, frames))


class FusionFeedForward(nn.Module):
    """Feed-forward layer whose hidden values are patches, averaged where they overlap."""

    def __init__(self) -> None:
        super().__init__()
        hidden = FUSION_CHANNELS * TAPS
        # the indices are the published keys: conv1.0, and conv2.2 behind an activation and a dropout
        self.conv1 = nn.Sequential(nn.Linear(WIDTH, hidden))
        self.conv2 = nn.Sequential(nn.ReLU(), nn.Identity(), nn.Linear(hidden, WIDTH))

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Map tokens (N, gh, gw, D) of features of size (h, w)."""
        expand, contract = self.conv1[0], self.conv2[2]
        assert isinstance(expand, nn.Linear) and isinstance(contract, nn.Linear)
        return fusion_feed_forward(tokens, expand, contract, size, F.relu)
