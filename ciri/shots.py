"""Where a clip was cut, and which frames belong to one shot.

What lies behind the target in one shot is nowhere in another. Optical flow across a cut is nonsense, yet smooth where
it was completed, so nothing later can tell.

Dimensions: T frames, H W pixels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.flow.dis import consistency, neighbour_flow, warp
from ciri.progress import OnStep, ignore

#: Thumbnails, (rows, columns): what moves within a shot changes them little.
THUMBNAIL = (12, 16)
#: Frames are thinned out to about so many rows before that: all pixels of large ones would take long.
ROWS = 240
#: A cut is only sought where their mean difference is this large, and this many times what is usual in the clip ...
DIFFERENCE, RATIO = 0.06, 3.0
#: ... and it is one if no more than this share of the picture is found again by optical flow, on pictures with sides of
#: so many pixels at most: a fast pan, or a target that fills the picture, is. Found is what there and back lead to one
#: place, with colours that differ by no more than this (pictures brought to mean 0 and deviation 1, so that a flash
#: matters less).
FOUND_AGAIN, SIDE, ALIKE = 0.2, 160, 0.5
#: Frames whose thumbnail varies less than this show nothing: black ones between shots, say. Flow finds nothing wrong
#: there, so it is asked only whether anything changed at all. Rows and columns that never show anything are bars.
BLANK, CHANGED = 0.01, 0.02
#: A shot that goes on after so many frames of something else is one shot.
INTERRUPTION = 12


def find_cuts(frames: Tensor, *, on_step: OnStep = ignore) -> list[int]:
    """Return the frames that begin a new shot, and those that begin or end a blank stretch.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        on_step: progress callback, told of nothing done; may raise to stop.
    """
    if len(frames) < 2:
        return []
    small = _without_bars(thumbnails(frames, on_step))
    difference = (small[1:] - small[:-1]).abs().mean((1, 2, 3))
    # in a clip of two or three frames the cut itself is what is usual
    usual = float(difference.median()) if len(frames) > 3 else 0.0
    blank = small.flatten(2).std(2, correction=0).amax(1) < BLANK
    cuts = []
    for t, change in enumerate(difference.tolist(), 1):
        if bool(blank[t]) != bool(blank[t - 1]):
            if change > CHANGED:
                cuts.append(t)
        elif change > max(DIFFERENCE, RATIO * usual) and not _is_found_again(frames[t - 1], frames[t]):
            cuts.append(t)
    return cuts


def shots(frames: Tensor, *, on_step: OnStep = ignore) -> list[list[int]]:
    """Return the frames of every shot, in order; one that is interrupted for a moment is one shot.

    Args:
        frames, on_step: as in :func:`find_cuts`.
    """
    edges = [0, *find_cuts(frames, on_step=on_step), len(frames)]
    found: list[list[int]] = []
    for start, stop in pairwise(edges):
        same = [shot for shot in found if 1 < start - shot[-1] <= INTERRUPTION + 1]
        same = [shot for shot in same if _goes_on(frames[shot[-1]], frames[start])]
        if same:
            same[-1].extend(range(start, stop))
        else:
            found.append(list(range(start, stop)))
    return found


def in_place(at: list[int]) -> slice | list[int]:
    """An index of frames, as a slice where they follow each other: that is a view, and no copy of a clip."""
    return slice(at[0], at[-1] + 1) if at[-1] - at[0] < len(at) else at


def _goes_on(first: Tensor, second: Tensor) -> bool:
    """Whether two frames (3, H, W) that do not follow each other are of one shot."""
    return not find_cuts(torch.stack([first, second]))


def thumbnails(frames: Tensor, on_step: OnStep = ignore) -> Tensor:
    """Return frames (T, 3, H, W) as thumbnails, float32 (T, 3, h, w) of :data:`THUMBNAIL`."""
    step = max(1, min(frames.shape[2:]) // ROWS)
    found = []
    for frame in frames:
        on_step(0, 1)
        found.append(F.adaptive_avg_pool2d(frame[None, :, ::step, ::step].float(), THUMBNAIL))
    return torch.cat(found)


def _without_bars(pictures: Tensor) -> Tensor:
    """Pictures (T, 3, h, w) without the rows and columns at their edges in which no picture shows anything."""
    sides = []
    for along, across in ((3, 2), (2, 3)):
        shown = (pictures.std(along, correction=0) > BLANK).flatten(0, 1).any(0)
        at = torch.nonzero(shown).flatten()
        length = pictures.shape[across]
        sides.append(slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, length))
    return pictures[..., sides[0], sides[1]]


def _is_found_again(first: Tensor, second: Tensor) -> bool:
    """Whether optical flow finds enough of a frame (3, H, W) in another, and it looks alike there."""
    pair, there, found = found_again(first, second)
    both = torch.cat([pair, there])
    mean, deviation = both.mean((1, 2, 3), keepdim=True), pair.std((1, 2, 3), keepdim=True, correction=0)
    here, _, there = ((both - mean[[0, 1, 1]]) / deviation[[0, 1, 1]].clamp(min=BLANK)).split(1)
    alike = (here - there).abs().mean(1, keepdim=True) < ALIKE
    return float((found & alike).float().mean()) > FOUND_AGAIN


def found_again(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Look for the places of one frame in another, on small pictures without bars.

    Args:
        first, second: float32 (3, H, W) in [0, 1].

    Returns:
        Both pictures, float32 (2, 3, h, w); the second one as the first sees it, (1, 3, h, w); where there and back
        lead to one place, bool (1, 1, h, w). All on the CPU.
    """
    scale = min(1.0, SIDE / max(first.shape[1:]))
    size = [max(1, round(side * scale)) for side in first.shape[1:]]
    pair = _without_bars(F.interpolate(torch.stack([first, second]).float().cpu(), size, mode="area")).contiguous()
    forward, backward = neighbour_flow(pair)
    return pair, warp(pair[1:], forward), consistency(forward, backward) > 0
