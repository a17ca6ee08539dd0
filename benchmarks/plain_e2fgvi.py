"""E2FGVI in its published form, without the rewrites: the yardstick of the speed figures and the oracle of unit tests.

Same weights, same numbers up to rounding: four shifted copies of keys and values, a mask of -100 on the pooled keys
outside the map, unfolded patches in soft split, soft composition and feed-forward layers, all frames transformed and
decoded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ciri.inpainting.e2fgvi import E2FGVI
from ciri.inpainting.focal import AREA, REACH, SHIFTS, WINDOW, FocalBlock, from_windows, to_windows
from ciri.inpainting.soft_split import KERNEL, PADDING, STRIDE

PATCHES = {"kernel_size": KERNEL, "padding": PADDING, "stride": STRIDE}


def attention(block: FocalBlock, normed: Tensor) -> Tensor:
    """Focal attention of (B, T, gh, gw, D) by shifted copies: (B, W, T * 45, D)."""
    module, (rows, columns) = block.attn, WINDOW
    q, k, v = module.qkv(normed).chunk(3, -1)
    pooled_k, pooled_v = module.qkv(block.pool(normed)).chunk(3, -1)[1:]

    def keys(full: Tensor, pooled: Tensor) -> Tensor:
        copies = [torch.roll(full, (-dy * REACH[0], -dx * REACH[1]), (2, 3)) for dy, dx in SHIFTS]
        shifted = [rearrange(to_windows(c), "b w (t a) d -> b w t a d", a=AREA) for c in copies]
        ring = torch.cat(shifted, 3)[:, :, :, module.valid_ind_rolled]
        patches = F.unfold(rearrange(pooled, "b t r c d -> (b t) d r c"), WINDOW, padding=(rows // 2, columns // 2))
        near = rearrange(patches, "(b t) (d a) w -> b w (t a) d", b=len(full), a=AREA)
        return torch.cat([to_windows(full), ring.flatten(2, 3), near], 2)

    valid = F.unfold(torch.ones(1, 1, *pooled_k.shape[2:4]), WINDOW, padding=(rows // 2, columns // 2))
    penalty = (valid[0].T == 0).float().repeat(1, normed.shape[1]) * -100.0
    k, v = keys(k, pooled_k), keys(v, pooled_v)
    heads = "b w n (m d) -> b w m n d"
    q, k, v = (rearrange(x, heads, m=module.heads) for x in (to_windows(q), k, v))
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    logits[..., -penalty.shape[1] :] += penalty[None, :, None, None]
    return module.proj(rearrange(logits.softmax(-1) @ v, "b w m n d -> b w n (m d)"))


def feed_forward(block: FocalBlock, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Fold, divide by the cover count, unfold, GELU."""
    patches = block.mlp.conv1(tokens.flatten(1, 2)).transpose(1, 2)
    count = F.fold(torch.ones_like(patches), size, **PATCHES)
    unfolded = F.unfold(F.fold(patches, size, **PATCHES) / count, **PATCHES)
    return block.mlp.conv2(unfolded.transpose(1, 2)).view_as(tokens)


def block_forward(block: FocalBlock, x: Tensor, size: tuple[int, int]) -> Tensor:
    """One whole block."""
    x = x + from_windows(attention(block, block.norm1(x)), (x.shape[2], x.shape[3]))
    return x + feed_forward(block, block.norm2(x).flatten(0, 1), size).view_as(x)


def soft_split(network: E2FGVI, features: Tensor) -> Tensor:
    """Unfold and embed (B, T, C, h, w): (B, T, gh, gw, D)."""
    h, w = features.shape[3:]
    patches = F.unfold(features.flatten(0, 1), **PATCHES).transpose(1, 2)
    tokens = network.ss.embedding(patches)
    return tokens.view(*features.shape[:2], (h - 1) // STRIDE + 1, (w - 1) // STRIDE + 1, -1)


def soft_composition(network: E2FGVI, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Embed and fold (B, T, gh, gw, D): (B * T, C, h, w)."""
    patches = network.sc.embedding(tokens.flatten(0, 1).flatten(1, 2)).transpose(1, 2)
    composed = F.fold(patches, size, **PATCHES)
    return composed + network.sc.bias if network.sc.bias_conv is None else network.sc.bias_conv(composed)


def forward(network: E2FGVI, frames: Tensor, local: int) -> Tensor:
    """The whole network on (B, T, 3, H, W): all T frames filled, (B, T, 3, H, W)."""
    features = network.encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    flows = network.flows(frames[:, : local - 1].flatten(0, 1), frames[:, 1:local].flatten(0, 1))
    features = network.propagate(features, local, flows.unflatten(0, (len(frames), local - 1)))
    size = (features.shape[3], features.shape[4])
    tokens = soft_split(network, features)
    for block in network.transformer:
        tokens = block_forward(block, tokens, size)
    composed = soft_composition(network, tokens, size)
    return network.decoder(features.flatten(0, 1) + composed).tanh().unflatten(0, frames.shape[:2])
