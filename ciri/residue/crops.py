"""Where a residue detector looks: the target's boxes over a clip, the windows around them, and cutting them out.

Windows are whole pixels and are data: only the pixel values are ever differentiated. The rules that the paper leaves
open are those of the isotropic crop (a turning person changes the aspect of its box, which would distort template
and search differently) and of boxes that do not shrink onto what the tracker happens to see.

Dimensions: n crops, c channels, h w pixels of a frame, s pixels of a crop's side.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.errors import MaskError
from ciri.residue.base import Box

#: Side of the template window over the box's longer side.
TEMPLATE_FACTOR = 1.25
#: Side of the search window over the box's longer side (the paper's 2w x 2h).
SEARCH_FACTOR = 2.0
#: No side of a box is shorter than this share of the median of the sides so far, nor than so many pixels.
LEAST_OF_MEDIAN, LEAST_SIDE = 0.75, 16
#: What is kept per frame of a box that the mask no longer fills: a lost limb stays in view, a receding target shrinks.
KEPT_PER_FRAME = 0.95


def target_box(mask: Tensor, threshold: float = 0.5) -> Box | None:
    """Return the tight box of the pixels of a mask (1, H, W) or (H, W) above the threshold; None if there are none."""
    hit = mask.reshape(mask.shape[-2:]) > threshold
    rows, columns = (torch.nonzero(hit.any(axis)).flatten() for axis in (1, 0))
    if not len(rows):
        return None
    x, y = int(columns[0]), int(rows[0])
    return Box(x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1)


def share_of_box(mask: Tensor) -> float:
    """Return how much of its tight box a mask (1, H, W) fills, in (0, 1]; 1 for an empty one."""
    box = target_box(mask)
    return 1.0 if box is None else int((mask > 0.5).sum()) / (box.width * box.height)


def boxes_of_clip(masks: Tensor, first_mask: Tensor, first_index: int = 0) -> list[Box | None]:
    """Return where to look for the target in every frame, from the annotated frame outwards.

    Each box is that of the mask above 0.5, united with the box of the frame before, slightly shrunk and moved along
    with the centre; no side is shorter than 0.75 x the median of the sides so far or 16 px. A frame whose mask is
    empty gets the last box: an empty mask may be the tracker's mistake. Compute them once: boxes that follow a mask
    while it is being refined can hide the very residue that they should show.

    Args:
        masks: (T, 1, H, W) in [0, 1].
        first_mask: (1, H, W), the annotated mask, used for frame ``first_index``.
        first_index: 0..T-1.

    Returns:
        T boxes; None where no target was seen in the annotated frame nor in any frame from there to this one.
    """
    count = len(masks)
    boxes: list[Box | None] = [None] * count
    first = target_box(first_mask)
    boxes[first_index] = first
    for order in (range(first_index + 1, count), range(first_index - 1, -1, -1)):
        seen = kept = first
        # in order of size: sorted anew for every frame, the medians of a long clip take longer than all the rest
        sides: tuple[list[int], list[int]] = ([first.width], [first.height]) if first else ([], [])
        for t in order:
            now = target_box(masks[t])
            if now is not None:
                kept = _at_least(_united(now, seen, kept), sides)
                seen = now
                for known, side in zip(sides, now[2:], strict=True):
                    insort(known, side)
            boxes[t] = kept
    return boxes


def _united(now: Box, seen: Box | None, kept: Box | None) -> Box:
    """The smallest box around the present one and the kept one, which moves as the seen one did."""
    if seen is None or kept is None:
        return now
    shift = [b - a for a, b in zip(seen.centre, now.centre, strict=True)]
    low, high = [], []
    for axis in (0, 1):
        half = KEPT_PER_FRAME * kept[2 + axis] / 2
        centre = kept.centre[axis] + shift[axis]
        low.append(min(now[axis], math.floor(centre - half + 0.5)))
        high.append(max(now[axis] + now[2 + axis], math.floor(centre + half + 0.5)))
    return Box(low[0], low[1], high[0] - low[0], high[1] - low[1])


def _at_least(box: Box, sides: tuple[Sequence[int], Sequence[int]]) -> Box:
    """Widen a box that is too small beside the widths and heights so far, in order of size, about its centre."""
    least = [max(LEAST_SIDE, math.ceil(LEAST_OF_MEDIAN * _median(known))) if known else LEAST_SIDE for known in sides]
    return _around(box, max(box.width, least[0]), max(box.height, least[1]))


def _median(ordered: Sequence[int]) -> float:
    """The mean of the middle one or two of numbers that are in order."""
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _around(box: Box, width: int, height: int) -> Box:
    """The window of that size about a box's centre."""
    x = math.floor(box.x + box.width / 2 - width / 2 + 0.5)
    y = math.floor(box.y + box.height / 2 - height / 2 + 0.5)
    return Box(x, y, width, height)


