"""PSNR and SSIM near the target and away from it (the paper's Table 1, "Local").

The paper says only that local numbers are taken over the target regions. Two readings are computed: over the tight
bounding box of the true mask ("box", the one to compare with Table 1: SSIM and I3D need rectangles) and over the
mask's own pixels ("mask"). Regions always come from the true masks, never from predicted ones. "Outside" is what a
removal should not have touched: everything beyond the mask dilated by 8 pixels.

Dimensions: t frames, h w pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ciri.errors import MaskError
from ciri.metrics.similarity import WINDOWS, check_pair, psnr_of, ssim_map, ssim_of, to_pictures
from ciri.progress import OnStep, ignore

#: Boxes with a shorter side are grown to this: smaller ones leave SSIM nothing to look at.
LEAST_SIDE = 11
#: "Outside" begins this many pixels away from the target.
OUTSIDE_MARGIN = 8
#: Side of the crops that local VFID looks at.
CROP_SIDE = 224


@dataclass(frozen=True)
class Box:
    """A rectangle of a frame: left, top, width and height in pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


@dataclass(frozen=True)
class LocalScores:
    """Local numbers of every frame, float64 (T,); not-a-number where a frame shows no target.

    Attributes:
        psnr_box, ssim_box: over the box; SSIM with the 65-pixel window, or the largest odd one that fits the box.
        ssim7_box: over the box, 7-pixel window.
        psnr_mask: over the mask's pixels.
        ssim7_mask, ssim65_mask: mean of the SSIM map over the mask's pixels.
        psnr_outside: beyond the dilated mask; of frames without a target, over the whole frame.
        share_mask, share_box: how much of the frame each covers.
    """

    psnr_box: Tensor
    ssim_box: Tensor
    ssim7_box: Tensor
    psnr_mask: Tensor
    ssim7_mask: Tensor
    ssim65_mask: Tensor
    psnr_outside: Tensor
    share_mask: Tensor
    share_box: Tensor


def local_scores(result: Tensor, clean: Tensor, masks: Tensor, *, on_step: OnStep = ignore) -> LocalScores:
    """Score a clip near the target and away from it.

    Args:
        result, clean: floating (T, 3, H, W) in [0, 1].
        masks: floating in [0, 1] or bool (T, 1, H, W), the true target; above 0.5 is target.
        on_step: called after each frame; may raise to stop.

    Raises:
        ClipError: the clips cannot be compared.
        MaskError: the masks are not the clip's.
    """
    check_pair(result, clean)
    targets = to_targets(masks, result)
    rows = []
    for t, (a, b, target) in enumerate(zip(to_pictures(result), to_pictures(clean), targets, strict=True)):
        rows.append(_of_frame(a, b, target))
        on_step(t + 1, len(targets))
    return LocalScores(*torch.tensor(rows, dtype=torch.float64).unbind(1))


def _of_frame(result: NDArray[np.float64], clean: NDArray[np.float64], target: NDArray[np.bool_]) -> tuple[float, ...]:
    """The nine numbers of :class:`LocalScores`, in its order."""
    away = ~dilated(target, OUTSIDE_MARGIN)
    outside = psnr_of(result[away], clean[away])
    box = bounding_box(target)
    if box is None:
        return (*[math.nan] * 6, outside, math.nan, math.nan)
    inside_a, inside_b = result[box.slices], clean[box.slices]
    wide, narrow = WINDOWS["ssim65"], WINDOWS["ssim7"]
    return (
        psnr_of(inside_a, inside_b),
        ssim_of(inside_a, inside_b, wide),
        ssim_of(inside_a, inside_b, narrow),
        psnr_of(result[target], clean[target]),
        float(ssim_map(result, clean, narrow)[target].mean()),
        float(ssim_map(result, clean, wide)[target].mean()),
        outside,
        float(target.mean()),
        box.width * box.height / target.size,
    )


def to_targets(masks: Tensor, clip: Tensor) -> NDArray[np.bool_]:
    """Masks of a clip (T, C, H, W) as bool (T, H, W).

    Raises:
        MaskError: another count or size than the clip's.
    """
    if masks.shape != (len(clip), 1, *clip.shape[2:]):
        raise MaskError(
            f"The masks have shape {tuple(masks.shape)}; expected {(len(clip), 1, *clip.shape[2:])}, one per frame."
        )
    hard = masks if masks.dtype == torch.bool else masks > 0.5
    return hard[:, 0].cpu().numpy()


def bounding_box(target: NDArray[np.bool_]) -> Box | None:
    """The tight box of an (H, W) mask, sides grown to :data:`LEAST_SIDE` where the frame allows; None if empty."""
    rows, columns = np.flatnonzero(target.any(1)), np.flatnonzero(target.any(0))
    if not len(rows):
        return None
    y, height = _grown(int(rows[0]), int(rows[-1]) + 1, target.shape[0])
    x, width = _grown(int(columns[0]), int(columns[-1]) + 1, target.shape[1])
    return Box(x, y, width, height)


def _grown(start: int, end: int, limit: int) -> tuple[int, int]:
    """Start and length of one side, grown to the least length: half the lack before it, clamped to the frame."""
    lack = LEAST_SIDE - (end - start)
    if lack <= 0:
        return start, end - start
    length = min(LEAST_SIDE, limit)
    return min(max(start - lack // 2, 0), limit - length), length


def dilated(target: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """An (H, W) mask grown by a square of the given half-side."""
    if not target.any():
        return target
    square = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return cv2.dilate(target.astype(np.uint8), square) > 0


def target_crops(clip: Tensor, masks: Tensor) -> Tensor:
    """The boxes of the frames that show a target, resized: float32 (T', 3, 224, 224), for local VFID.

    Args:
        clip: floating (T, 3, H, W) in [0, 1].
        masks: (T, 1, H, W), the true target.
    """
    boxes = [bounding_box(target) for target in to_targets(masks, clip)]
    crops = [
        frame[(slice(None), *box.slices)][None]
        for frame, box in zip(clip.float(), boxes, strict=True)
        if box is not None
    ]
    size = (CROP_SIDE, CROP_SIDE)
    if not crops:
        return clip.new_zeros(0, 3, *size)
    return torch.cat([F.interpolate(c, size, mode="bilinear", align_corners=False, antialias=True) for c in crops])
