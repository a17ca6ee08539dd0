"""Grain: as much of the clip's noise for what was filled in as its surroundings have.

What is filled in was copied from between pixels, averaged, or made by a network, and all of these take noise away: in
footage that has some, it shows as a smooth patch.

Dimensions: T frames, h w pixels; planes are Y, Cb, Cr.
"""

from __future__ import annotations

import math

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.frames import extent
from ciri.noise import TO_PLANES, Noise, measure, to_planes
from ciri.progress import OnStep, ignore, part

#: What noise is there already is measured over so many pixels a side, around every so manieth, where each counts as so
#: many deviations at most: an edge is no noise. Of so many such places a side the smoothest is believed.
AROUND, EVERY, AT_MOST, NEARBY = 15, 5, 3.0, 7
#: Where noise is the same everywhere, the smoothest of these places shows this much of it.
SMOOTHEST = 0.87

_TO_COLOURS = torch.linalg.inv(TO_PLANES)
_LAPLACIAN = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])
#: The mean of a normal variable's absolute value, cut off at AT_MOST.
_MEAN_ABSOLUTE = (2 / math.pi) ** 0.5 * (1 - math.exp(-(AT_MOST**2) / 2)) + AT_MOST * math.erfc(AT_MOST / 2**0.5)


def match_grain(
    frames: Tensor, filled: Tensor, *, strength: float = 1.0, feather: int = 3, on_step: OnStep = ignore
) -> tuple[Tensor, Noise | None]:
    """Give what was filled in the grain of its clip; every other pixel stays as it is, bit for bit.

    What is filled in gets what it lacks: noise that came along with copied pixels counts.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1], the clip.
        filled: float32 (T, 3, H, W) in [0, 1], the same clip with something filled in: wherever it differs.
        strength: 1 matches the clip; 0 adds nothing.
        feather: width in pixels of the transition between both at the edges of what was filled in; there, some grain of
            the clip is left.
        on_step: progress callback; may raise to stop.

    Returns:
        The clip, and its noise; where it has none, or nothing was filled in, ``filled`` itself and None.
    """
    if strength <= 0:
        return filled, None
    touched = torch.stack([(frame != other).any(0) for frame, other in zip(frames, filled, strict=True)])
    if not touched.any():
        return filled, None
    # what was removed may have been no part of the picture, such as a caption
    noise = measure(frames, touched, on_step=part(on_step, 0, 0.5))
    if noise is None:
        return filled, None
    result, adding = filled.clone(), part(on_step, 0.5, 1)
    for t, somewhere in enumerate(touched):
        if somewhere.any():
            rows, columns = extent(somewhere, 1)
            # every frame has noise of its own, and the same one every time
            generator = torch.Generator().manual_seed(t)
            window, inside = result[t, :, rows, columns], somewhere[rows, columns]
            added = strength * _beside_the_clip(inside, feather) * _lacking(noise, window, inside, generator)
            window.copy_(torch.where(inside, (window + added).clamp(0, 1), window))
        adding(t + 1, len(frames))
    return result, noise


def _beside_the_clip(touched: Tensor, feather: int) -> Tensor:
    """How much of the grain (h, w) is lacking where fill and clip are blended; 0 where nothing was touched.

    Of noise of deviation 1 that is shown with weight 1 - alpha, sqrt(1 - (1 - alpha)^2) is lacking.
    """
    depth = cv2.distanceTransform(touched.byte().cpu().numpy(), cv2.DIST_L2, 3)
    alpha = torch.from_numpy(depth).to(touched.device) / (feather + 1)
    return (1 - (1 - alpha.clamp(max=1)).square()).sqrt()


def _lacking(noise: Noise, window: Tensor, touched: Tensor, generator: torch.Generator) -> Tensor:
    """The noise (3, h, w), in RGB, that a part of a frame lacks where it was touched (h, w)."""
    planes = to_planes(window)
    wanted = noise.at(planes[0])
    missing = wanted * (1 - _present(noise, planes, wanted, touched).square()).clamp(min=0).sqrt()
    sample = noise.sample(touched.shape[0], touched.shape[1], generator).to(window)
    return torch.einsum("cp,phw->chw", _TO_COLOURS.to(window), sample * missing)


def _present(noise: Noise, planes: Tensor, deviation: Tensor, touched: Tensor) -> Tensor:
    """How much of the deviation (3, h, w) of its noise came along with what was touched, (3, h, w), 0 being none."""
    fine = F.conv2d(F.pad(planes[:, None], (1, 1, 1, 1), mode="replicate"), _LAPLACIAN.to(planes)[None, None])[:, 0]
    gain = F.conv2d(noise.filters, _LAPLACIAN[None, None], padding=2).flatten(1).norm(dim=1).to(planes)[:, None, None]
    # the Laplacian of a pixel at the rim sees the clip, which has all of its noise
    inner = -F.max_pool2d(-F.pad(touched.to(planes)[None], (1, 1, 1, 1), value=1.0), 3, 1)
    relative = (fine.abs() / (gain * deviation).clamp(min=1e-6)).clamp(max=AT_MOST) * inner
    seen = F.avg_pool2d(torch.cat([relative, inner]), AROUND, EVERY, AROUND // 2)
    level = (seen[:3] / seen[3:].clamp(min=1e-6) / (_MEAN_ABSOLUTE * SMOOTHEST)).masked_fill(seen[3:] == 0, AT_MOST)
    # what is smoothest nearby tells how much came along; what is more elsewhere is texture
    smoothest = -F.max_pool2d(-level, NEARBY, 1, NEARBY // 2)
    evenly = F.avg_pool2d(smoothest, 3, 1, 1, count_include_pad=False)
    return F.interpolate(evenly[None], touched.shape, mode="bilinear", align_corners=False)[0]
