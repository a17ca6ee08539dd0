"""Copying gradients instead of colours: copied pixels meet each other and the rim of the hole without a seam.

Frames differ in exposure, white balance and haze. The copied colours C are corrected by the e that makes the
gradients of C + e those of the source frames, with e = 0 on the rim (Perez et al., "Poisson Image Editing",
SIGGRAPH 2003). Gradients and colours disagree only where two source frames, or a source frame and the picture, meet.

Gradients say nothing of colours: a trace of the target beside each of thirty seams, too faint to be seen, adds up to a
patch that is. Colours that are trusted may therefore be held, which makes the correction fade out with the distance
from its seam (the screened Poisson equation; Bhat et al., "Fourier Analysis of the 2D Screened Poisson Equation for
Gradient Domain Problems", ECCV 2008).

Dimensions: b fields, c channels, h w pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.frames import extent

#: V-cycles of the solver.
CYCLES = 5
#: Weight of a Jacobi sweep (4/5 damps the high frequencies of the 5-point stencil best).
DAMPING = 0.8
SWEEPS, COARSEST_SWEEPS = 2, 8


def correction(mismatch_x: Tensor, mismatch_y: Tensor, hole: Tensor, hold: Tensor | None = None) -> Tensor:
    """Return the correction whose gradients undo the mismatch inside the hole; 0 outside.

    Args:
        mismatch_x: float32 (C, H, W-1), wanted minus present difference between a pixel and its right neighbour.
        mismatch_y: float32 (C, H-1, W), the same for the neighbour below.
        hole: bool (H, W), where the correction may act.
        hold: float32 (H, W), at least 0, how firmly a pixel keeps its colour: a correction reaches about
            1 / sqrt(hold) pixels. Everywhere 0 if None.

    Returns:
        float32 (C, H, W).
    """
    result = mismatch_x.new_zeros(mismatch_x.shape[0], *hole.shape)
    if not hole.any():
        return result
    result[:, :, :-1] -= mismatch_x
    result[:, :, 1:] += mismatch_x
    result[:, :-1] -= mismatch_y
    result[:, 1:] += mismatch_y
    # a rim of one known pixel is needed, except where the hole touches the picture's border: there, no neighbour
    box = extent(hole, 1)
    inside = hole[box].to(result)
    held = torch.zeros_like(inside) if hold is None else hold[box]
    right = (result[(slice(None), *box)] * inside)[None]
    solved = torch.zeros_like(result)
    solved[(slice(None), *box)] = solve_poisson(right, inside[None, None], held[None, None])[0]
    # without a rim that pins it down (a hole that is the whole picture) the level is arbitrary; colours end at 1
    return solved.clamp_(-1, 1)


def solve_poisson(right: Tensor, hole: Tensor, hold: Tensor, cycles: int = CYCLES) -> Tensor:
    """Solve (n + hold) e - (sum of the n neighbours of e) = right inside the hole, e = 0 outside it, by multigrid.

    Pixels at the picture's border have fewer neighbours (no flux through the border).

    Args:
        right: float32 (B, C, H, W), 0 outside the hole.
        hole: float32 (1, 1, H, W), 0 or 1.
        hold: float32 (1, 1, H, W), at least 0.
    """
    levels = [_level(hole, hold)]
    while min(hole.shape[-2:]) > 4:
        hole = (F.avg_pool2d(_even(hole), 2) > 0.99).to(hole)  # free if all its four are, or it may diverge
        if not hole.any():
            break
        hold = F.avg_pool2d(_even(hold), 2) * 4  # as the right side: the stencil is not divided by the spacing
        levels.append(_level(hole, hold))
    result: Tensor | None = None
    for _ in range(cycles):
        result = _v_cycle(result, right, levels)
    if result is None:
        return torch.zeros_like(right)
    hole, own = levels[0]
    rest = hole * (right - own * result + _neighbour_sum(result))
    # coarse grids of ragged holes are only an approximation: no correction is better than one that made it worse
    return result if rest.norm() < right.norm() else torch.zeros_like(right)


def _level(hole: Tensor, hold: Tensor) -> tuple[Tensor, Tensor]:
    """Return a level's hole, and the weight of each pixel in its own equation: its neighbours' number, and its hold."""
    return hole, _neighbour_sum(torch.ones_like(hole)).clamp(min=1) + hold


def _v_cycle(e: Tensor | None, right: Tensor, levels: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One multigrid cycle from e, or from 0."""
    hole, own = levels[0]
    if len(levels) == 1:
        return _relax(e, right, hole, own, COARSEST_SWEEPS)
    e = _relax(e, right, hole, own, SWEEPS)
    rest = hole * (right - own * e + _neighbour_sum(e))
    coarse = F.avg_pool2d(_even(rest), 2) * 4  # the stencil is not divided by the squared spacing: sums, not means
    coarse = _v_cycle(None, coarse, levels[1:])
    h, w = e.shape[-2:]
    fine = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)[..., :h, :w]
    return _relax(torch.addcmul(e, hole, fine), right, hole, own, SWEEPS)


def _relax(e: Tensor | None, right: Tensor, hole: Tensor, own: Tensor, sweeps: int) -> Tensor:
    """Damped Jacobi, e <- e + rate (right - own e + sum of neighbours), in as few passes over memory as that takes."""
    keep, rate = 1 - DAMPING * hole, DAMPING * hole / own
    driven = rate * right
    if e is None:
        e, sweeps = driven, sweeps - 1
    for _ in range(sweeps):
        e = torch.addcmul(torch.addcmul(driven, keep, e), rate, _neighbour_sum(e))
    return e


def _neighbour_sum(x: Tensor) -> Tensor:
    p = F.pad(x, (1, 1, 1, 1))
    return (p[..., 1:-1, :-2] + p[..., 1:-1, 2:]).add_(p[..., :-2, 1:-1]).add_(p[..., 2:, 1:-1])


def _even(x: Tensor) -> Tensor:
    return F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
