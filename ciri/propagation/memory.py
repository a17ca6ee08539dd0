"""The space-time memory: what is kept of earlier frames, and how a frame reads it.

A position of the query frame asks with its key; every stored position answers with its value, weighted by how close
its key is (negative squared Euclidean distance, the best ``top_k`` only; Cheng et al., "Rethinking Space-Time
Networks with Improved Memory Coverage", 2021). Reading is a pure function, differentiable, used in training as well.

Dimensions: n stored positions, q query positions, j kept answers per query, ck cv key and value channels, k objects,
hw positions of one frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Similarities are made for this many bytes at once: exact, and the memory read needs no more at any clip length. A
#: processor is faster where they stay in its caches; an accelerator would rather be asked seldom.
CHUNK_BYTES, ACCELERATOR_CHUNK_BYTES = 8 << 20, 64 << 20

#: The best of so many similarities stands for all of them in the first round of the choice.
GROUP = 16

#: So many more than answer are chosen from rough similarities; of these the exact distances decide.
SPARE = 10


@dataclass
class Attention:
    """Which stored positions answer each query position, and how much.

    Attributes:
        index: int64 (q, j), rows of the memory; None where all n answer (j = n).
        weight: float32 (q, j), sums to 1 over j.
        explained: float32 (q,), how well memory explains the position: 1 = its very key is stored, 0 = the nearest
            key is as far as the average one. Detached.
    """

    index: Tensor | None
    weight: Tensor
    explained: Tensor


def squared_length(keys: Tensor) -> Tensor:
    """Return (n,): |m|^2 of keys (n, ck), without a second copy of them in memory."""
    return torch.einsum("nc,nc->n", keys, keys)


def similarity(memory_key: Tensor, query_key: Tensor, length: Tensor | None = None) -> Tensor:
    """Return (q, n): (2 <m, q> - |m|^2) / sqrt(ck), which is -|m - q|^2 / sqrt(ck) up to a term of q alone.

    Args:
        memory_key: float32 (n, ck).
        query_key: float32 (q, ck).
        length: float32 (n,), |m|^2, where it is known.
    """
    scale = 1 / math.sqrt(memory_key.shape[1])
    length = squared_length(memory_key) if length is None else length
    return torch.addmm(length, query_key, memory_key.T, beta=-scale, alpha=2 * scale)


@dataclass
class RoughKeys:
    """Keys in bfloat16, to choose candidates by: a fraction of the time where a processor multiplies it natively.

    What all have in common is taken off first, which changes no distance and leaves bfloat16's few digits to what
    differs.

    Attributes:
        centre: float32 (ck,).
        rows: bfloat16 (..., ck + 2): the key, then -|m|^2 / 2 in two parts that sum to it.
    """

    centre: Tensor
    rows: Tensor

    @classmethod
    def of(cls, keys: Tensor, centre: Tensor) -> RoughKeys:
        """Of keys (n, ck)."""
        keys = keys - centre
        length = -0.5 * keys.square().sum(1, keepdim=True)
        high = length.bfloat16()
        return cls(centre, torch.cat([keys.bfloat16(), high, (length - high).bfloat16()], 1))

    def similarity(self, query_key: Tensor) -> Tensor:
        """(q, ck) -> bfloat16 (q, n): <m, q> - |m|^2 / 2, which orders as :func:`similarity` does."""
        ones = query_key.new_ones(len(query_key), 2)
        return torch.cat([query_key - self.centre, ones], 1).bfloat16() @ self.rows.T


def attend(
    memory_key: Tensor,
    query_key: Tensor,
    top_k: int | None,
    *,
    rough: RoughKeys | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Attention:
    """Choose the stored positions that answer, and weight them by a softmax over their similarity.

    Args:
        memory_key: float32 (n, ck); n > 0.
        query_key: float32 (q, ck).
        top_k: how many answer; None or more than n: all.
        rough: the same memory keys, to choose candidates by; None: similarities are exact.
        chunk_bytes: the (q, n) similarities are made in pieces of at most this size.

    Gradients reach the keys through the weights of the chosen positions; the choice itself has none.
    """
    n = len(memory_key)
    rows = max(1, chunk_bytes // (n * memory_key.element_size()))
    length = squared_length(memory_key)
    pieces = [_attend(memory_key, length, part, top_k, rough) for part in query_key.split(rows)]
    chosen, weight, nearest = zip(*pieces, strict=True)
    index = None if chosen[0] is None else torch.cat(chosen)
    return Attention(index, torch.cat(weight), _explained(memory_key, length, query_key, torch.cat(nearest)))


def _attend(
    memory_key: Tensor, length: Tensor, query_key: Tensor, top_k: int | None, rough: RoughKeys | None
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Index and weight of :class:`Attention`, and the squared distance of the nearest key (q,), detached."""
    n, channels = memory_key.shape
    if top_k is None or top_k >= n:
        scores = similarity(memory_key, query_key, length)
        # the term that similarity leaves out turns the best score into a distance
        nearest = scores.detach().amax(1).neg() * math.sqrt(channels) + query_key.detach().square().sum(1)
        return None, scores.softmax(1), nearest
    with torch.no_grad():
        if rough is None:
            index = _largest(similarity(memory_key, query_key, length), top_k)
        else:
            index = _largest(rough.similarity(query_key), min(n, top_k + SPARE))
    # Distances are computed again for the chosen few: 20 subtractions are cheaper to differentiate than the whole
    # (q, n) product, and large keys do not cancel.
    near = F.embedding(index, memory_key)
    distance = (near - query_key[:, None]).square().sum(2)
    if rough is not None:
        distance, best = distance.topk(top_k, dim=1, largest=False, sorted=False)
        index = index.gather(1, best)
    weight = distance.mul(-1 / math.sqrt(channels)).softmax(1)
    return index, weight, distance.detach().amin(1)


