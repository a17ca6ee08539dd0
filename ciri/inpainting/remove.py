"""From an inactivation map to a finished clip: crop, pad, call the backbone, paste back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.crop_track import CropTrack, follow_target, target_boxes
from ciri.errors import MaskError
from ciri.exposure import evened, exposure
from ciri.flow.propagate import HIDDEN_ABOVE
from ciri.frames import as_pair, extent, feather_alpha, grow_mask, pad_to_multiple, paste_back, unpad
from ciri.inpainting.base import Backbone, BackboneFacts
from ciri.numbering import ranges
from ciri.out_of_memory import shortage_told
from ciri.progress import OnStep, ignore, part
from ciri.shots import in_place, shots

#: A crop is only worth its seams when it saves at least this share of the pixels.
WORTHWHILE = 0.8

#: From this value of the map on, the filled pixel is shown whole. Blending by the map itself would let half of the
#: target shine through wherever the propagator was only half sure.
SHOWN_WHOLE_FROM = 0.5


@shortage_told(
    "Memory ran out while a clip was filled: it is held whole, and so is what comes out. Do a part of the clip at a "
    "time, or use smaller frames."
)
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

    Every shot of a clip that was cut is filled from itself.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        inactivation: float32 (T, 1, H, W) in [0, 1] (M_iac), on any device; frames without a positive value come back
            untouched.
        backbone: what fills it.
        grow: the map is dilated by this many pixels first (eroded if negative).
        feather: width in pixels, outside the grown map, of the transition to the input.
        crop: work on a window that follows the target instead of on the whole frame.
        on_step: progress callback.

    Raises:
        MaskError: the map is of another length or size than the clip, or leaves nothing of a shot to a backbone that
            needs background.
        OutOfMemoryError: memory does not suffice; a backbone may say more closely what for.
    """
    expected = (len(frames), 1, *frames.shape[2:])
    if inactivation.shape != expected:
        raise MaskError(
            f"The inactivation masks have shape {tuple(inactivation.shape)}; expected {expected}, "
            "one mask of the frames' size for every frame."
        )
    inactivation = inactivation.to(frames.device)
    scenes, done = shots(frames, on_step=on_step), 0
    if backbone.facts.needs_background:
        _check_background(inactivation, scenes, grow)
    if len(scenes) == 1:
        return remove_from_shot(frames, inactivation, backbone, grow=grow, feather=feather, crop=crop, on_step=on_step)
    result = frames.clone()
    for scene in scenes:
        at = in_place(scene)
        steps = part(on_step, done / len(frames), (done + len(scene)) / len(frames))
        result[at] = remove_from_shot(
            frames[at], inactivation[at], backbone, grow=grow, feather=feather, crop=crop, on_step=steps
        )
        done += len(scene)
        steps(1, 1)
    return result


def _check_background(inactivation: Tensor, scenes: Sequence[Sequence[int]], grow: int) -> None:
    """Refuse masks that cover all of a shot, before any shot is filled."""
    for scene in scenes:
        if any((grow_mask(inactivation[t : t + 1], grow) <= HIDDEN_ABOVE).any() for t in scene):
            continue
        how = f", {'grown' if grow > 0 else 'shrunk'} by {abs(grow)} pixels," if grow else ""
        where = "the clip" if len(scenes) == 1 else f"frames {ranges(scene)}, a shot of its own"
        raise MaskError(
            f"The masks{how} cover every pixel of {where}, so there is nothing to fill from. Only the object may be "
            "white: invert the masks if they are the wrong way round, or let them grow less."
        )


def remove_from_shot(
    frames: Tensor,
    inactivation: Tensor,
    backbone: Backbone,
    *,
    grow: int = 4,
    feather: int = 3,
    crop: bool = True,
    on_step: OnStep = ignore,
) -> Tensor:
    """As :func:`remove`, of frames that are of one shot, with masks of their length and size on their device."""
    boxes, any_hole = _reach(inactivation, grow, feather, on_step)
    if not any_hole:
        return frames
    size = (frames.shape[2], frames.shape[3])
    track = choose_window(boxes, size, backbone.facts) if crop else whole_frame(frames)
    hole, alpha = (inactivation.new_empty(len(frames), 1, *track.size) for _ in range(2))
    for t in range(len(frames)):
        on_step(0, 1)
        edges = soft_edges(inactivation[t : t + 1], grow, feather)
        hole[t], alpha[t] = (track.at(t).cut(edge)[0] for edge in edges)
    window = frames if track.size == size else track.cut(frames)
    bright = exposure(frames, on_step=on_step)
    filled = run_at_its_size(evened(window, bright), hole, backbone, on_step)
    if bright is not None:
        filled = filled.mul(bright.view(-1, 1, 1, 1)).clamp(0, 1)
    result = frames.clone()
    for t in range(len(frames)):  # frame by frame: a clip's worth of temporaries is what long clips fail on
        on_step(1, 1)
        of_frame = track.at(t)
        of_frame.put(
            result[t : t + 1], paste_back(of_frame.cut(frames[t : t + 1]), filled[t : t + 1], alpha[t : t + 1])
        )
    return result


