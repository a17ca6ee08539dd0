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

from ciri.flow.dis import consistency, neighbour_flow

#: Thumbnails, (rows, columns): what moves within a shot changes them little.
THUMBNAIL = (12, 16)
#: A cut is only sought where their mean difference is this large, and this many times what is usual in the clip ...
DIFFERENCE, RATIO = 0.06, 3.0
#: ... and it is one if no more than this share of the picture is found again by optical flow, there and back, on
#: pictures with sides of so many pixels at most: a fast pan, or a target that fills the picture, is found.
#: (Measured: at most 0.32 between unrelated shots, at least 0.45 within blurred, shaken ones.)
FOUND_AGAIN, SIDE = 0.33, 160
#: Frames whose thumbnail varies less than this show nothing: black ones between shots, say. Flow finds nothing wrong
#: there, so it is asked only whether anything changed at all.
BLANK, CHANGED = 0.01, 0.02
#: A shot that goes on after so many frames of something else is one shot.
INTERRUPTION = 12


def find_cuts(frames: Tensor) -> list[int]:
    """Return the frames that begin a new shot, and those that begin or end a blank stretch.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
    """
    if len(frames) < 2:
        return []
    small = torch.cat([F.adaptive_avg_pool2d(frame[None], THUMBNAIL) for frame in frames])
    difference = (small[1:] - small[:-1]).abs().mean((1, 2, 3))
    # in a clip of two or three frames the cut itself is what is usual
    usual = float(difference.median()) if len(frames) > 3 else 0.0
    blank = small.flatten(2).std(2).amax(1) < BLANK
    cuts = []
    for t, change in enumerate(difference.tolist(), 1):
        if bool(blank[t]) != bool(blank[t - 1]):
            if change > CHANGED:
                cuts.append(t)
        elif change > max(DIFFERENCE, RATIO * usual) and not _is_found_again(frames[t - 1], frames[t]):
            cuts.append(t)
    return cuts


def shots(frames: Tensor) -> list[list[int]]:
    """Return the frames of every shot, in order; one that is interrupted for a moment is one shot.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
    """
    edges = [0, *find_cuts(frames), len(frames)]
    found: list[list[int]] = []
    for start, stop in pairwise(edges):
        near = [shot for shot in found[:-1] if start - shot[-1] <= INTERRUPTION + 1]
        same = [shot for shot in near if _goes_on(frames[shot[-1]], frames[start])]
        if same:
            same[-1].extend(range(start, stop))
        else:
            found.append(list(range(start, stop)))
    return found


def _goes_on(first: Tensor, second: Tensor) -> bool:
    """Whether two frames (3, H, W) that do not follow each other are of one shot."""
    return not find_cuts(torch.stack([first, second]))


def _is_found_again(first: Tensor, second: Tensor) -> bool:
    """Whether optical flow finds enough of a frame (3, H, W) in another."""
    scale = min(1.0, SIDE / max(first.shape[1:]))
    size = [max(1, round(side * scale)) for side in first.shape[1:]]
    pair = F.interpolate(torch.stack([first, second]).float().cpu(), size, mode="area")
    forward, backward = neighbour_flow(pair)
    return float((consistency(forward, backward) > 0).float().mean()) > FOUND_AGAIN
