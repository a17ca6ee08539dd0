"""FuseFormer, DSTT and STTN as published, without the rewrites: the yardstick of the speed figures.

Same weights, same numbers up to rounding: patches are unfolded and folded, attention holds its whole score matrix,
every frame of a window goes through every block, and FuseFormer and DSTT decode the reference frames too. STTN's
published program encodes each frame once and decodes the local frames only; its plain form does so as well.

Dimensions: T frames of a window, the first L local, h w features, N tokens of D values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ciri.inpainting.attention import HEADS, TokenAttention
from ciri.inpainting.dstt import DSTT, ZONES
from ciri.inpainting.fuseformer import FuseFormer, FusionFeedForward
from ciri.inpainting.soft_split import KERNEL, PADDING, STRIDE
from ciri.inpainting.sttn import STTN

PATCHES = {"kernel_size": KERNEL, "padding": PADDING, "stride": STRIDE}


def attention(module: TokenAttention, tokens: Tensor) -> Tensor:
    """Every token asks every token: (B, N, D) to the same."""
    embeddings = (module.query_embedding, module.key_embedding, module.value_embedding)
    q, k, v = (rearrange(embed(tokens), "b n (m d) -> b m n d", m=HEADS) for embed in embeddings)
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return module.output_linear(rearrange(weights @ v, "b m n d -> b n (m d)"))


def fusion_feed_forward(module: FusionFeedForward, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Fold, divide by the cover count, unfold, ReLU: (T, N, D) to the same."""
    patches = module.conv1(tokens).transpose(1, 2)
    count = F.fold(torch.ones_like(patches), size, **PATCHES)
    unfolded = F.unfold(F.fold(patches, size, **PATCHES) / count, **PATCHES)
    return module.conv2(unfolded.transpose(1, 2))


def fuseformer(network: FuseFormer, frames: Tensor) -> Tensor:
    """One window (T, 3, H, W), grey in the holes: all T frames filled."""
    features = network.encoder(frames)
    size, length = (features.shape[2], features.shape[3]), len(frames)
    tokens = network.ss.embedding(F.unfold(features, **PATCHES).transpose(1, 2)) + network.add_pos_emb.pos_emb[0]
    tokens = tokens.flatten(0, 1)[None]
    for block in network.transformer:
        tokens = tokens + attention(block.attention, block.norm1(tokens))
        apart = block.norm2(tokens)[0].unflatten(0, (length, -1))
        tokens = tokens + fusion_feed_forward(block.ffn, apart, size).flatten(0, 1)[None]
    patches = network.sc.embedding(tokens[0].unflatten(0, (length, -1))).transpose(1, 2)
    composed = F.fold(patches, size, **PATCHES) + network.sc.bias
    return network.decoder(features + composed).tanh()


def dstt(network: DSTT, frames: Tensor) -> Tensor:
    """One window (T, 3, H, W), grey in the holes: all T frames filled."""
    features = network.hier_enc(network.encoder(frames))
    tokens = network.patch2vec(features).permute(0, 2, 3, 1)
    grid = {"gh": tokens.shape[1], "gw": tokens.shape[2]}
    zones = {"zh": ZONES, "zw": ZONES, "h": grid["gh"] // ZONES}
    for block in network.transformer:
        normed = block.norm1(tokens)
        if block.over_time:
            asked = rearrange(normed, "t (zh h) (zw w) d -> (zh zw) (t h w) d", zh=ZONES, zw=ZONES)
            asked = attention(block.attention, asked)
            asked = rearrange(asked, "(zh zw) (t h w) d -> t (zh h) (zw w) d", t=len(frames), **zones)
        else:
            asked = attention(block.attention, normed.flatten(1, 2)).unflatten(1, tokens.shape[1:3])
        tokens = normed + asked
        tokens = tokens + block.ffn(block.norm2(tokens))
    patches = network.vec2patch.embedding(tokens.flatten(1, 2)).transpose(1, 2)
    composed = F.fold(patches, (features.shape[2], features.shape[3]), **PATCHES)
    return network.decoder(features + composed).tanh()


def sttn(network: STTN, features: Tensor, local: int) -> Tensor:
    """One window's features (T, C, h, w): the first ``local`` frames filled."""
    x = features[None]
    for block in network.transformer:
        x = block(x)
    return network.decoder(x[0, :local]).tanh()