def _reach(inactivation: Tensor, grow: int, feather: int, on_step: OnStep) -> tuple[Tensor, bool]:
    """Return the boxes int64 (T, 4) of what is shown of the fill, as target_boxes does, and whether there is a hole."""
    boxes, any_hole = [], False
    for mask in inactivation:
        on_step(0, 1)
        grown, alpha = soft_edges(mask[None], grow, feather)
        boxes.append(target_boxes(alpha))
        any_hole = any_hole or bool((grown > 0).any())
    return torch.cat(boxes), any_hole


def soft_edges(inactivation: Tensor, grow: int, feather: int) -> tuple[Tensor, Tensor]:
    """Return the grown map and the alpha that the fill is shown with, both (T, 1, H, W).

    Both are 0 beyond the reach of the map's positive pixels, so only the part around these is worked on.
    """
    grown, alpha = torch.zeros_like(inactivation), torch.zeros_like(inactivation)
    anywhere = (inactivation > 0).any(0)[0]
    if anywhere.any():
        rows, columns = extent(anywhere, max(grow, 0) + feather + 1)
        grown[..., rows, columns] = part = grow_mask(inactivation[..., rows, columns], grow)
        alpha[..., rows, columns] = feather_alpha((part / SHOWN_WHOLE_FROM).clamp(max=1), feather)
    return grown, alpha


def choose_window(boxes: Tensor, size: tuple[int, int], facts: BackboneFacts) -> CropTrack:
    """The window that follows what is filled, as the backbone wants it, or the whole frame.

    Args:
        boxes: int64 (T, 4), of :func:`ciri.crop_track.target_boxes`.
        size: (H, W) of the frames.
        facts: of the backbone.
    """
    least, needs = facts.least_window, as_pair(facts.needs_divisible_by)
    if facts.fixed_size is None:
        track = follow_target(boxes, size, multiple=(max(16, needs[0]), max(16, needs[1])), minimum=least)
    else:
        aspect = facts.fixed_size[0] / facts.fixed_size[1]
        track = follow_target(boxes, size, multiple=1, minimum=least, aspect=aspect)
    saved = track.size[0] * track.size[1] <= WORTHWHILE * size[0] * size[1]
    return track if saved else CropTrack(size, torch.zeros(len(boxes), 2, dtype=torch.int64))


def run_at_its_size(window: Tensor, hole: Tensor, backbone: Backbone, on_step: OnStep = ignore) -> Tensor:
    """Bring a window (T, 3, h, w) and its hole to a size that the backbone takes, run it, and come back.

    A backbone of one fixed size gets the window scaled to it; the others get it padded.
    """
    fixed = backbone.facts.fixed_size
    if fixed is None:
        padded, size = pad_to_multiple(window, backbone.facts.needs_divisible_by)
        padded_hole, _ = pad_to_multiple(hole, backbone.facts.needs_divisible_by)
        return unpad(backbone.inpaint(padded, padded_hole, on_step=on_step), size).to(window.device)
    if window.shape[2:] == fixed:
        return backbone.inpaint(window, hole, on_step=on_step).to(window.device)
    filled = backbone.inpaint(_resize(window, fixed), _resize(hole, fixed), on_step=on_step)
    return _resize(filled.to(window.device), (window.shape[2], window.shape[3]))


def _resize(clip: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (T, C, H, W) frame by frame: antialiasing needs buffers of several times what it works on."""
    resized = [F.interpolate(f[None], size, mode="bicubic", align_corners=False, antialias=True) for f in clip]
    return torch.cat(resized).clamp(0, 1)


def whole_frame(frames: Tensor) -> CropTrack:
    """The window that is the frame itself."""
    return CropTrack((frames.shape[2], frames.shape[3]), torch.zeros(len(frames), 2, dtype=torch.int64))
