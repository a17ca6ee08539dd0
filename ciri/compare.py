"""Looking at results: masks tinted over the clip, and two clips in one picture.

Dimensions: t frames, h w pixels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.errors import CiriError, ClipError
from ciri.frames import ASPECT_TOLERANCE, grow_mask

MODES = ("side by side", "stacked", "wipe", "sweep", "difference")

#: The tint that differs most from what footage usually shows: skin, grass, sky, brick.
MAGENTA = (1.0, 0.2, 0.9)

#: Pixels between the two pictures; even, so that it does not change the parity of the size.
GAP = 4


def overlay(
    frames: Tensor,
    masks: Tensor,
    *,
    colour: tuple[float, float, float] = MAGENTA,
    opacity: float = 0.45,
    outline: int = 2,
) -> Tensor:
    """Tint the masked region and draw its outline.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        masks: float32 (T, 1, H, W) in [0, 1].
        colour: red, green, blue in [0, 1].
        opacity: of the tint where the mask is 1; it falls with the mask.
        outline: width in pixels of the line just outside what exceeds 0.5; 0 draws none.

    Returns:
        float32 (T, 3, H, W); where a mask is 0 and no outline runs, the input pixel bit for bit.
    """
    paint = torch.tensor(colour, dtype=frames.dtype, device=frames.device)[:, None, None]
    result = torch.empty_like(frames)
    # frame by frame: the intermediate results of a whole clip would cost several times its memory
    for index, (frame, mask) in enumerate(zip(frames, masks.to(frames.device), strict=True)):
        tinted = torch.where(mask > 0, torch.lerp(frame, paint, opacity * mask), frame)
        if outline > 0:
            solid = (mask[None] > 0.5).float()
            tinted = torch.where((grow_mask(solid, outline) > solid)[0], paint, tinted)
        result[index] = tinted
    return result


def compare(
    first: Tensor,
    second: Tensor,
    mode: str = "side by side",
    *,
    labels: tuple[str, str] = ("", ""),
    wipe: float = 0.5,
    gain: float = 4.0,
) -> Tensor:
    """Show two clips in one.

    Args:
        first, second: float32 (T, 3, H, W) in [0, 1]; the second is resized if its aspect ratio is the first's. A clip
            of one frame is held as a still.
        mode: "side by side"; "stacked" (one above the other); "wipe" (left of a line the first clip, right of it the
            second); "sweep" (the line crosses the picture and returns once in the clip); "difference".
        labels: words written over either clip; Latin letters. Nothing is written over a difference.
        wipe: position of the line in "wipe", 0 (left) to 1 (right).
        gain: factor of the difference, so that small ones can be seen.

    Returns:
        float32 (T, 3, H', W') in [0, 1]; H' and W' are even, as video codecs ask, an odd side loses its last row.

    Raises:
        ClipError: the clips differ in length or in aspect ratio.
        CiriError: an unknown mode.
    """
    if mode not in MODES:
        raise CiriError(f"The mode is {mode!r}; expected one of {', '.join(MODES)}.")
    first, second = _matched(first, second)
    if mode == "difference":
        return _even((first - second).abs().mul(gain).clamp(0, 1))
    first, second = _even(first), _even(second)
    if mode in ("side by side", "stacked"):
        axis = 3 if mode == "side by side" else 2
        shape = list(first.shape)
        shape[axis] = GAP
        return torch.cat([_written(first, labels[0]), first.new_ones(shape), _written(second, labels[1])], axis)
    count, width = len(first), first.shape[3]
    first, second = _written(first, labels[0]), _written(second, labels[1], right=True)
    positions = [wipe] * count if mode == "wipe" else [_sweep(i / count) for i in range(count)]
    for index, position in enumerate(positions):
        edge = round(min(max(position, 0.0), 1.0) * width)
        second[index, :, :, :edge] = first[index, :, :, :edge]
        second[index, :, :, max(edge - 1, 0) : edge + 1] = 1.0
    return second


def _sweep(phase: float) -> float:
    """Position of the line at a phase in [0, 1): right, left, right, slow at the ends."""
    return 0.5 + 0.5 * math.cos(2 * math.pi * phase)


def _matched(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Give both clips the same length, size and device."""
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ClipError(
            f"The clips have {len(first)} and {len(second)} frames; compare clips of the same length, "
            "or a clip with a single image."
        )
    (height, width), (got_h, got_w) = first.shape[2:], second.shape[2:]
    if abs((got_w / got_h) / (width / height) - 1) > ASPECT_TOLERANCE:
        raise ClipError(
            f"The clips are {width}x{height} and {got_w}x{got_h}: the aspect ratios differ; "
            "compare two clips of one shape."
        )
    second = second.to(first.device)
    if (got_h, got_w) != (height, width):
        second = F.interpolate(second, (height, width), mode="bilinear", align_corners=False, antialias=True).clamp(
            0, 1
        )
    count = max(len(first), len(second))
    return first.expand(count, -1, -1, -1), second.expand(count, -1, -1, -1)


def _even(clip: Tensor) -> Tensor:
    """Drop the last row and column of odd sides; a side of one pixel is doubled instead."""
    height, width = clip.shape[2:]
    clip = clip.expand(-1, -1, max(height, 2), max(width, 2))
    return clip[:, :, : clip.shape[2] // 2 * 2, : clip.shape[3] // 2 * 2]


def _written(clip: Tensor, label: str, *, right: bool = False) -> Tensor:
    """Copy the clip with a label in its top left (or right) corner, light on a darkened box."""
    clip = clip.clone()
    if not label.strip():
        return clip
    height, width = clip.shape[2:]
    scale = max(height, 120) / 480
    thickness = max(1, round(1.6 * scale))
    (text_w, text_h), base = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    pad = max(2, round(10 * scale))
    box = np.zeros((text_h + base + 2 * pad, text_w + 2 * pad), np.uint8)
    cv2.putText(box, label, (pad, pad + text_h), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thickness, cv2.LINE_AA)
    ink = torch.from_numpy(box[:height, :width].astype(np.float32) / 255).to(clip.device)
    left = width - ink.shape[1] if right else 0
    corner = clip[:, :, : ink.shape[0], left : left + ink.shape[1]]
    corner.copy_(torch.lerp(corner * 0.4, torch.ones_like(corner), ink))
    return clip
