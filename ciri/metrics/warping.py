"""E_warp: how much a result flickers, measured along the motion of the scene.

Lai et al., "Learning Blind Video Temporal Consistency", ECCV 2018. The flow is this project's (DIS, preset "medium"),
not FlowNet2: numbers are comparable only with numbers of the same estimator.

Dimensions: n pairs of frames, h w pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.flow.dis import neighbour_flow, warp
from ciri.metrics.similarity import check_pair
from ciri.progress import OnStep, ignore, part

#: Name of the estimator, to be printed beside every value.
ESTIMATOR = "DIS (OpenCV, medium)"
#: Sampling a mask exactly between its pixels' centres leaves rounding traces beside it; they are no mask.
TRACE = 1e-9


@dataclass(frozen=True)
class Motion:
    """The scene's motion between neighbouring frames: flows float (T - 1, 2, H, W), and where they say nothing.

    Attributes:
        forward: frame t -> t + 1.
        occluded: bool (T - 1, 1, H, W), pixels of frame t that are hidden in t + 1, or at a motion boundary.
    """

    forward: Tensor
    occluded: Tensor


def motion_of(reference: Tensor, *, on_step: OnStep = ignore) -> Motion:
    """Estimate the motion on a reference clip, float32 (T, 3, H, W) in [0, 1]: the clean one, or else the original.

    ``on_step`` is called for each pair of frames; it may raise to stop.
    """
    flows = neighbour_flow(reference, on_step=part(on_step, 0.0, 0.5))
    return motion_from_flows(*flows, on_step=part(on_step, 0.5, 1.0))


def motion_from_flows(forward: Tensor, backward: Tensor, *, on_step: OnStep = ignore) -> Motion:
    """Find occlusions and motion boundaries of flows (T - 1, 2, H, W), t -> t + 1 and t + 1 -> t.

    ``on_step`` is called after each pair of frames; it may raise to stop.
    """
    occluded = torch.zeros_like(forward[:, :1], dtype=torch.bool)
    # pair by pair, in double precision too: for a whole clip that would cost many times its memory
    for t in range(len(forward)):
        occluded[t : t + 1] = _occluded(forward[t : t + 1].double(), backward[t : t + 1].double())
        on_step(t + 1, len(forward))
    return Motion(forward, occluded)


def _occluded(forward: Tensor, backward: Tensor) -> Tensor:
    """bool (n, 1, H, W): pixels of the first frame that are hidden in the second, or at a motion boundary."""
    back = warp(backward, forward)
    length, length_back = forward.square().sum(1, keepdim=True), back.square().sum(1, keepdim=True)
    hidden = (forward + back).square().sum(1, keepdim=True) > 0.01 * (length + length_back) + 0.5
    across = F.pad(forward.diff(dim=3), (0, 1)).square().sum(1, keepdim=True)
    down = F.pad(forward.diff(dim=2), (0, 0, 0, 1)).square().sum(1, keepdim=True)
    return hidden | (across + down > 0.01 * length + 0.002)


def warping_error(result: Tensor, motion: Motion, masks: Tensor | None = None, *, on_step: OnStep = ignore) -> Tensor:
    """Return the mean squared error of every pair of neighbours, float64 (T - 1,); not-a-number where no pixel counts.

    The mean over pairs, then over clips, is E_warp. Papers print it times 100 or 1000.

    Args:
        result: floating (T, 3, H, W) in [0, 1].
        motion: of the clean (or original) clip.
        masks: (T, 1, H, W): count only pixels that were inpainted in either frame of a pair (positive).
        on_step: called after each pair; may raise to stop.
    """
    check_pair(result, result)
    errors = []
    for t, (flow, occluded) in enumerate(zip(motion.forward, motion.occluded, strict=True)):
        flow = flow.double()
        following = warp(result[t + 1 : t + 2].double(), flow[None])[0]
        valid = ~occluded[0]
        if masks is not None:
            moved = warp(masks[t + 1 : t + 2].double(), flow[None])[0, 0]
            valid = valid & ((masks[t, 0] > 0) | (moved > TRACE))
        difference = (following - result[t].double()).square().mean(0)
        errors.append(float(difference[valid].mean()) if valid.any() else math.nan)
        on_step(t + 1, len(motion.forward))
    return torch.tensor(errors, dtype=torch.float64)
