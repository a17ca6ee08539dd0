"""Bringing into agreement what the past and the future show behind the target.

The two were found along different ways, each a little astray: laid over each other they blur, and where one takes over
from the other there is a step. Optical flow between the two pictures says how far they lie apart, and each is moved
towards the other, by the more the less it counts. What remains is the mean of two errors instead of both; and where
something moves behind the target, both show it where it is in between.

Dimensions: n covered pixels of one frame, h w pixels. Positions and flows are (x, y) in pixels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.flow.addresses import SMALLEST_SHARE, Addresses, Candidates, weight_of
from ciri.flow.dis import close_engine, grey
from ciri.parallel import both
from ciri.progress import OnStep, ignore

#: Pixels around what is covered that the pictures hold: there they are the same, which holds the flow at zero.
RIM = 16
#: Standard deviation, in pixels, by which the flow is smoothed: ways go astray together, single pixels do not.
SMOOTH = 3.0
#: Fewest pixels that both sides have to show for their flow to say anything.
FEWEST = 50


def agree(candidates: Candidates, *, on_step: OnStep = ignore) -> None:
    """Move the sources before and after towards each other, where a pixel has both; in place.

    Args:
        candidates: as :func:`ciri.flow.propagate.propagate_pixels` finds them.
        on_step: called for every second frame; may raise to stop.
    """
    count = len(candidates.covered)

    def half(start: int, on_step: OnStep) -> None:
        engine, frames = close_engine(), range(start, count, 2)
        for done, t in enumerate(frames):
            _agree(candidates, t, engine)
            on_step(done + 1, len(frames))

    both(partial(half, 0), partial(half, 1), on_step)


def _agree(candidates: Candidates, t: int, engine: Any) -> None:
    """Do it for one frame."""
    index, before, after = candidates.covered[t], candidates.before[t], candidates.after[t]
    samples, usable = zip(*(_look(candidates, source) for source in (before, after)), strict=True)
    shared = usable[0] & usable[1]
    if int(shared.sum()) < FEWEST:
        return
    width = candidates.frames.shape[3]
    y, x = index // width, index % width
    rows, columns = (slice(max(int(p.min()) - RIM, 0), int(p.max()) + 1 + RIM) for p in (y, x))
    # what one side alone shows is put into both pictures, so that nothing moves there
    alone = torch.where(usable[0][:, None], samples[0], samples[1]) * (usable[0] | usable[1])[:, None]
    pictures = []
    for colours in samples:
        picture = candidates.picture(t)
        picture.view(3, -1)[:, index] = torch.where(shared[:, None], colours, alone).T
        pictures.append(grey(picture[:, rows, columns]))
    flow = cv2.GaussianBlur(engine.calc(*pictures, None), (0, 0), SMOOTH)
    weights = [weight_of(source, t) for source in (before, after)]
    later = _spread(weights[1] / (weights[0] + weights[1]), shared, (y - rows.start, x - columns.start), flow.shape[:2])
    apart = torch.from_numpy(flow)[y - rows.start, x - columns.start][shared]
    _move(candidates, before, shared, -later[:, None] * apart)
    _move(candidates, after, shared, (1 - later)[:, None] * apart)


def _look(candidates: Candidates, source: Addresses) -> tuple[Tensor, Tensor]:
    """Return the colours (n, 3) that a side shows, and bool (n,), where it shows any."""
    colours, share = candidates.table.sample(source.frame, source.position)
    return colours, (source.frame >= 0) & (share > SMALLEST_SHARE)


def _spread(values: Tensor, chosen: Tensor, places: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """Return the chosen of n values, smoothed over the picture among themselves: jumps would tear the copies apart.

    Args:
        values, chosen: (n,); bool.
        places: rows and columns (n,) of the values.
        size: of the picture.
    """
    field = torch.zeros(2, *size)
    at = (places[0][chosen], places[1][chosen])
    field[0][at], field[1][at] = values[chosen], 1.0
    total, count = (cv2.GaussianBlur(np.asarray(plane), (0, 0), SMOOTH) for plane in field)
    return torch.from_numpy(total)[at] / torch.from_numpy(count)[at]


def _move(candidates: Candidates, source: Addresses, chosen: Tensor, by: Tensor) -> None:
    """Shift the chosen positions by (n, 2) pixels, except where that ends among hidden ones."""
    table = candidates.table
    moved = (source.position[chosen] + by).clamp(min=torch.zeros(2), max=table.limit)
    _, share = table.sample(source.frame[chosen], moved)
    source.position[chosen] = torch.where((share > SMALLEST_SHARE)[:, None], moved, source.position[chosen])
