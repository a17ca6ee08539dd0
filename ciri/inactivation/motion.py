"""What moves with the target, and where neighbouring frames' masks say it is.

Something else beside the target differs from what other frames show there just as the target does. What tells them
apart is how they move: along with the target, with the background, or on a way of their own. And what a mask misses in
one frame it mostly had in another, from which the motion that is seen carries it here.

Dimensions: t frames, h w pixels. Flows are (x, y) in pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.flow.dis import consistency, neighbour_flow, warp
from ciri.progress import OnStep, ignore

#: Share of what was carried to a frame that is carried on, beside that frame's own mask.
KEPT = 0.7
#: What is carried where the motion cannot be trusted: neither target nor background.
UNKNOWN = 0.5
#: Side in pixels of the square in which the target's motion is averaged: its parts move differently.
LOCAL = 61
#: Planes that :meth:`Motion.at` gives.
PLANES = 4


class Motion:
    """The motion seen in a clip, target and all, and the masks carried along it.

    Args:
        frames: float32 (T, 3, h, w) in [0, 1], on the CPU.
        predicted: float32 (T, 1, h, w) in [0, 1], M_pred.
        on_step: progress callback; may raise to stop.

    Attributes:
        forward, backward: as :func:`ciri.flow.dis.neighbour_flow` gives them.
    """

    def __init__(self, frames: Tensor, predicted: Tensor, *, on_step: OnStep = ignore) -> None:
        self.predicted = predicted
        self.forward, self.backward = neighbour_flow(frames, on_step=on_step)
        self._earlier = carried(predicted, self.backward, self.forward)
        self._later = carried(predicted.flip(0), self.forward.flip(0), self.backward.flip(0)).flip(0)

    def at(self, t: int, forward: Tensor, backward: Tensor) -> Tensor:
        """Return float32 (4, h, w) in [0, 1] for one frame.

        The masks of earlier and of later frames, carried here, 0.5 = unknown; then how differently from the background
        each pixel moves, and how differently from the target around it, 0 = alike, 0.5 = by one pixel a frame.

        Args:
            t: the frame.
            forward, backward: float32 (T-1, 2, h, w), the flow of the background.
        """
        mask = (self.predicted[t, 0] > 0.5).float().numpy()
        apart, unlike = torch.zeros(mask.shape), torch.zeros(mask.shape)
        pairs = [(self.forward, forward, t)] if t < len(forward) else []
        pairs += [(self.backward, backward, t - 1)] if t > 0 else []
        for seen, background, pair in pairs:
            apart += _length(seen[pair] - background[pair]) / len(pairs)
            if mask.any():
                unlike += _length(seen[pair] - _local_mean(seen[pair], mask)) / len(pairs)
        return torch.cat([self._earlier[t], self._later[t], *((x / (1 + x))[None] for x in (apart, unlike))])


def carried(masks: Tensor, back: Tensor, forth: Tensor) -> Tensor:
    """Masks of earlier frames at each frame's time, the nearer ones counting more: float32 (T, 1, h, w) in [0, 1].

    Args:
        masks: float32 (T, 1, h, w) in [0, 1].
        back, forth: float32 (T-1, 2, h, w), the flow of each frame from the second on to the one before, and its
            inverse.
    """
    result = torch.full_like(masks, UNKNOWN)
    for t in range(1, len(masks)):
        flow, inverse = back[t - 1 : t], forth[t - 1 : t]
        memory = masks[:1] if t == 1 else torch.lerp(masks[t - 1 : t], result[t - 1 : t], KEPT)
        result[t] = torch.lerp(result[t], warp(memory, flow)[0], consistency(flow, inverse)[0])
    return result


def _local_mean(flow: Tensor, mask: np.ndarray) -> Tensor:
    """The mean flow (2, h, w) of the mask's pixels around each pixel; of the whole mask where none is near."""
    whole = flow[:, torch.from_numpy(mask) > 0].mean(1)
    weight = cv2.blur(mask, (LOCAL, LOCAL), borderType=cv2.BORDER_CONSTANT)
    means = []
    for component, mean in zip(flow.numpy(), whole, strict=True):
        total = cv2.blur(component * mask, (LOCAL, LOCAL), borderType=cv2.BORDER_CONSTANT)
        means.append(np.where(weight > 1e-4, total / np.maximum(weight, 1e-4), float(mean)))
    return torch.from_numpy(np.stack(means).astype(np.float32))


def _length(flow: Tensor) -> Tensor:
    """(2, h, w) to (h, w)."""
    return flow.square().sum(0).sqrt()
