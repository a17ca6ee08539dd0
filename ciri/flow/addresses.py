"""Where hidden pixels come from: addresses in other frames, and what is found there.

Dimensions: t frames, n covered pixels of one frame, h w pixels. Positions and flows are (x, y) in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ciri.flow.sampling import PixelTable

#: A bilinear sample counts if at least this share of it is made of visible pixels.
SMALLEST_SHARE = 0.05


@dataclass
class Addresses:
    """Where n pixels of one frame come from.

    Attributes:
        frame: int64 (n,), the source frame; -1 where there is none.
        position: float32 (n, 2), (x, y) in the source frame.
        error: float32 (n,), how far the way there may have gone astray, in pixels.
    """

    frame: Tensor
    position: Tensor
    error: Tensor

    @classmethod
    def nowhere(cls, n: int) -> Addresses:
        """Addresses of n pixels without a source."""
        return cls(torch.full((n,), -1), torch.zeros(n, 2), torch.zeros(n))

    @classmethod
    def own(cls, frame: int, visible: Tensor) -> Addresses:
        """Addresses of all pixels of a frame: itself where ``visible`` (H, W), else nowhere."""
        h, w = visible.shape
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        where = torch.where(visible, frame, -1).flatten()
        return cls(where, torch.stack([x, y], -1).reshape(-1, 2).float(), torch.zeros(h * w))

    def put(self, index: Tensor, other: Addresses) -> None:
        """Overwrite the addresses at ``index``, in place."""
        self.frame[index], self.position[index], self.error[index] = other.frame, other.position, other.error


@dataclass
class Copied:
    """Pixels of one frame as another frame shows them, as dense pictures.

    Attributes:
        colours: float32 (3, H, W); 0 where nothing was found.
        distance: float32 (1, H, W), in frames; 0 where nothing was found.
        trust: float32 (1, H, W) in [0, 1]; 0 where nothing was found.
    """

    colours: Tensor
    distance: Tensor
    trust: Tensor

    @property
    def valid(self) -> Tensor:
        """bool (1, H, W), where a source was found."""
        return self.distance > 0


@dataclass
class Candidates:
    """What a clip knows about its own hidden pixels.

    Held sparsely: memory grows with the number of covered pixels, not with the number of pixels.

    Attributes:
        frames: float32 (T, 3, H, W), the input, on the CPU.
        visible: bool (T, H, W), pixels that do not show the target.
        table: the visible pixels, to be sampled; filling adds synthesised pixels to it.
        covered: per frame, int64 (n,), flat indices of the pixels that are to be filled.
        before: per frame, their sources in the past.
        after: per frame, their sources in the future.
        forward: float32 (T-1, 2, H, W), completed flow t -> t + 1.
        backward: float32 (T-1, 2, H, W), completed flow t + 1 -> t.
    """

    frames: Tensor
    visible: Tensor
    table: PixelTable
    covered: list[Tensor]
    before: list[Addresses]
    after: list[Addresses]
    forward: Tensor
    backward: Tensor

    def picture(self, t: int) -> Tensor:
        """Return a copy of frame t (3, H, W), row after row in memory, however the clip lies there."""
        return self.frames[t].clone(memory_format=torch.contiguous_format)

    def copied(self, t: int, side: str) -> Copied:
        """Return what the past (``side`` = "before") or the future ("after") shows of frame t's covered pixels."""
        source = (self.before if side == "before" else self.after)[t]
        h, w = self.frames.shape[2:]
        sampled, weight = self.blend(t, [source])
        found = weight > 0
        index = self.covered[t][found]
        colours, distance, trust = torch.zeros(3, h * w), torch.zeros(1, h * w), torch.zeros(1, h * w)
        colours[:, index] = sampled[found].T
        distance[0, index] = (source.frame[found] - t).abs().float()
        trust[0, index] = trust_of(source)[found]
        return Copied(colours.reshape(3, h, w), distance.reshape(1, h, w), trust.reshape(1, h, w))

    def blend(self, t: int, sources: list[Addresses]) -> tuple[Tensor, Tensor]:
        """Return colours (n, 3) for frame t's covered pixels, blended from sources, and total weights (n,)."""
        total = torch.zeros(len(self.covered[t]))
        colours = torch.zeros(len(total), 3)
        for source in sources:
            sampled, share = self.table.sample(source.frame, source.position)
            weight = weight_of(source, t) * (share > SMALLEST_SHARE)
            colours += weight[:, None] * sampled
            total += weight
        return colours / total.clamp(min=1e-12)[:, None], total


def cues_of(before: Copied, after: Copied) -> Tensor:
    """Return trust in either copy, then 1 / distance of either: float32 (4, H, W) in [0, 1], 0 where there is none."""
    nearness = [copy.valid / copy.distance.clamp(min=1) for copy in (before, after)]
    return torch.cat([before.trust, after.trust, *nearness])


def trust_of(source: Addresses) -> Tensor:
    """Return float32 (n,) in [0, 1]: how likely the address is right, from how far it may have gone astray."""
    return torch.where(source.frame >= 0, 1 / (1 + source.error.square()), torch.zeros(()))


def weight_of(source: Addresses, t: int) -> Tensor:
    """Return float32 (n,), a source's say in the blend for frame t: by trust, and inversely by distance."""
    return trust_of(source) / (source.frame - t).abs().clamp(min=1)
