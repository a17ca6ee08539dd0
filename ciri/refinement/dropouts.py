"""Masks that drop out: a frame covers less of the target than the frames on both sides of it do.

Trackers lose a part for a few frames, and detectors that look at every frame for itself lose all of it in some. No
residue detector is needed to see that. Shapes only say where to look; a target that turns or hides covers less too, and
then the propagator finds nothing to add (:mod:`ciri.refinement.bridging`).

Dimensions: T frames, H W pixels, h w of smaller masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import pairwise

import cv2
import numpy as np
from torch import Tensor

#: Frames before and after that a mask is compared with; a dropout is no longer than this.
REACH = 5
#: A mask may have dropped out if it covers less than this share of the largest on each side, or if it came to cover
#: less than this share from one frame to the next, and then it or one that followed it came back the same way.
DROPPED_BELOW = 0.93
#: Side in pixels of a square as large as the target, in the small masks whose shapes are compared.
COMPARED_SIDE = 48
#: What is missing holds discs of this radius (share of that side), and these fill this share of the target:
#: a limb that swings, and the rim on which two masks never agree, are narrower.
DISC, MISSING = 0.06, 0.04
#: Two moves of a mask are as good as each other if their overlaps differ by less (rounding).
AS_GOOD = 1 - 1e-5

Bools = np.ndarray


def dropouts(masks: Tensor, fixed: Set[int] = frozenset()) -> list[int]:
    """Frames whose mask seems to lack a part that the nearest frames before and after have.

    Args:
        masks: float32 (T, 1, H, W) in [0, 1].
        fixed: frames whose masks are known to be right.
    """
    areas = (masks > 0.5).flatten(1).sum(1).tolist()
    last = len(areas) - 1
    smaller = {t for t in range(1, last) if _is_smaller(areas, t)} | _between_jumps(areas)
    # at the ends of a clip there is one side to compare with; whether the target enters or leaves the propagator tells
    smaller |= _cut_short(areas) | {last - t for t in _cut_short(areas[::-1])}
    smaller -= fixed
    found = []
    for t in sorted(smaller):
        before = [s for s in range(t - 1, max(t - REACH, 0) - 1, -1) if s not in smaller][:1]
        after = [s for s in range(t + 1, min(t + REACH, len(areas) - 1) + 1) if s not in smaller][:1]
        if before + after and all(_lacks(masks[t, 0], masks[s, 0]) for s in before + after):
            found.append(t)
    return found


def short_runs(frames: Iterable[int], longest: int = REACH) -> list[int]:
    """The frames that have no more than so many neighbours among them in a row."""
    return [t for run in runs(sorted(frames), 1) if len(run) <= longest for t in run]


def compact(added: Bools, area: float) -> float:
    """The share of a target's area that lies in discs inside ``added``."""
    radius = max(1, round(DISC * np.sqrt(area)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return float(cv2.morphologyEx(added.astype(np.uint8), cv2.MORPH_OPEN, disc).sum() / area)


def runs(frames: Sequence[int], gap: int) -> Iterator[list[int]]:
    """Sorted frames in groups whose members are no farther than ``gap`` apart."""
    ends = [i + 1 for i, (a, b) in enumerate(pairwise(frames)) if b - a > gap]
    for start, stop in pairwise([0, *ends, len(frames)]):
        if stop > start:
            yield list(frames[start:stop])


def _is_smaller(areas: Sequence[int], t: int) -> bool:
    """Whether a mask covers less than the largest before it, and than the largest after it."""
    before, after = max(areas[max(t - REACH, 0) : t]), max(areas[t + 1 : t + 1 + REACH])
    return areas[t] < DROPPED_BELOW * min(before, after)


def _between_jumps(areas: Sequence[int]) -> set[int]:
    """Frames from one where masks get smaller at once to one, not far off, where they get larger at once.

    A target that comes closer covers more all the time: without a part it may still cover more than it did before.
    """
    found: set[int] = set()
    for start in range(1, len(areas) - 1):
        if areas[start] < DROPPED_BELOW * areas[start - 1]:
            reach = range(start, min(start + REACH, len(areas) - 1))
            larger = [t + 1 for t in reach if areas[t] < DROPPED_BELOW * areas[t + 1]]
            # some of what came back is not all of it
            whole = [t for t in larger if areas[t] >= DROPPED_BELOW * areas[start - 1]]
            found.update(range(start, (whole[:1] or larger[-1:] or [start])[0]))
    return found


def _cut_short(areas: Sequence[int]) -> set[int]:
    """The last frames of a clip, if masks get smaller there from one frame to the next."""
    for t in range(max(1, len(areas) - REACH), len(areas)):
        if max(areas[t:]) < DROPPED_BELOW * areas[t - 1]:
            return set(range(t, len(areas)))
    return set()


def _lacks(mask: Tensor, other: Tensor) -> bool:
    """Whether another frame's mask, moved onto a mask (H, W each), covers a compact part more."""
    area = int((other > 0.5).sum())
    if area == 0:
        return False
    scale = min(1.0, COMPARED_SIDE / np.sqrt(area))
    small, larger = (_shrunk(x, scale) for x in (mask, other))
    missing = _moved_onto(larger, small) & (small <= 0.5)
    return compact(missing, scale * scale * area) > MISSING


def _shrunk(mask: Tensor, scale: float) -> np.ndarray:
    """A mask (H, W) as float32 (h, w)."""
    height, width = mask.shape
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize((mask > 0.5).float().cpu().numpy(), size, interpolation=cv2.INTER_AREA)


def _moved_onto(mask: np.ndarray, onto: np.ndarray) -> Bools:
    """Where a mask (h, w), not empty, lies after the move that makes it overlap another one most; bool (h, w)."""
    if not onto.any():
        return mask > 0.5
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    shape = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    high, wide = shape.shape
    room = np.pad(onto, ((high, high), (wide, wide)))
    overlap = cv2.matchTemplate(room, shape, cv2.TM_CCORR)
    # what lacks a part fits at many places alike; at the outermost of them the part is in one piece
    y, x = np.argwhere(overlap >= AS_GOOD * overlap.max())[0]
    moved = np.zeros_like(room)
    moved[y : y + high, x : x + wide] = shape
    return moved[high:-high, wide:-wide] > 0.5