def window_around(box: Box, factor: float, *, isotropic: bool = True) -> Box:
    """Return the window about a box, ``factor`` times its size.

    Args:
        isotropic: a square on the longer side; else the paper's f w x f h, which distorts when it is resized.
    """
    if isotropic:
        side = max(1, round(factor * max(box.width, box.height)))
        return _around(box, side, side)
    return _around(box, max(1, round(factor * box.width)), max(1, round(factor * box.height)))


def template_window(box: Box, *, isotropic: bool = True) -> Box:
    """Where the target's template is cut out of the annotated frame (paper: the box itself)."""
    return window_around(box, TEMPLATE_FACTOR if isotropic else 1.0, isotropic=isotropic)


def search_window(box: Box, *, isotropic: bool = True) -> Box:
    """Where residue is looked for: twice the box."""
    return window_around(box, SEARCH_FACTOR, isotropic=isotropic)


def crop(
    frames: Tensor, windows: Sequence[Box], size: int | tuple[int, int], fill: Tensor, *, antialias: bool = False
) -> Tensor:
    """Cut a window out of each frame and resize it: bilinear, half-pixel centres, no antialiasing unless asked for.

    Args:
        frames: floating (N, C, H, W); gradients flow to them.
        windows: N windows.
        size: side of the crops, or (height, width), in pixels.
        fill: (C,) colour of what is outside the frame.
        antialias: average over what a pixel of the crop covers where the window is more than twice as large.

    Returns:
        (N, C, height, width).

    Raises:
        MaskError: another number of windows than frames.
    """
    if len(frames) != len(windows):
        raise MaskError(f"{len(windows)} windows for {len(frames)} frames; give one window for each frame.")
    height, width = (size, size) if isinstance(size, int) else size
    fill = fill.to(frames)[:, None, None]
    crops = []
    for frame, window in zip(frames, windows, strict=True):
        finer = max(1, min(window.height // height, window.width // width)) if antialias else 1
        seen = _cut(frame, window, fill)[None]
        crops.append(F.interpolate(seen, (height * finer, width * finer), mode="bilinear", align_corners=False))
        if finer > 1:
            crops[-1] = F.avg_pool2d(crops[-1], finer)
    return torch.cat(crops)


def _cut(frame: Tensor, window: Box, fill: Tensor) -> Tensor:
    """The pixels of a window of a frame (C, H, W), and the fill (C, 1, 1) where it has none: (C, h, w)."""
    height, width = frame.shape[1:]
    top, bottom = max(window.y, 0), min(window.y + window.height, height)
    left, right = max(window.x, 0), min(window.x + window.width, width)
    if bottom - top == window.height and right - left == window.width:
        return frame[:, top:bottom, left:right]
    whole = fill.expand(-1, window.height, window.width).clone()
    if top < bottom and left < right:
        inside = slice(top - window.y, bottom - window.y), slice(left - window.x, right - window.x)
        whole[:, inside[0], inside[1]] = frame[:, top:bottom, left:right]
    return whole


def paste_map(response: Tensor, window: Box, size: tuple[int, int]) -> Tensor:
    """Put a map that is spread evenly over a window back into the frame.

    Args:
        response: (1, h, w).
        window: where it belongs.
        size: (H, W) of the frame.

    Returns:
        (1, H, W), 0 outside the window.
    """
    frame = response.new_zeros(1, *size)
    top, left = max(window.y, 0), max(window.x, 0)
    bottom, right = min(window.y + window.height, size[0]), min(window.x + window.width, size[1])
    if top >= bottom or left >= right:
        return frame
    whole = F.interpolate(
        response[None], (window.height, window.width), mode="bilinear", align_corners=False, antialias=True
    )[0]
    inside = whole[:, top - window.y : bottom - window.y, left - window.x : right - window.x]
    frame[:, top:bottom, left:right] = inside
    return frame