def _largest(scores: Tensor, k: int) -> Tensor:
    """Return (q, k): where in each row of (q, n) its k largest are, in no order.

    They lie in the k groups with the largest maxima: above all that another group holds are k maxima. To find those
    groups and search only them is faster than to search everything.
    """
    q, n = scores.shape
    groups = n // GROUP
    if groups < 4 * k:
        return scores.topk(k, dim=1, sorted=False).indices
    # column i belongs to group i % groups: neighbours are compared with neighbours, which is fast
    best = scores[:, : GROUP * groups].view(q, GROUP, groups).amax(1).topk(k, dim=1, sorted=False).indices
    members = torch.arange(GROUP, device=scores.device) * groups
    rest = torch.arange(GROUP * groups, n, device=scores.device).expand(q, -1)
    candidates = torch.cat([(best[:, :, None] + members).flatten(1), rest], 1)
    chosen = scores.gather(1, candidates).topk(k, dim=1, sorted=False).indices
    return candidates.gather(1, chosen)


@torch.no_grad()
def _explained(memory_key: Tensor, length: Tensor, query_key: Tensor, nearest: Tensor) -> Tensor:
    """1 - nearest / average squared distance, per query: needs no scale, so it means the same for every network."""
    average = query_key.square().sum(1) - 2 * (query_key @ memory_key.mean(0)) + length.mean()
    return (1 - nearest / average.clamp(min=1e-12)).clamp(0, 1)


def gather(values: Tensor, attention: Attention) -> Tensor:
    """Return (k, q, cv): the weighted sum of the values (k, n, cv) that answer. In the values' dtype."""
    weight = attention.weight.to(values.dtype)
    if attention.index is None:
        return weight @ values
    return torch.stack(
        [F.embedding_bag(attention.index, rows, per_sample_weights=weight, mode="sum") for rows in values]
    )


def read(memory_key: Tensor, memory_value: Tensor, query_key: Tensor, top_k: int | None) -> Tensor:
    """Read the memory: :func:`attend`, then :func:`gather`.

    Args:
        memory_key: float32 (n, ck).
        memory_value: (k, n, cv).
        query_key: float32 (q, ck).
        top_k: how many stored positions answer a query; None: all.

    Returns:
        (k, q, cv), differentiable in all three.
    """
    return gather(memory_value, attend(memory_key, query_key, top_k))


