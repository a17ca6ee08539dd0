"""STTN (Zeng et al., "Learning Joint Spatial-Temporal Transformations for Video Inpainting", ECCV 2020), written
from its description; loads the published checkpoint (MIT licence).

::

    frames -> encoder F -> 8 blocks: attention between patches of four sizes, two convolutions -> decoder -> tanh

No weight depends on the frame's size; the four patch sizes are the whole feature map and a third, a sixth and a
twelfth of its sides, hence multiples of 48 pixels (108 x 60, 36 x 20, 18 x 10 and 9 x 5 at 432 x 240).

Dimensions: B windows of T frames, the first L local, C channels, h w features, nh nw patches of ph x pw in a frame.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.blocks import SLOPE, Decoder, run, stem_layers
from ciri.inpainting.network import Stage, WindowNetwork, in_chunks

CHANNELS, BLOCKS = 256, 8
#: Patches along each side of the feature map, per quarter of the channels.
PATCHES = (1, 3, 6, 12)
#: A patch is a hole if more than this share of it is.
HOLE_SHARE = 0.5
#: All frames at a time.
MANY = 1 << 30


class STTN(WindowNetwork):
    """The generator.

    Attributes:
        attention_mask: leave out patches that are mostly hole, as the paper's text says. The released program computes
            that mask and drops it, and the published weights were trained so: off by default.
    """

    name = "sttn"
    facts = BackboneFacts(needs_divisible_by=48, least_window=(240, 432), trained_for="hard mask", licence="MIT")

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*stem_layers())
        self.transformer = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.decoder = Decoder(CHANNELS)
        self.attention_mask = False

    def stages(self) -> Mapping[str, Stage]:
        return {"half": lambda x: run(list(self.encoder)[:4], x), "out": lambda x: run(list(self.encoder)[4:], x)}

    def decode_window(
        self, features: Tensor, local: int, flows: Tensor | None = None, masks: Tensor | None = None
    ) -> Tensor:
        """As :meth:`WindowNetwork.decode_window`.

        Args:
            masks: (B, T, 1, H, W), 1 = hole; needed with ``attention_mask`` only. Sampled at every fourth pixel.
        """
        holes = masks[..., ::4, ::4] if self.attention_mask and masks is not None else None
        with self.autocast(features.device):
            x, some = features, self.at_once(4 * features.shape[3], 4 * features.shape[4])
            for block in self.transformer[:-1]:
                x = block(x, holes=holes, some=some)
            x = self.transformer[-1](x, local, holes, some)
            filled = in_chunks(self.decoder, x.flatten(0, 1), some)
        return torch.tanh(filled.float()).unflatten(0, (len(features), local))


class Block(nn.Module):
    """Patch attention and two convolutions, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = PatchAttention()
        self.feed_forward = FeedForward()

    def forward(self, x: Tensor, local: int | None = None, holes: Tensor | None = None, some: int = MANY) -> Tensor:
        """Map features (B, T, C, h, w) to the same, or to those of the first ``local`` frames only.

        ``some`` frames at a time pass through the convolutions.
        """
        x = x[:, :local] + self.attention(x, local, holes, some)
        added = in_chunks(lambda part: part + self.feed_forward(part), x.flatten(0, 1), some)
        return added.unflatten(0, x.shape[:2])


class PatchAttention(nn.Module):
    """Attention between non-overlapping patches of all frames, one head per patch size."""

    def __init__(self) -> None:
        super().__init__()
        self.query_embedding = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.key_embedding = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.value_embedding = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.output_linear = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1), nn.LeakyReLU(SLOPE, inplace=True))

    def forward(self, x: Tensor, local: int | None = None, holes: Tensor | None = None, some: int = MANY) -> Tensor:
        """Attend.

        Args:
            x: (B, T, C, h, w).
            local: only the first so many frames ask; None: all.
            holes: (B, T, 1, h, w), 1 = hole; patches that are mostly hole are not asked. None: all are.
            some: frames that pass through a convolution at a time.

        Returns:
            (B, local, C, h, w).
        """

        def of_all(convolution: nn.Module, frames: Tensor) -> Tensor:
            return in_chunks(convolution, frames.flatten(0, 1), some).unflatten(0, frames.shape[:2])

        query = of_all(self.query_embedding, x[:, :local])
        key, value = of_all(self.key_embedding, x), of_all(self.value_embedding, x)
        heads = zip(PATCHES, *(part.chunk(len(PATCHES), 2) for part in (query, key, value)), strict=True)
        attended = torch.cat([attend_patches(q, k, v, n, holes) for n, q, k, v in heads], 2)
        return of_all(self.output_linear, attended)


def attend_patches(query: Tensor, key: Tensor, value: Tensor, across: int, holes: Tensor | None) -> Tensor:
    """Attention between patches, ``across`` x ``across`` of them in each frame.

    Args:
        query: (B, Tq, c, h, w).
        key, value: (B, T, c, h, w).
        holes: (B, T, 1, h, w) or None.

    Returns:
        (B, Tq, c, h, w).
    """
    grid = {"nh": across, "nw": across}
    as_vectors = "b t c (nh ph) (nw pw) -> b (t nh nw) (ph pw c)"
    q, k, v = (rearrange(part, as_vectors, **grid) for part in (query, key, value))
    # up to 414,720 products a score, nearly equal between keys: rounding them would change which patch wins
    with torch.autocast(q.device.type, enabled=False):
        scores = _products(q, k) / q.shape[-1] ** 0.5
        if holes is not None:
            share = reduce(holes.float(), "b t 1 (nh ph) (nw pw) -> b 1 (t nh nw)", "mean", **grid)
            # not -inf: a scale whose patches are all hole falls back to asking all of them alike
            scores = scores.masked_fill(share > HOLE_SHARE, -1e9)
        weights = scores.softmax(-1)
    attended = weights.to(v.dtype) @ v
    shape = {**grid, "t": query.shape[1], "c": query.shape[2], "ph": query.shape[3] // across}
    return rearrange(attended, "b (t nh nw) (ph pw c) -> b t c (nh ph) (nw pw)", **shape)


def _products(q: Tensor, k: Tensor) -> Tensor:
    """q k^T in float32, of (B, n, v) and (B, m, v).

    bfloat16 on the CPU is multiplied as it is, which is several times as fast: one product for what bfloat16 holds of
    the result, a second for what is missing. Both are summed in float32, so 6e-6 of the largest score is what is lost.
    """
    k = k.transpose(-1, -2)
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return q.float() @ k.float()
    coarse = q @ k
    return coarse.float() + torch.baddbmm(coarse, q, k, beta=-1).float()


class FeedForward(nn.Module):
    """Two 3 x 3 convolutions, the first dilated, each activated."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=2, dilation=2),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w)."""
        return self.conv(x)
