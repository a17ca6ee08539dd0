"""Refining masks of any origin: a coarse offset of each mask's logits is optimised, not a network.

It serves trackers without weights, other programs' masks and masks made by hand, and costs a fraction of a step on a
network. Frames do not influence each other, so each keeps its own best state.

Dimensions: n frames, H W pixels; the offset has 1/8 of their resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.refinement.objective import Scene, frame_losses, to_logits
from ciri.refinement.watch import Watch
from ciri.residue.detect import in_batches

#: Pixels of the frame per cell of the offset.
CELL = 8
#: Log odds that a cell moves in a step at most; Adam makes it about that.
RATE = 0.5


def refine_masks(
    watch: Watch, scene: Scene, *, steps: int, grow: int, after_step: Callable[[int], bool]
) -> tuple[Tensor, int]:
    """Return refined masks (n, 1, H, W) in [0, 1], within the scene's grown masks, and the number of steps taken.

    Args:
        watch: the detector.
        scene: the suspicious frames; optimisation starts at its grown masks.
        steps: at most so many.
        grow: pixels by which the product widens a mask.
        after_step: called with the number of steps done; False ends the descent. May raise to stop.
    """
    start = to_logits(scene.grown)
    n, _, height, width = start.shape
    offset = torch.zeros(n, 1, math.ceil(height / CELL), math.ceil(width / CELL), requires_grad=True)
    # a small eps: the gradient of a mean over many pixels is tiny, and means as much
    optimiser = torch.optim.Adam([offset], lr=RATE, eps=1e-12)
    best, least = torch.zeros_like(offset), torch.full((n,), math.inf)
    done = 0
    for step in range(steps + 1):
        optimiser.zero_grad()
        losses = torch.zeros(n)

        def one(part: slice, losses: Tensor = losses, last: bool = step == steps) -> None:
            with torch.set_grad_enabled(not last):
                logits = start[part] + _spread(offset[part], (height, width))
                value = frame_losses(watch, scene, logits, start[part], part, grow)
                losses[part] = value.detach()
                if value.requires_grad:
                    value.sum().backward()

        in_batches(n, one)
        better = losses < least
        least = torch.where(better, losses, least)
        best[better] = offset.detach()[better]
        if step == steps or offset.grad is None or not torch.isfinite(offset.grad).all():
            break
        optimiser.step()
        done = step + 1
        if not after_step(done):
            break
    moved = _spread(best, (height, width))
    refined = (start + moved).sigmoid()
    # the given values, bit for bit, where nothing moved
    return torch.where(moved != 0, torch.minimum(refined, scene.grown), scene.grown), done


def _spread(offset: Tensor, size: tuple[int, int]) -> Tensor:
    """Offsets of cells to offsets of pixels, (n, 1, H, W)."""
    return F.interpolate(offset, size=size, mode="bilinear", align_corners=False)
