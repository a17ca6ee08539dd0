"""How bright the frames of a shot are in relation to each other: fades, flashes, a camera that adapts.

What is hidden in one frame is copied from others; without this, a fade-out leaves dark stains in the frames before it.

Dimensions: T frames, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ciri.progress import OnStep, ignore
from ciri.shots import found_again, thumbnails

#: A pair of frames is looked at where the logarithms of the brightness of its cells change by this much in the median.
#: Optical flow then tells what became of each place: if that median, too, is so large, the light has changed, and it is
#: known by how much if the middle six tenths agree within this share of it, or within what they differ by anyway.
CHANGE, ALIKE, ANYWAY = 0.03, 0.5, 0.06
#: With less of the picture than this share, flow tells nothing.
LEAST_FOUND = 0.05
#: Brightness below which nothing can be told: one grey level of 255.
DARKEST = 1 / 255
#: Frames are brightened and darkened by these factors at most: in what is nearly black there is little but noise.
LEAST, MOST = 0.1, 4.0


def exposure(frames: Tensor, *, on_step: OnStep = ignore) -> Tensor | None:
    """Return how bright each frame is, (T,), 1 being the shot's usual; None where it is the same or unsure.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1], of one shot.
        on_step: progress callback, told of nothing done; may raise to stop.
    """
    if len(frames) < 2:
        return None
    cells = _logarithms(thumbnails(frames, on_step)).flatten(1)
    level = torch.zeros(len(frames))
    for t, change in enumerate(cells.diff(dim=0).median(1).values.tolist(), 1):
        step = _change(frames[t - 1], frames[t]) if abs(change) > CHANGE else 0.0
        if step is None:
            return None
        level[t] = level[t - 1] + step
    return (level - level.median()).exp().clamp(LEAST, MOST).to(frames.device) if level.any() else None


def _change(first: Tensor, second: Tensor) -> float | None:
    """By how much the light changes from one frame (3, H, W) to the next, as a logarithm; None if nobody can tell."""
    pair, there, found = found_again(first, second)
    if found.float().mean() < LEAST_FOUND:
        return None
    ratios = (_logarithms(there) - _logarithms(pair[:1]))[found[:, 0]]
    low, step, high = ratios.quantile(ratios.new_tensor([0.2, 0.5, 0.8])).tolist()
    if abs(step) < CHANGE:
        return 0.0
    return step if high - low < max(ALIKE * abs(step), ANYWAY) else None


def _logarithms(pictures: Tensor) -> Tensor:
    """Logarithms of brightness, (n, h, w), of pictures (n, 3, h, w)."""
    return pictures.mean(1).clamp(min=DARKEST).log()


def evened(frames: Tensor, bright: Tensor | None) -> Tensor:
    """Return frames (T, 3, H, W) as bright as each other, in [0, 1].

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        bright: their :func:`exposure`; None: they are that already.
    """
    return frames if bright is None else (frames / bright.view(-1, 1, 1, 1)).clamp(0, 1)
