"""A memory network with nothing to train, and clips that it follows exactly: the engine's behaviour shows plainly."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciri.propagation.engine import MemoryPropagator
from ciri.propagation.network import FrameFeatures


class ColourNetwork(nn.Module):
    """Key: the cell's mean colour. Value: its share of target. Logit: of what memory answered, cell by cell."""

    name = "colour"
    stride = 4
    decode_margin: int | None = 0
    takes_hints = False

    def __init__(self, top_k: int | None = 4) -> None:
        super().__init__()
        self.top_k = top_k
        self.scale = nn.Parameter(torch.tensor(40.0))
        self.encoded: list[int] = []
        self.decoded: list[tuple[int, int]] = []

    def encode_key(self, frames: Tensor) -> FrameFeatures:
        self.encoded.append(len(frames))
        key = F.avg_pool2d(frames.to(self.scale.dtype), self.stride) * self.scale
        return FrameFeatures(key.float(), (frames.to(self.scale.dtype),))

    def encode_value(self, frame: Tensor, features: FrameFeatures, masks: Tensor, others: Tensor) -> Tensor:
        return F.avg_pool2d(masks.to(self.scale.dtype), self.stride)

    def decode(self, readout: Tensor, features: FrameFeatures, hints: Tensor | None = None) -> Tensor:
        self.decoded.append(tuple(readout.shape[-2:]))
        logits = readout.float().clamp(1e-4, 1 - 1e-4).logit()
        return F.interpolate(logits, scale_factor=self.stride, mode="nearest")

    def parameters_to_refine(self) -> list[nn.Parameter]:
        return [self.scale]

    def __deepcopy__(self, memo: object) -> ColourNetwork:
        twin = ColourNetwork(self.top_k)
        twin.scale.data.copy_(self.scale.data)
        twin.requires_grad_(self.scale.requires_grad)
        # counted together: the engine works on a copy
        twin.encoded, twin.decoded, twin.decode_margin = self.encoded, self.decoded, self.decode_margin
        return twin


def engine(**options: Any) -> MemoryPropagator:
    """The engine around a new network, in float32."""
    return MemoryPropagator(ColourNetwork(), **{"precision": "fp32", **options})


def moving_square(
    length: int,
    height: int = 48,
    width: int = 64,
    *,
    side: int = 12,
    colour: tuple[float, float, float] = (0.9, 0.1, 0.1),
) -> tuple[Tensor, Tensor]:
    """A square that moves four pixels a frame, back and forth, over a bluish ramp.

    Returns frames (T, 3, H, W) and masks (T, 1, H, W).
    """
    ramp = torch.linspace(0.3, 0.9, width).expand(height, width)
    background = torch.stack([0.1 * torch.ones_like(ramp), 0.2 * ramp, ramp])
    frames, masks = background.repeat(length, 1, 1, 1), torch.zeros(length, 1, height, width)
    top, reach = (height - side) // 8 * 4, (width - side) // 4
    for t in range(length):
        left = 4 * (reach - abs(t % (2 * reach) - reach))
        frames[t, :, top : top + side, left : left + side] = torch.tensor(colour)[:, None, None]
        masks[t, :, top : top + side, left : left + side] = 1
    return frames, masks


def overlap(probs: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union per frame, of (T, 1, H, W); 1 where both are empty."""
    got, want = (x.flatten(1) > 0.5 for x in (probs, masks))
    union = (got | want).sum(1)
    return torch.where(union > 0, (got & want).sum(1) / union.clamp(min=1), 1.0)