def to_rows(maps: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, h w, c), positions in row-major order."""
    return maps.flatten(2).transpose(1, 2)


def to_map(rows: Tensor, height: int, width: int) -> Tensor:
    """(b, h w, c) -> (b, c, h, w); channels_last in memory, which is what convolutions like."""
    return rows.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class Memory:
    """Stored frames of one pass over a clip, in preallocated rows, bounded.

    Where the values are bfloat16 on a processor, answers are chosen by :class:`RoughKeys`.

    Annotated frames stay for ever. Up to ``budget`` others stay: the ``recent`` last ones, and of the rest those that
    spread most evenly over time. A *temporary* frame (the previous one) gives way to whatever is stored next.

    Args:
        budget: how many frames besides the annotated ones; at least 1.
        recent: how many of them are the latest; the rest spreads over time.
        expected: how many frames are likely to be stored in the end; more make it grow, which takes twice the room.
    """

    def __init__(self, budget: int = 32, recent: int = 8, *, expected: int = 2) -> None:
        self.budget = max(1, budget)
        self.recent = min(recent, self.budget // 2)
        self._expected = expected
        self._frames: list[int] = []
        self._annotated: list[bool] = []
        self._order: list[int] = []
        self._temporary: int | None = None
        self._stores = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._masks: Tensor | None = None
        self._rough: RoughKeys | None = None

    def __len__(self) -> int:
        """How many frames are stored."""
        return len(self._frames)

    @property
    def frames(self) -> list[int]:
        """Indices of the stored frames, ascending."""
        return sorted(self._frames)

    def append(
        self, frame: int, key: Tensor, value: Tensor, mask: Tensor, *, annotated: bool = False, temporary: bool = False
    ) -> None:
        """Store a frame.

        Args:
            frame: its index in the clip.
            key: float32 (hw, ck).
            value: (k, hw, cv).
            mask: (k, hw, 1), the share of target at every position.
            annotated: never forget it.
            temporary: forget it at the next store.
        """
        slot = self._slot(annotated)
        self._allocate(slot, key, value, mask)
        assert self._keys is not None and self._values is not None and self._masks is not None
        self._keys[slot].copy_(key)
        self._values[:, slot].copy_(value)
        self._masks[:, slot].copy_(mask)
        if self._rough is not None:
            self._rough.rows[slot].copy_(RoughKeys.of(key, self._rough.centre).rows)
        if slot == len(self._frames):
            self._frames.append(frame)
            self._annotated.append(annotated)
            self._order.append(self._stores)
        else:
            self._frames[slot], self._annotated[slot], self._order[slot] = frame, annotated, self._stores
        self._stores += 1
        self._temporary = slot if temporary else None

    def attend(self, query_key: Tensor, top_k: int | None, *, chunk_bytes: int = CHUNK_BYTES) -> Attention:
        """Attend to everything stored; ``query_key`` is float32 (q, ck). See :func:`attend`."""
        assert self._keys is not None, "nothing is stored"
        rough = self._rough
        if rough is not None:
            rough = RoughKeys(rough.centre, rough.rows[: len(self)].flatten(0, 1))
        keys = self._keys[: len(self)].flatten(0, 1)
        return attend(keys, query_key, top_k, rough=rough, chunk_bytes=chunk_bytes)

    def gather(self, attention: Attention) -> Tensor:
        """Return the values that answer, (k, q, cv)."""
        return gather(self._rows(self._values), attention)

    def gather_masks(self, attention: Attention) -> Tensor:
        """Return (k, q, 1): the same weighted sum over the stored masks, a coarse guess of where the target is."""
        return gather(self._rows(self._masks), attention)

    def _rows(self, stored: Tensor | None) -> Tensor:
        assert stored is not None, "nothing is stored"
        return stored[:, : len(self)].flatten(1, 2)

    def _slot(self, annotated: bool) -> int:
        """Where the next frame goes: over the temporary one, over the most dispensable one, or behind the last."""
        if self._temporary is not None:
            return self._temporary
        free = [i for i, kept in enumerate(self._annotated) if not kept]
        if annotated or len(free) < self.budget:
            return len(self)
        return _most_dispensable(self._frames, sorted(free, key=self._order.__getitem__)[: len(free) - self.recent])

    def _allocate(self, slot: int, key: Tensor, value: Tensor, mask: Tensor) -> None:
        capacity = 0 if self._keys is None else len(self._keys)
        if slot < capacity:
            return
        capacity = max(self._expected, slot + 1, capacity * 3 // 2)
        # all or nothing: where memory runs out in between, the store is repeated
        self._keys, self._values, self._masks, self._rough = (
            _grown(self._keys, (capacity, *key.shape), key, 0, slot),
            _grown(self._values, (len(value), capacity, *value.shape[1:]), value, 1, slot),
            _grown(self._masks, (len(mask), capacity, *mask.shape[1:]), mask, 1, slot),
            self._grown_rough(capacity, slot, key, value),
        )

    def _grown_rough(self, capacity: int, slot: int, key: Tensor, value: Tensor) -> RoughKeys | None:
        if value.dtype != torch.bfloat16 or value.device.type != "cpu":
            return None
        centre, old = (key.mean(0), None) if self._rough is None else (self._rough.centre, self._rough.rows)
        shape = (capacity, len(key), key.shape[1] + 2)
        return RoughKeys(centre, _grown(old, shape, key.new_empty(0, dtype=torch.bfloat16), 0, slot))


def _grown(old: Tensor | None, shape: Sequence[int], like: Tensor, dim: int, used: int) -> Tensor:
    new = like.new_empty(shape)
    if old is not None:
        new.narrow(dim, 0, used).copy_(old.narrow(dim, 0, used))
    return new


def _most_dispensable(frames: Sequence[int], candidates: Sequence[int]) -> int:
    """Of the candidate slots, the one whose stored neighbours in time are closest together.

    The earliest and the latest stored frame have a neighbour on one side only and count as far from the other.
    """
    by_time = sorted(range(len(frames)), key=frames.__getitem__)
    place = {slot: i for i, slot in enumerate(by_time)}

    def gap(slot: int) -> float:
        i = place[slot]
        if i in (0, len(by_time) - 1):
            return math.inf
        return frames[by_time[i + 1]] - frames[by_time[i - 1]]

    return min(candidates, key=gap)
