"""A clip as a memory network sees it: scaled down, padded, encoded frame by frame, and the way back.

Dimensions: t frames, k objects, H W the caller's pixels, h w the network's (scaled, then padded).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.progress import OnStep
from ciri.propagation.network import FrameFeatures, MemoryNetwork
from ciri.propagation.units import WorkUnits

#: The border is filled with the mean colour of ImageNet, which is 0 after normalisation: what published networks saw.
PADDING_COLOUR = (0.485, 0.456, 0.406)


class Geometry:
    """How frames of one size are brought to the network and masks back: scale first, then pad on all sides.

    Args:
        height, width: the caller's size.
        stride: sides are padded to a multiple of this; the larger half goes to the bottom and the right.
        short_side: frames whose shorter side is longer than this are scaled down to it; None: never.
        enlarge: frames whose shorter side is shorter are scaled up to it, by at most this.
    """

    def __init__(self, height: int, width: int, stride: int, short_side: int | None, *, enlarge: float = 1.0) -> None:
        self.size = (height, width)
        scale = min(enlarge, short_side / min(height, width)) if short_side else 1.0
        self.inner = (max(1, round(height * scale)), max(1, round(width * scale)))
        missing = [-side % stride for side in self.inner]
        self.top, self.left = (m // 2 for m in missing)
        self.outer = (self.inner[0] + missing[0], self.inner[1] + missing[1])

    def frames_in(self, frames: Tensor) -> Tensor:
        """(b, 3, H, W) -> (b, 3, h, w)."""
        frames = self._scale(frames)
        if self.outer == self.inner:
            return frames
        colour = frames.new_tensor(PADDING_COLOUR).view(1, 3, 1, 1)
        padded = colour.expand(len(frames), 3, *self.outer).clone()
        padded[..., self._rows, self._columns] = frames
        return padded

    def masks_in(self, masks: Tensor) -> Tensor:
        """(k, 1, H, W) -> (k, 1, h, w), padded with 0. A target too small to survive the scaling is kept visible."""
        scaled = self._scale(masks)
        for mask, small in zip(masks, scaled, strict=True):
            if small.max() <= 0.5 < mask.max():
                small.copy_(F.adaptive_max_pool2d(mask, self.inner))
        padded = scaled.new_zeros(len(masks), 1, *self.outer)
        padded[..., self._rows, self._columns] = scaled
        return padded

    def masks_out(self, probs: Tensor) -> Tensor:
        """(k, 1, h, w) -> (k, 1, H, W)."""
        inside = probs[..., self._rows, self._columns]
        if self.inner == self.size:
            return inside
        return F.interpolate(inside, size=self.size, mode="bilinear", align_corners=False)

    @property
    def _rows(self) -> slice:
        return slice(self.top, self.top + self.inner[0])

    @property
    def _columns(self) -> slice:
        return slice(self.left, self.left + self.inner[1])

    def _scale(self, images: Tensor) -> Tensor:
        if self.inner == self.size:
            return images
        return F.interpolate(images, size=self.inner, mode="bilinear", align_corners=False, antialias=True)


class FeatureCache:
    """Features of frames from call to call, bounded in bytes.

    Entries are named by the content of the frame and of the weights, so a hit is always right. What the current call
    has put in is never pushed out by the same call: a clip longer than the cache keeps its first frames, where plain
    least-recently-used would keep nothing of use.

    Args:
        capacity: bytes; 0 keeps nothing.

    Attributes:
        full: whether nothing more is kept until the next call.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[Hashable, tuple[int, FrameFeatures]] = OrderedDict()
        self._bytes = 0
        self._call = 0
        self.full = False

    def __deepcopy__(self, memo: object) -> FeatureCache:
        """A copy of a propagator starts empty: it is made to change its weights."""
        return FeatureCache(self.capacity)

    def __len__(self) -> int:
        return len(self._entries)

    def new_call(self) -> None:
        """Entries of earlier calls may be pushed out from now on."""
        self._call += 1
        self.full = False

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bytes = 0

    def give_way(self) -> None:
        """Forget everything and keep nothing until the next call: memory is short."""
        self.clear()
        self.full = True

    def get(self, name: Hashable) -> FrameFeatures | None:
        """The features stored under this name, if they are still there."""
        found = self._entries.pop(name, None)
        if found is None:
            return None
        self._entries[name] = (self._call, found[1])
        return found[1]

    def put(self, name: Hashable, features: FrameFeatures) -> None:
        """Store features if there is room or an earlier call's can go; those of the same name are replaced."""
        if self.full:
            return
        # frames that repeat are encoded together, before any of them is there to be found
        before = self._entries.pop(name, None)
        if before is not None:
            self._bytes -= before[1].nbytes()
        size = features.nbytes()
        while self._bytes + size > self.capacity:
            oldest = next(iter(self._entries), None)
            if oldest is None or self._entries[oldest][0] == self._call:
                self.full = True
                return
            self._bytes -= self._entries.pop(oldest)[1].nbytes()
        self._entries[name] = (self._call, features)
        self._bytes += size


