"""Optical flow between neighbouring frames (DIS), how far it can be trusted, and warping along it.

Flow fields have two channels, (x, y) displacements in pixels: a pixel at p of the first frame is at p + flow(p) in
the second. Dimensions: t frames, n fields, c channels, h w pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.frames import Box
from ciri.progress import OnStep, ignore

#: DIS refuses very small images; smaller ones are padded to this side.
SMALLEST_SIDE = 32
#: A round trip may miss by FIXED pixels plus this share of the way; beyond it the flow is not trusted.
RELATIVE_TOLERANCE, FIXED_TOLERANCE = 0.05, 0.5

Preset = Literal["fast", "medium"]
_PRESETS = {"fast": cv2.DISOPTICAL_FLOW_PRESET_FAST, "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM}


def neighbour_flow(frames: Tensor, *, preset: Preset = "medium", on_step: OnStep = ignore) -> tuple[Tensor, Tensor]:
    """Return the optical flow between each frame and the next, in both directions.

    Dense inverse search (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016) in OpenCV.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1], of any size.
        preset: "fast" takes a quarter of the time of "medium" and sees less detail.
        on_step: called after each pair of frames; may raise to stop.

    Returns:
        forward: float32 (T-1, 2, H, W), frame t -> t + 1.
        backward: float32 (T-1, 2, H, W), frame t + 1 -> t.
    """
    h, w = frames.shape[2:]
    greys = (grey(frame) for frame in frames)
    forward, backward = grey_flow(greys, (len(frames), h, w), preset=preset, on_step=on_step)
    return forward.to(frames.device), backward.to(frames.device)


def one_way_flow(first: Tensor, second: Tensor) -> Tensor:
    """Return float32 (2, H, W) on the CPU, the optical flow from one frame (3, H, W) in [0, 1] to another."""
    engine: Any = cv2.DISOpticalFlow.create(_PRESETS["medium"])
    return _to_tensor(engine.calc(grey(first), grey(second), None), *first.shape[1:])


def grey_flow(
    greys: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    *,
    preset: Preset = "medium",
    closely: Sequence[Box | None] = (),
    on_step: OnStep = ignore,
) -> tuple[Tensor, Tensor]:
    """As :func:`neighbour_flow`, for frames that :func:`grey` made; each is asked for once.

    Args:
        greys: the frames.
        shape: (T, H, W) of the clip.
        closely: for each pair of frames, the part that is measured once more at full resolution, which the presets
            do not go down to; None or nothing: no part.
        preset, on_step: as there.
    """
    count, h, w = shape
    forward = torch.zeros(max(count - 1, 0), 2, h, w)
    backward = torch.zeros_like(forward)
    engine: Any = cv2.DISOpticalFlow.create(_PRESETS[preset])
    close = close_engine()
    for t, (current, following) in enumerate(itertools.pairwise(greys)):
        there, back = engine.calc(current, following, None), engine.calc(following, current, None)
        box = closely[t] if closely else None
        if box is not None:
            _look_closely(close, current, following, there, box)
            _look_closely(close, following, current, back, box)
        forward[t], backward[t] = _to_tensor(there, h, w), _to_tensor(back, h, w)
        on_step(t + 1, count - 1)
    return forward, backward


def close_engine() -> Any:
    """OpenCV's optical flow that goes down to full resolution, at about the cost of "medium"."""
    engine: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    engine.setFinestScale(0)
    engine.setPatchStride(4)
    engine.setGradientDescentIterations(12)
    return engine


def _look_closely(engine: Any, first: np.ndarray, second: np.ndarray, flow: np.ndarray, box: Box) -> None:
    """Measure a part's flow (H, W, 2) once more, beginning with what is known of it; in place."""
    start = [side.start for side in box]
    size = [side.stop - side.start for side in box]
    # what the part shows is elsewhere by now, where the camera moves fast
    shift = np.round(np.median(flow[box].reshape(-1, 2), axis=0)[::-1]).astype(int)
    moved = [min(max(a + d, 0), whole - n) for a, d, whole, n in zip(start, shift, second.shape, size, strict=True)]
    offset = np.array([moved[1] - start[1], moved[0] - start[0]], np.float32)
    there = tuple(slice(a, a + n) for a, n in zip(moved, size, strict=True))
    parts = (np.ascontiguousarray(first[box]), np.ascontiguousarray(second[there]))
    flow[box] = engine.calc(*parts, np.ascontiguousarray(flow[box] - offset)) + offset


def grey(frame: Tensor) -> np.ndarray:
    """Return a frame (3, H, W) in [0, 1] as uint8 grey, no side shorter than :data:`SMALLEST_SIDE`."""
    image = (frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
    single = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    down, right = (max(SMALLEST_SIDE - side, 0) for side in single.shape)
    if down or right:
        single = cv2.copyMakeBorder(single, 0, down, 0, right, cv2.BORDER_REPLICATE)
    return single


def _to_tensor(flow: np.ndarray, h: int, w: int) -> Tensor:
    return torch.from_numpy(flow[:h, :w]).permute(2, 0, 1)


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Sample images at p + flow(p), bilinearly; beyond the border the border pixel is repeated.

    With ``flow`` from a to b and ``image`` = b, the result shows b's content where a has it.

    Args:
        image: float32 (N, C, H, W).
        flow: float32 (N, 2, H, W) in pixels.
    """
    h, w = image.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(h, device=flow.device, dtype=flow.dtype),
        torch.arange(w, device=flow.device, dtype=flow.dtype),
        indexing="ij",
    )
    # grid_sample wants [-1, 1] between the centres of the first and the last pixel
    grid_x = (x + flow[:, 0]) * (2 / max(w - 1, 1)) - 1
    grid_y = (y + flow[:, 1]) * (2 / max(h - 1, 1)) - 1
    grid = torch.stack([grid_x, grid_y], dim=-1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def consistency(forward: Tensor, backward: Tensor) -> Tensor:
    """Return how well going there and coming back agree: 1 = exactly, 0 = occluded or wrong.

    The round trip's error, squared, relative to what the lengths of the two flows allow; pixels that leave the
    frame get 0. For the trust in ``backward``, swap the arguments.

    Args:
        forward, backward: float32 (N, 2, H, W), flows a -> b and b -> a.

    Returns:
        float32 (N, 1, H, W) in [0, 1], on a's pixels.
    """
    h, w = forward.shape[-2:]
    back = warp(backward, forward)
    error = (forward + back).square().sum(1, keepdim=True)
    lengths = forward.square().sum(1, keepdim=True) + back.square().sum(1, keepdim=True)
    trust = (1 - error / (RELATIVE_TOLERANCE * lengths + FIXED_TOLERANCE)).clamp(min=0)
    y = torch.arange(h, device=forward.device)[:, None] + forward[:, 1:]
    x = torch.arange(w, device=forward.device)[None, :] + forward[:, :1]
    inside = (x >= -0.5) & (x <= w - 0.5) & (y >= -0.5) & (y <= h - 0.5)
    return trust * inside
