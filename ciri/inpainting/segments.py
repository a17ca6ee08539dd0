"""Long clips in segments, so that memory does not grow with their length.

Each segment sees some of the clip on both sides of what it fills. On its left that part is filled already and stands
there as ordinary footage: what one segment made up, the next one takes over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from ciri.progress import OnStep, ignore, part

#: Share of a segment that only looks on, on each side.
CONTEXT = 0.25
#: A segment never has fewer frames than this: with less around it, a target hides the same background throughout.
FEWEST = 24


class Segment(NamedTuple):
    """Frames that are worked on together.

    Attributes:
        seen: frames that are looked at.
        filled: those of them that are filled.
    """

    seen: range
    filled: range


def segments(count: int, most: int) -> Iterator[Segment]:
    """Cut a clip of ``count`` frames into segments that see at most ``most`` frames; one, if they all fit."""
    if count <= most:
        yield Segment(range(count), range(count))
        return
    context = int(most * CONTEXT)
    step = most - 2 * context
    start = 0
    while start < count:
        # at either end of the clip there is no context to keep room for
        stop = start + step + (context if start == 0 else 0)
        if stop + context >= count:
            stop = count
        yield Segment(range(max(start - context, 0), min(stop + context, count)), range(start, stop))
        start = stop


def fill_in_segments(
    fill: Callable[[Tensor, Tensor, OnStep], Tensor],
    frames: Tensor,
    inactivation: Tensor,
    most: int,
    *,
    on_step: OnStep = ignore,
) -> Tensor:
    """Fill a clip segment by segment.

    Args:
        fill: fills a short clip (t, 3, H, W) given its inactivation map (t, 1, H, W).
        frames: float32 (T, 3, H, W) in [0, 1].
        inactivation: float32 (T, 1, H, W) in [0, 1].
        most: frames that ``fill`` is given at a time; clips up to that length go to it whole.
        on_step: progress callback; may raise to stop.

    Returns:
        float32 (T, 3, H, W) in [0, 1].
    """
    count = len(frames)
    if count <= most:
        return fill(frames, inactivation, on_step)
    result = frames.clone()
    for seen, filled in segments(count, most):
        window, hole = slice(seen.start, seen.stop), inactivation[seen.start : seen.stop].clone()
        hole[: filled.start - seen.start] = 0
        steps = part(on_step, filled.start / count, filled.stop / count)
        done = fill(result[window], hole, steps)
        result[filled.start : filled.stop] = done[filled.start - seen.start : filled.stop - seen.start]
    return result