class EncodedClip:
    """Frames of a clip with their features, encoded in batches when they are asked for.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1], anywhere.
        geometry: how to bring them to the network.
        network: the network, on ``device``.
        weights: names the network's weights, for the cache.
        cache: keeps features between calls.
        units: how many frames are encoded at once.
    """

    def __init__(
        self,
        frames: Tensor,
        geometry: Geometry,
        network: MemoryNetwork,
        *,
        device: torch.device,
        weights: Hashable,
        cache: FeatureCache,
        units: WorkUnits,
    ) -> None:
        self.frames, self.geometry, self.network = frames, geometry, network
        self.device, self._weights, self._cache, self._units = device, weights, cache, units
        self._ahead: dict[int, FrameFeatures] = {}
        self._last: tuple[list[int], Tensor] | None = None

    def frame(self, t: int) -> Tensor:
        """(1, 3, h, w)."""
        return self._load([t])

    def features(self, t: int, upcoming: Sequence[int] = ()) -> FrameFeatures:
        """Features of frame t; ``upcoming`` frames may be encoded along with it."""
        if t in self._ahead:
            return self._ahead.pop(t)
        name = self._name(t)
        found = self._cache.get(name)
        if found is not None:
            return found
        for u, one in self._units.run(partial(self._encode, t, upcoming)).items():
            self._cache.put(name if u == t else self._name(u), one)
            self._ahead[u] = one
        return self._ahead.pop(t)

    def encode_ahead(self, order: Sequence[int], on_step: OnStep) -> None:
        """Encode frames in this order, as many as the cache keeps."""
        for done, t in enumerate(order):
            if self._cache.full:
                return
            self.features(t, order[done + 1 :])
            on_step(done + 1, len(order))

    def _encode(self, t: int, upcoming: Sequence[int]) -> dict[int, FrameFeatures]:
        wanted = [t, *(u for u in upcoming[: self._units.frames - 1] if u not in self._ahead)]
        encoded = self.network.encode_key(self._load(wanted))
        if len(wanted) == 1:
            return {t: encoded}
        # copies of single frames: a slice would keep the whole batch alive in the cache
        return {u: _copy(encoded[i : i + 1]) for i, u in enumerate(wanted)}

    def _load(self, indices: list[int]) -> Tensor:
        """Frames at the network's size; the last ones are kept, as a frame's value is encoded after its key."""
        if self._last is None or self._last[0] != indices:
            frames = torch.stack([self.frames[i] for i in indices]).to(self.device, torch.float32)
            scaled = self.geometry.frames_in(frames).contiguous(memory_format=torch.channels_last)
            self._last = (indices, scaled)
        return self._last[1]

    def _name(self, t: int) -> Hashable:
        content = self.frames[t].detach().cpu().contiguous().numpy().tobytes()
        return (hashlib.blake2b(content, digest_size=16).digest(), self.geometry.inner, self._weights)


def _copy(features: FrameFeatures) -> FrameFeatures:
    return FrameFeatures(features.key.clone(), tuple(m.clone() for m in features.maps))
