"""Looking at results: masks tinted over the clip, and two clips in one picture.

Dimensions: t frames, h w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.errors import CiriError, ClipError
from ciri.frames import ASPECT_TOLERANCE, grow_mask
from ciri.progress import OnStep, ignore

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
    on_step: OnStep = ignore,
) -> Tensor:
    """Tint the masked region and draw its outline.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        masks: float32 (T, 1, H, W) in [0, 1].
        colour: red, green, blue in [0, 1].
        opacity: of the tint where the mask is 1; it falls with the mask.
        outline: width in pixels of the line just outside what exceeds 0.5; 0 draws none.
        on_step: called after each frame; may raise to stop.

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
        on_step(index + 1, len(frames))
    return result


def compare(
    first: Tensor,
    second: Tensor,
    mode: str = "side by side",
    *,
    labels: tuple[str, str] = ("", ""),
    wipe: float = 0.5,
    gain: float = 4.0,
    on_step: OnStep = ignore,
) -> Tensor:
    """Show two clips in one.

    Args:
        first, second: float32 (T, 3, H, W) in [0, 1]; the second is resized if its aspect ratio is the first's. A clip
            of one frame is held as a still.
        mode: "side by side"; "stacked" (one above the other); "wipe" (left of a line the first clip, right of it the
            second); "sweep" (the line crosses the picture and returns once in the clip); "difference".
        labels: words written over either clip; beyond a-z with OpenCV 5 only. Nothing is written over a difference.
        wipe: position of the line in "wipe", 0 (left) to 1 (right).
        gain: factor of the difference, so that small ones can be seen.
        on_step: called after each frame; may raise to stop.

    Returns:
        float32 (T, 3, H', W') in [0, 1]; H' and W' are even, as video codecs ask, an odd side loses its last row. In
        memory the channels are innermost, as in pictures and in ComfyUI's IMAGE.

    Raises:
        ClipError: the clips differ in length or in aspect ratio.
        CiriError: an unknown mode.
    """
    if mode not in MODES:
        raise CiriError(f"The mode is {mode!r}; expected one of {', '.join(MODES)}.")
    count = _length(first, second)
    height, width = (max(side // 2 * 2, 2) for side in first.shape[2:])
    inks = [_ink(label, (height, width)).to(first.device) for label in labels]
    size = {"side by side": (height, 2 * width + GAP), "stacked": (2 * height + GAP, width)}.get(mode, (height, width))
    # the clip's only copy: whole clips in between would cost several times its memory
    result = first.new_empty(count, *size, 3).movedim(-1, 1)
    for index, (shown, a, b) in enumerate(
        zip(result, _frames(first, count), _matched(second, first, count), strict=True)
    ):
        if mode == "difference":
            shown.copy_((a - b).abs().mul(gain).clamp(0, 1))
        elif mode in ("side by side", "stacked"):
            _show_both(shown, a, b, inks, axis=2 if mode == "side by side" else 1)
        else:
            position = wipe if mode == "wipe" else _sweep(index / count)
            _show_wiped(shown, a, b, inks, round(min(max(position, 0.0), 1.0) * width))
        on_step(index + 1, count)
    return result


def _show_both(shown: Tensor, first: Tensor, second: Tensor, inks: list[Tensor], axis: int) -> None:
    """Write two frames and their labels, a white gap between them, into a picture (3, H', W'), one after the other."""
    length = first.shape[axis]
    for start, frame, ink in ((0, first, inks[0]), (length + GAP, second, inks[1])):
        part = shown.narrow(axis, start, length).copy_(frame)
        _write(part, ink)
    shown.narrow(axis, length, GAP).fill_(1.0)


def _show_wiped(shown: Tensor, first: Tensor, second: Tensor, inks: list[Tensor], edge: int) -> None:
    """Write the first frame up to a column, a white line there, and the second beyond it into a picture (3, H, W)."""
    _write(shown.copy_(second), inks[1], right=True)
    labelled = first.clone()
    _write(labelled, inks[0])
    shown[..., :edge] = labelled[..., :edge]
    shown[..., max(edge - 1, 0) : edge + 1] = 1.0


def _sweep(phase: float) -> float:
    """Position of the line at a phase in [0, 1): right, left, right, slow at the ends."""
    return 0.5 + 0.5 * math.cos(2 * math.pi * phase)


def _length(first: Tensor, second: Tensor) -> int:
    """The number of frames that are shown.

    Raises:
        ClipError: the clips differ in length or in aspect ratio.
    """
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
    return max(len(first), len(second))


def _frames(clip: Tensor, count: int) -> Iterator[Tensor]:
    """Yield so many frames (3, H, W) of a clip, or its only one again and again; their sides are even."""
    for frame in clip.expand(count, -1, -1, -1):
        yield _even(frame)


def _matched(clip: Tensor, to: Tensor, count: int) -> Iterator[Tensor]:
    """As :func:`_frames`, of the size of another clip and on its device."""
    if len(clip) == 1:
        # a still is resized once
        yield from _frames(_resized(clip.to(to.device), to), count)
        return
    for index in range(count):
        yield _even(_resized(clip[index : index + 1].to(to.device), to)[0])


def _resized(frames: Tensor, to: Tensor) -> Tensor:
    """Frames of the size of another clip."""
    size = (to.shape[2], to.shape[3])
    if frames.shape[2:] == size:
        return frames
    return F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def _even(frame: Tensor) -> Tensor:
    """Drop the last row and column of odd sides; a side of one pixel is doubled instead."""
    height, width = frame.shape[1:]
    frame = frame.expand(-1, max(height, 2), max(width, 2))
    return frame[:, : frame.shape[1] // 2 * 2, : frame.shape[2] // 2 * 2]


def _ink(label: str, size: tuple[int, int]) -> Tensor:
    """A label for frames of this height and width, float32 (h, w) in [0, 1], as much of it as fits; empty for none."""
    if not label.strip():
        return torch.zeros(0, 0)
    height, width = size
    scale = max(height, 120) / 480
    thickness = max(1, round(1.6 * scale))
    (text_w, text_h), base = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    pad = max(2, round(10 * scale))
    box = np.zeros((text_h + base + 2 * pad, text_w + 2 * pad), np.uint8)
    cv2.putText(box, label, (pad, pad + text_h), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thickness, cv2.LINE_AA)
    return torch.from_numpy(box[:height, :width].astype(np.float32) / 255)


def _write(frame: Tensor, ink: Tensor, *, right: bool = False) -> None:
    """Write a label into the top left (or right) corner of a frame (3, H, W), light on a darkened box, in place."""
    left = frame.shape[2] - ink.shape[1] if right else 0
    corner = frame[:, : ink.shape[0], left : left + ink.shape[1]]
    corner.copy_(torch.lerp(corner * 0.4, torch.ones_like(corner), ink))
