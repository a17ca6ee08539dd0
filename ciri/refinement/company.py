"""Whether what was found beside a mask keeps company with the target, or stays behind with the scene.

A detector goes by looks, so a post that is painted like the target answers as a left-over leg does. But a leg travels
with the target, and the post does not: followed along the optical flow, it comes away from the masks of the frames
before or after. What cannot be followed, or has no time to come away, gets the benefit of the doubt.

Dimensions: T frames, H W pixels, h w of the smaller frames that flow is computed on, n points.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ciri.flow.dis import neighbour_flow

#: Longer side of the frames that flow is computed on, in pixels.
WORKING_SIZE = 432
#: Frames that a point is followed in each direction, and points that are followed of each part.
FURTHEST, MOST_POINTS = 12, 300
#: A point comes away if it gets so much farther from the mask than it was: pixels, and share of the mask's size.
APART_BY, APART_BY_SHARE = 4.0, 0.1
#: A round trip along the flow may miss by so many pixels, and a point's colour may change by so much (mean of the
#: channels): flow that takes a thin fast leg for the wall behind it ends on the wall's colour.
ROUND_TRIP, COLOUR_CHANGE = 1.0, 0.06
#: What a neighbouring frame's mask covers, so far from its outside, belongs to the target whatever else it does.
INSIDE = 0.5
#: A part is the scene's if so many of its points come away.
MOST_APART = 0.5

Bools = np.ndarray
Floats = np.ndarray


class Company:
    """Follows parts of frames along the optical flow.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1], as filmed.
        masks: float32 (T, 1, H, W) in [0, 1], of the target.
    """

    def __init__(self, frames: Tensor, masks: Tensor) -> None:
        self.frames, self.masks = frames, masks
        height, width = frames.shape[2:]
        self.scale = min(1.0, WORKING_SIZE / max(height, width))
        self.size = (max(1, round(height * self.scale)), max(1, round(width * self.scale)))
        self._flows: dict[int, tuple[Floats, Floats]] = {}
        self._colours: dict[int, Floats] = {}
        self._distances: dict[int, Floats | None] = {}

    def staying_behind(self, t: int, added: Bools) -> Bools:
        """Return the connected parts of ``added`` that come away from the target, bool (H, W).

        Args:
            t: the frame.
            added: bool (H, W), beside its mask.
        """
        # of a long clip, only what this frame can reach is kept
        for kept in (self._flows, self._colours, self._distances):
            for index in [i for i in kept if abs(i - t) > FURTHEST]:
                del kept[index]
        count, labels = cv2.connectedComponents(added.astype(np.uint8), connectivity=8)
        scene = [label for label in range(1, count) if self._share_apart(t, labels == label) >= MOST_APART]
        return np.isin(labels, scene)

    def _share_apart(self, t: int, part: Bools) -> float:
        """The share of a part's points that come away from the mask, forwards or backwards."""
        rows, columns = np.nonzero(part)
        chosen = np.linspace(0, len(rows) - 1, min(len(rows), MOST_POINTS)).round().astype(int)
        # half-pixel centres
        points = (np.stack([columns[chosen], rows[chosen]], 1) + 0.5) * self.scale - 0.5
        near = self._distance(t)
        if near is None:
            return 0.0
        size = np.sqrt((near == 0).sum())
        limit = _at(near, points) + max(APART_BY, APART_BY_SHARE * size)
        colour = self._colour(t, points)
        apart, joined = np.zeros((2, len(points)), bool)
        for step in (1, -1):
            at, followed = points, np.ones(len(points), bool)
            for s in range(t, t + step * FURTHEST, step):
                if not 0 <= s + step < len(self.frames) or not followed.any():
                    break
                there, back = self._flow(s, s + step)
                move = np.stack([_at(there[0], at), _at(there[1], at)], 1)
                at = at + move
                missed = move + np.stack([_at(back[0], at), _at(back[1], at)], 1)
                inside = ((at >= 0) & (at <= np.array(self.size[::-1]) - 1)).all(1)
                changed = np.abs(self._colour(s + step, at) - colour).mean(0)
                followed = followed & inside & (np.linalg.norm(missed, axis=1) < ROUND_TRIP) & (changed < COLOUR_CHANGE)
                distance = self._distance(s + step)
                if distance is not None:
                    farther = _at(distance, at)
                    apart |= followed & (farther > limit)
                    joined |= followed & (farther < INSIDE)
        return float((apart & ~joined).mean())

    def _distance(self, t: int) -> Floats | None:
        """Distance in pixels of each pixel from the mask, float32 (h, w); None if the mask is empty."""
        if t not in self._distances:
            small = F.interpolate(self.masks[t : t + 1].float(), self.size, mode="area")[0, 0].numpy() > 0.5
            outside = (~small).astype(np.uint8)
            self._distances[t] = cv2.distanceTransform(outside, cv2.DIST_L2, 5) if small.any() else None
        return self._distances[t]

    def _colour(self, t: int, points: Floats) -> Floats:
        """Colours (3, n) of a frame at points (n, 2)."""
        if t not in self._colours:
            small = F.interpolate(self.frames[t : t + 1], self.size, mode="area")[0].numpy()
            self._colours[t] = np.stack([cv2.blur(channel, (3, 3)) for channel in small])
        return np.stack([_at(channel, points) for channel in self._colours[t]])

    def _flow(self, start: int, end: int) -> tuple[Floats, Floats]:
        """Flow from one frame to a neighbour, and back, float32 (2, h, w) each."""
        first = min(start, end)
        if first not in self._flows:
            pair = F.interpolate(self.frames[first : first + 2], self.size, mode="area")
            forward, backward = neighbour_flow(pair, preset="fast")
            self._flows[first] = forward[0].numpy(), backward[0].numpy()
        forward_flow, backward_flow = self._flows[first]
        return (forward_flow, backward_flow) if start < end else (backward_flow, forward_flow)


def _at(image: Floats, points: Floats) -> Floats:
    """Values (n,) of an image (h, w) at points (n, 2) of (x, y), bilinear."""
    x, y = (np.ascontiguousarray(points[:, axis], np.float32)[None] for axis in (0, 1))
    return cv2.remap(np.ascontiguousarray(image), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
