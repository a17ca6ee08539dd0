"""The straightforward propagation, float32, frame by frame: what the engine is timed against and checked against.

Written from the description in the paper (Cheng et al., NeurIPS 2021), with nothing clever: a dense affinity, a
memory that is concatenated anew, whole frames decoded, nothing cached. Annotations on frame 0, forward only.

Dimensions: T frames, k objects, h w pixels (multiples of the network's stride).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ciri.propagation.network import MemoryNetwork


@torch.no_grad()
def propagate(network: MemoryNetwork, frames: Tensor, masks: Tensor, *, every: int = 5, last: bool = False) -> Tensor:
    """Return float32 (T, k, h, w), the probability of each object, from masks (k, 1, h, w) on frame 0."""
    probs = [aggregate(masks)]
    features = network.encode_key(frames[:1])
    keys = [features.key.flatten(2)[0]]
    values = [_value(network, frames[:1], features, probs[0])]
    temporary: list[Tensor] = []
    for t in range(1, len(frames)):
        features = network.encode_key(frames[t : t + 1])
        query = features.key.flatten(2)[0]
        memory_key, memory_value = torch.cat([*keys, *temporary[:1]], 1), torch.cat([*values, *temporary[1:]], 2)
        readout = memory_value @ affinity(memory_key, query, network.top_k)
        logits = network.decode(readout.unflatten(2, features.key.shape[2:]), features)
        probs.append(aggregate(logits.sigmoid()))
        if t == len(frames) - 1:
            break
        if t % every == 0:
            keys.append(query)
            values.append(_value(network, frames[t : t + 1], features, probs[t]))
            temporary = []
        elif last:
            temporary = [query, _value(network, frames[t : t + 1], features, probs[t])]
    return torch.stack(probs)[:, :, 0]


def affinity(memory_key: Tensor, query: Tensor, top_k: int | None) -> Tensor:
    """(ck, n), (ck, q) -> (n, q): softmax over n of -|m - q|^2 / sqrt(ck), restricted to the top k."""
    distance = torch.cdist(memory_key.T, query.T, compute_mode="donot_use_mm_for_euclid_dist").square()
    scores = -distance / math.sqrt(len(query))
    if top_k is not None and top_k < len(scores):
        smallest_kept = scores.topk(top_k, dim=0).values[-1:]
        scores = scores.masked_fill(scores < smallest_kept, -math.inf)
    return scores.softmax(0)


def aggregate(probs: Tensor) -> Tensor:
    """(k, ...) -> (k, ...): softmax over the log odds of the objects and the background, without the background."""
    background = (1 - probs).prod(0, keepdim=True)
    return torch.cat([background, probs]).clamp(1e-7, 1 - 1e-7).logit().softmax(0)[1:]


def _value(network: MemoryNetwork, frame: Tensor, features: object, probs: Tensor) -> Tensor:
    """Values of a frame to remember, (k, cv, h w)."""
    others = probs.sum(0, keepdim=True) - probs
    return network.encode_value(frame, features, probs, others).flatten(2)  # type: ignore[arg-type]
