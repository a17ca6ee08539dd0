"""From an inactivation map to a finished clip: crop, pad, call the backbone, paste back."""

from __future__ import annotations

import torch
from torch import Tensor

from ciri.errors import MaskError
from ciri.frames import CropTrack, as_pair, feather_alpha, follow_target, grow_mask, pad_to_multiple, paste_back, unpad
from ciri.inpainting.base import Backbone
from ciri.progress import OnStep, ignore

#: A crop is only worth its seams when it saves at least this share of the pixels.
WORTHWHILE = 0.8


def remove(
    frames: Tensor,
    inactivation: Tensor,
    backbone: Backbone,
    *,
    grow: int = 4,
    feather: int = 3,
    crop: bool = True,
    on_step: OnStep = ignore,
) -> Tensor:
    """Fill the inactivated region of a clip; every pixel away from it equals the input bit for bit.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        inactivation: float32 (T, 1, H, W) in [0, 1] (M_iac); frames without a positive value come back untouched.
        backbone: what fills it.
        grow: the map is dilated by this many pixels first (eroded if negative).
        feather: width in pixels, outside the grown map, of the transition to the input.
        crop: work on a window that follows the target instead of on the whole frame.
        on_step: progress callback.

    Raises:
        MaskError: the map is of another length or size than the clip.
    """
    expected = (len(frames), 1, *frames.shape[2:])
    if inactivation.shape != expected:
        raise MaskError(
            f"The inactivation masks have shape {tuple(inactivation.shape)}; expected {expected}, "
            "one mask of the frames' size for every frame."
        )
    grown = grow_mask(inactivation, grow)
    if not (grown > 0).any():
        return frames
    alpha = feather_alpha(grown, feather)
    needs = as_pair(backbone.facts.needs_divisible_by)
    track = follow_target(alpha, multiple=(max(16, needs[0]), max(16, needs[1]))) if crop else whole_frame(frames)
    if track.size[0] * track.size[1] > WORTHWHILE * frames.shape[2] * frames.shape[3]:
        track = whole_frame(frames)
    window, size = pad_to_multiple(track.cut(frames), needs)
    hole, _ = pad_to_multiple(track.cut(grown), needs)
    filled = unpad(backbone.inpaint(window, hole, on_step=on_step), size)
    result = frames.clone()
    track.put(result, paste_back(track.cut(frames), filled.to(frames.device), track.cut(alpha)))
    return result


def whole_frame(frames: Tensor) -> CropTrack:
    """The window that is the frame itself."""
    return CropTrack((frames.shape[2], frames.shape[3]), torch.zeros(len(frames), 2, dtype=torch.int64))
