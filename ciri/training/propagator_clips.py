"""The memory network on batches of clips: propagation with gradients, the batched read, the loss.

Dimensions: b clips, t frames, h w pixels, q positions of one frame, n stored positions, ck cv key and value channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.propagation.lite import LiteNetwork
from ciri.training.film import Dice
from ciri.training.synth_vos import Sample

#: The hardest share of the pixels that the cross-entropy is averaged over, once bootstrapping is complete.
HARDEST = 0.15


def unroll(
    network: LiteNetwork,
    frames: Tensor,
    first: Tensor,
    hints: Tensor | None = None,
    *,
    every: int,
    keep_last: bool,
    layout: torch.memory_format = torch.channels_last,
) -> Tensor:
    """Propagate first masks through clips, as the memory engine would, and return logits (b, t - 1, 1, h, w).

    Masks go on soft and with their gradients: the network is answerable for what it remembers.

    Args:
        network: what is trained.
        frames: (b, t, 3, h, w).
        first: (b, 1, h, w), masks of the first frames.
        hints: (b, t, 2, h, w), as the decoder takes them; None: none.
        every: each so-manyth frame stays in memory, the first included.
        keep_last: whether the frame before is in memory as well.
        layout: memory format of the frames, the network's own.
    """
    b, t = frames.shape[:2]
    in_time = frames.transpose(0, 1)
    features = network.encode_key(in_time.flatten(0, 1).contiguous(memory_format=layout))
    keys: list[Tensor] = []
    values: list[Tensor] = []
    logits, mask, temporary = [], first, False
    for at in range(t):
        now = features[at * b : (at + 1) * b]
        if at > 0:
            readout = read_batch(torch.cat(keys, 2), torch.cat(values, 2), now.key.flatten(2), network.top_k)
            told = None if hints is None else hints[:, at]
            logits.append(network.decode(readout.unflatten(2, now.key.shape[-2:]), now, told))
            # with one object, the soft aggregation of the engine is a sigmoid of twice the logit
            mask = torch.sigmoid(2 * logits[-1])
        permanent = at % every == 0
        if at + 1 < t and (permanent or keep_last):
            if temporary:
                keys.pop()
                values.pop()
            keys.append(now.key.flatten(2))
            values.append(network.encode_value(in_time[at], now, mask, torch.zeros_like(mask)).flatten(2))
            temporary = not permanent
    return torch.stack(logits, 1)


def read_batch(memory_key: Tensor, memory_value: Tensor, query_key: Tensor, top_k: int | None) -> Tensor:
    """The read of :mod:`ciri.propagation.memory` for many clips at once; dense, which is what a GPU likes.

    Args:
        memory_key: (b, ck, n).
        memory_value: (b, cv, n).
        query_key: (b, ck, q).
        top_k: how many stored positions answer; None: all.

    Returns:
        (b, cv, q), differentiable.
    """
    with torch.autocast(memory_key.device.type, enabled=False):
        keys, query = memory_key.float(), query_key.float()
        scores = 2 * query.transpose(1, 2) @ keys - keys.square().sum(1)[:, None]
        scores = scores / math.sqrt(keys.shape[1])
        best, index = scores.topk(min(top_k or scores.shape[2], scores.shape[2]), dim=2, sorted=False)
        weight = torch.zeros_like(scores).scatter(2, index, best.softmax(2))
    return memory_value @ weight.transpose(1, 2).to(memory_value.dtype)


def segmentation_loss(logits: Tensor, sample: Sample, *, bootstrap: float) -> dict[str, Tensor]:
    """Cross-entropy over the hardest pixels, and dice, of the aggregated probability; unusable clips count nothing.

    Args:
        logits: (b, t - 1, 1, h, w).
        sample: the clips.
        bootstrap: 0 averages over all pixels, 1 over the hardest ``HARDEST`` of each frame.
    """
    truth, aggregated = sample.masks[:, 1:].flatten(2), 2 * logits.float().flatten(2)
    weight = sample.usable.float()[:, None].expand(truth.shape[:2])
    weight = weight / weight.sum().clamp(min=1)
    pixels = F.binary_cross_entropy_with_logits(aggregated, truth, reduction="none")
    share = 1 - (1 - HARDEST) * bootstrap
    hardest = pixels.topk(max(1, int(share * pixels.shape[-1])), dim=-1, sorted=False).values.mean(-1)
    probability = torch.sigmoid(aggregated)
    overlap = (probability * truth).sum(-1)
    # the constant makes an absent target cost by the area that is claimed, and keeps tiny ones from shouting
    dice = 1 - (2 * overlap + 100) / (probability.sum(-1) + truth.sum(-1) + 100)
    return {"cross entropy": (hardest * weight).sum(), "dice": (dice * weight).sum()}


def roughen(masks: Tensor, dice: Dice) -> Tensor:
    """First masks (b, 1, h, w) as people paint them: some a little too wide, some too narrow."""
    if not dice.chance(0.25):
        return masks
    radius = 1 + dice.below(3)
    grown = F.max_pool2d(masks, 2 * radius + 1, stride=1, padding=radius)
    eroded = 1 - F.max_pool2d(1 - masks, 2 * radius + 1, stride=1, padding=radius)
    choice = dice.uniform(len(masks), 1, 1, 1)
    enough = eroded.sum((1, 2, 3), keepdim=True) > 0.5 * masks.sum((1, 2, 3), keepdim=True)
    return torch.where(choice < 0.3, grown, torch.where((choice < 0.5) & enough, eroded, masks))
