"""The crop that follows the target: a window of one size for the clip, on a smooth path.

Dimensions: t frames, c channels, h w pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.errors import MaskError
from ciri.frames import PAINT, as_pair, extent

#: Standard deviation, in frames, of the smoothing of the window's path over time.
SMOOTHING = 4.0


@dataclass(frozen=True)
class CropTrack:
    """A window of constant size that follows the target through a clip.

    Attributes:
        size: (height, width) in pixels.
        corners: int64 (T, 2), top and left of the window in each frame; it is always inside the frame.
    """

    size: tuple[int, int]
    corners: Tensor

    def cut(self, clip: Tensor) -> Tensor:
        """Return (T, C, height, width), the window's content of a clip (T, C, H, W)."""
        h, w = self.size
        return torch.stack([f[:, y : y + h, x : x + w] for f, (y, x) in zip(clip, self.corners.tolist(), strict=True)])

    def at(self, frame: int) -> CropTrack:
        """The window of one frame, for a clip of that frame alone."""
        return CropTrack(self.size, self.corners[frame : frame + 1])

    def put(self, clip: Tensor, window: Tensor) -> None:
        """Write (T, C, height, width) into the clip (T, C, H, W), in place."""
        h, w = self.size
        for frame, content, (y, x) in zip(clip, window, self.corners.tolist(), strict=True):
            frame[:, y : y + h, x : x + w] = content


def target_boxes(masks: Tensor) -> Tensor:
    """Return int64 (T, 4), top left bottom right (half open) of what exceeds 0; -1 where nothing does."""
    boxes = torch.full((len(masks), 4), -1, dtype=torch.int64)
    for index, mask in enumerate(masks[:, 0]):
        hit = mask > 0
        if hit.any():
            rows, columns = extent(hit)
            boxes[index] = torch.tensor([rows.start, columns.start, rows.stop, columns.stop])
    return boxes


def follow_target(
    boxes: Tensor,
    frame_size: tuple[int, int],
    *,
    margin: float = 1.5,
    multiple: int | tuple[int, int] = 16,
    minimum: int | tuple[int, int] = 128,
    aspect: float | None = None,
) -> CropTrack:
    """Choose a window that follows the target smoothly: one size for the clip, always inside the frame.

    The window is at least ``margin`` times the target's largest box (or the whole frame where that is smaller), and
    it contains the target's box in every frame. Its path is the box centre smoothed over time; where the target is
    absent it glides between where it was and where it comes back.

    Args:
        boxes: int64 (T, 4), of :func:`target_boxes`.
        frame_size: (H, W) of the frames.
        margin: window size over the target's box size.
        multiple: the window's sides are multiples of this (one number, or one each) unless the frame is smaller.
        minimum: smallest side in pixels (one number, or height and width), unless the frame is smaller.
        aspect: height over width that the window gets by growing, as far as the frame allows; None = any.

    Raises:
        MaskError: no target in any frame.
    """
    frame_h, frame_w = frame_size
    seen = torch.nonzero(boxes[:, 0] >= 0).flatten()
    if not len(seen):
        raise MaskError("No frame shows a target, so there is nothing to follow. " + PAINT)
    sides = (boxes[seen, 2:] - boxes[seen, :2]).amax(0).tolist()

    least, units = as_pair(minimum), as_pair(multiple)
    wanted_h, wanted_w = (max(target * margin, low) for target, low in zip(sides, least, strict=True))
    if aspect is not None:
        wanted_h, wanted_w = max(wanted_h, wanted_w * aspect), max(wanted_w, wanted_h / aspect)

    def side(wanted: float, frame: int, unit: int) -> int:
        return min(math.ceil(wanted / unit) * unit, frame)

    size = (side(wanted_h, frame_h, units[0]), side(wanted_w, frame_w, units[1]))
    centres = (boxes[:, :2] + boxes[:, 2:]).float() / 2
    path = _smooth_over_time(_fill_gaps(centres, seen))
    half, limit = torch.tensor(size).float() / 2, torch.tensor([frame_h - size[0], frame_w - size[1]])
    corners = (path - half).round().long().clamp(min=torch.zeros(2, dtype=torch.int64), max=limit)
    # smoothing lags behind a fast target: the window must contain it all the same
    inside = boxes[seen]
    corners[seen] = torch.minimum(torch.maximum(corners[seen], inside[:, 2:] - torch.tensor(size)), inside[:, :2])
    return CropTrack(size, corners.clamp(min=torch.zeros(2, dtype=torch.int64), max=limit))


def _fill_gaps(values: Tensor, known: Tensor) -> Tensor:
    """Interpolate (T, 2) linearly in time between the known rows, constantly before the first and after the last."""
    index = torch.arange(len(values))
    after = torch.searchsorted(known, index).clamp(max=len(known) - 1)
    before = torch.searchsorted(known, index, right=True).sub(1).clamp(min=0)
    left, right = known[before], known[after]
    weight = ((index - left).float() / (right - left).clamp(min=1)).clamp(0, 1)[:, None]
    return torch.lerp(values[left], values[right], weight)


def _smooth_over_time(path: Tensor) -> Tensor:
    """Gaussian smoothing of (T, 2) over time; the ends are repeated."""
    if len(path) == 1:
        return path
    radius = math.ceil(3 * SMOOTHING)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / SMOOTHING) ** 2)
    padded = F.pad(path.T[None], (radius, radius), mode="replicate")
    return F.conv1d(padded, (kernel / kernel.sum()).expand(2, 1, -1), groups=2)[0].T
