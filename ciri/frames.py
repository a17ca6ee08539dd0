"""Clips and masks: what is accepted, padding, parts, and pasting back.

Dimensions: t frames, c channels, h w pixels, k annotated masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.errors import ClipError, MaskError
from ciri.numbering import number

#: A mask and a clip have "the same" aspect ratio below this relative difference (a few rows of rounding).
ASPECT_TOLERANCE = 0.02

#: Rows and columns of a part of a picture.
Box = tuple[slice, slice]

#: What to do about a mask without a target.
PAINT = "Paint the object white on one frame (in ComfyUI: right-click LoadImage, 'Open in MaskEditor')."


# --------------------------------------------------------------------------------------------- checking


def check_clip(frames: Tensor, *, what: str = "clip") -> Tensor:
    """Return the clip as float32 (T, 3, H, W) in [0, 1].

    Args:
        frames: floating (T, 3 | 4, H, W); a fourth (alpha) channel is dropped, values are clamped to [0, 1].
        what: how the message calls the clip ("inpainted clip", "reference", ...).

    Raises:
        ClipError: another shape or type, no frame, or a not-a-number (the message names the frame).
    """
    if frames.ndim != 4 or frames.shape[1] not in (3, 4):
        raise ClipError(
            f"The {what} has shape {tuple(frames.shape)}; expected (frames, 3 or 4 channels, height, width)."
        )
    if not frames.is_floating_point():
        raise ClipError(f"The {what} holds {frames.dtype} values; expected floating-point values in [0, 1].")
    if frames.shape[0] == 0 or 0 in frames.shape[2:]:
        raise ClipError(f"The {what} is empty (shape {tuple(frames.shape)}); load a video with at least one frame.")
    frames = frames[:, :3].float()
    # frame by frame: a mask of the whole clip would cost a quarter of its memory again
    for index, frame in enumerate(frames):
        if not torch.isfinite(frame).all():
            raise ClipError(
                f"Frame {number(index)} of the {what} holds values that are not numbers (NaN or infinite); "
                "check the node or the program that made the clip."
            )
    low, high = torch.aminmax(frames)
    return frames.clamp(0, 1) if low < 0 or high > 1 else frames


def check_masks(masks: Tensor, height: int, width: int, *, what: str = "mask") -> tuple[Tensor, list[str]]:
    """Return masks as float32 (K, 1, height, width) in [0, 1], and notes on what had to be changed.

    A mask of another size is resized if its aspect ratio is the clip's. Empty masks pass: see
    :func:`check_annotation` for masks that have to show a target.

    Args:
        masks: floating or bool (H, W), (K, H, W) or (K, 1, H, W).
        height, width: the clip's size in pixels.
        what: how the message calls the mask ("first mask", "inactivation mask", ...).

    Raises:
        MaskError: another shape, another aspect ratio, not-a-number, or the 64x64 zero mask that ComfyUI's
            LoadImage gives for an image without alpha.
    """
    if masks.ndim == 2:
        masks = masks[None, None]
    elif masks.ndim == 3:
        masks = masks[:, None]
    if masks.ndim != 4 or masks.shape[1] != 1 or 0 in masks.shape:
        raise MaskError(f"The {what} has shape {tuple(masks.shape)}; expected (masks, height, width), none of them 0.")
    masks = masks.float()
    if not torch.isfinite(masks).all():
        bad = [i for i, mask in enumerate(masks) if not torch.isfinite(mask).all()]
        raise MaskError(f"The {what} holds values that are not numbers (NaN or infinite) at index {bad[0]}.")
    masks = masks.clamp(0, 1)
    got_h, got_w = masks.shape[-2:]
    if (got_h, got_w) == (height, width):
        return masks, []
    if (got_h, got_w) == (64, 64) and not masks.any():
        raise MaskError(
            f"The {what} is the empty 64x64 mask that LoadImage gives for an image on which nothing was painted, "
            f"and the frames are {width}x{height}. {PAINT}"
        )
    if abs((got_w / got_h) / (width / height) - 1) > ASPECT_TOLERANCE:
        raise MaskError(
            f"The {what} is {got_w}x{got_h} but the frames are {width}x{height}: the aspect ratios differ, so the mask "
            "cannot belong to this clip. Paint it on a frame of this very clip."
        )
    resized = F.interpolate(masks, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
    return resized.clamp(0, 1), [f"The {what} was resized from {got_w}x{got_h} to {width}x{height}."]


def check_annotation(masks: Tensor, *, what: str = "first mask") -> None:
    """Refuse annotated masks that show no target, or nothing but target.

    Args:
        masks: float32 (K, 1, H, W) in [0, 1].

    Raises:
        MaskError: a mask without a pixel above 0.5, or without a pixel at or below it.
    """
    for index, mask in enumerate(masks):
        name = what if len(masks) == 1 else f"{what} {index}"
        covered = int((mask > 0.5).sum())
        if covered == 0:
            raise MaskError(f"The {name} is empty (no pixel above 0.5). {PAINT}")
        if covered == mask.numel():
            raise MaskError(f"The {name} covers the whole frame, so there is no background to fill from. {PAINT}")


def check_key_frames(key_frames: Sequence[int], masks: int, frames: int, *, repeated: bool = False) -> list[int]:
    """Return the frame index of every annotated mask, negative ones counted from the end.

    Args:
        key_frames: the frame number of each mask.
        masks, frames: how many there are.
        repeated: whether a frame may have several masks.

    Raises:
        MaskError: another count than masks, an index outside the clip, or one used twice.
    """
    if len(key_frames) != masks:
        raise MaskError(f"{masks} annotated masks but {len(key_frames)} frame numbers; give one number per mask.")
    indices = [int(k) + frames if int(k) < 0 else int(k) for k in key_frames]
    for given, index in zip(key_frames, indices, strict=True):
        if not 0 <= index < frames:
            told = given if given < 0 else number(given)
            raise MaskError(
                f"Frame number {told} is outside the clip; it has frames {number(0)} to {number(frames - 1)}."
            )
    if not repeated and len(set(indices)) != len(indices):
        raise MaskError(
            f"Frame numbers {[number(index) for index in sorted(indices)]}: each frame can be annotated once only."
        )
    return indices


# --------------------------------------------------------------------------------------------- padding


class Multiple(NamedTuple):
    """What the sides of a picture have to be multiples of, and what is shown in the rows and columns that are added.

    Attributes:
        rows, columns: the multiples.
        mirrored: the picture mirrored at its edge, edge row included; otherwise the edge is repeated.
    """

    rows: int
    columns: int
    mirrored: bool = False


def pad_to_multiple(x: Tensor, multiple: int | tuple[int, int] | Multiple) -> tuple[Tensor, tuple[int, int]]:
    """Pad (..., H, W) at the bottom and the right to multiples (one, or one each); return it and (H, W)."""
    h, w = x.shape[-2:]
    rows, columns = as_pair(multiple)
    pad_h, pad_w = -h % rows, -w % columns
    if not (pad_h or pad_w):
        return x, (h, w)
    if isinstance(multiple, Multiple) and multiple.mirrored:
        down, right = _mirrored(h, h + pad_h).to(x.device), _mirrored(w, w + pad_w).to(x.device)
        return x.index_select(-2, down).index_select(-1, right), (h, w)
    # replicate, not reflect: reflection needs the padding to be smaller than the image
    flat = x.reshape(-1, 1, h, w)
    return F.pad(flat, (0, pad_w, 0, pad_h), mode="replicate").reshape(*x.shape[:-2], h + pad_h, w + pad_w), (h, w)


def _mirrored(size: int, wanted: int) -> Tensor:
    """0, 1, ..., size - 1, size - 1, ..., 1, 0, 0, 1, ...: so many indices, for pictures of any size."""
    there = torch.arange(size)
    return torch.cat([there, there.flip(0)]).repeat(-(-wanted // (2 * size)))[:wanted]


def as_pair(value: int | tuple[int, int] | Multiple) -> tuple[int, int]:
    """One number for both height and width, or one for each."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def unpad(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo :func:`pad_to_multiple`."""
    return x[..., : size[0], : size[1]]


# --------------------------------------------------------------------------------------------- parts


def extent(hit: Tensor, margin: int = 0, multiple: int = 1) -> Box:
    """Return the rows and columns that hold all true pixels, and so many more around them, within the picture.

    Args:
        hit: bool (H, W), not all of it false.
        margin: pixels around.
        multiple: both are widened to multiples of this; the picture's sides have to be such.
    """
    sides = []
    for axis, side in enumerate(hit.shape):
        places = torch.nonzero(hit.any(1 - axis)).flatten()
        start = max(int(places[0]) - margin, 0) // multiple * multiple
        sides.append(slice(start, min(-(-(int(places[-1]) + 1 + margin) // multiple) * multiple, side)))
    return sides[0], sides[1]


# --------------------------------------------------------------------------------------------- pasting back


def grow_mask(masks: Tensor, pixels: int) -> Tensor:
    """Dilate (T, 1, H, W) by an octagon of the given radius; negative erodes. Soft values keep their grey levels."""
    if pixels == 0:
        return masks
    grown = masks if pixels > 0 else 1 - masks
    for step in range(abs(pixels)):
        # alternating square and cross approximates a disc; one pixel a step keeps every kernel 3 x 3
        across = widen(grown, 3)
        grown = widen(across, 2) if step % 2 else torch.maximum(across, widen(grown, 2))
    return grown if pixels > 0 else 1 - grown


def widen(x: Tensor, dim: int) -> Tensor:
    """Return the maximum over each value and its two neighbours along an axis (20 x as fast as max_pool2d)."""
    size = x.shape[dim]
    if size == 1:
        return x
    pairs = torch.maximum(x.narrow(dim, 0, size - 1), x.narrow(dim, 1, size - 1))
    first, last = pairs.narrow(dim, 0, 1), pairs.narrow(dim, size - 2, 1)
    inner = torch.maximum(pairs.narrow(dim, 0, size - 2), pairs.narrow(dim, 1, size - 2))
    return torch.cat([first, inner, last], dim)


def feather_alpha(masks: Tensor, feather: int) -> Tensor:
    """Return (T, 1, H, W): 1 inside the mask, falling to exactly 0 at ``feather`` + 1 pixels outside it.

    The fall is outward only, so that no target pixel shines through at the seam.

    Args:
        masks: (T, 1, H, W) in [0, 1].
        feather: width of the fall in pixels; 0 returns the masks.
    """
    alpha = masks
    for step in range(1, feather + 1):
        masks = grow_mask(masks, 1)
        alpha = torch.maximum(alpha, masks * (1 - step / (feather + 1)))
    return alpha


def paste_back(frames: Tensor, filled: Tensor, alpha: Tensor) -> Tensor:
    """Blend the filled pixels over the frames; where alpha is 0 the result equals the input bit for bit.

    Args:
        frames: float32 (T, 3, H, W), the input.
        filled: float32 (T, 3, H, W), the backbone's output.
        alpha: float32 (T, 1, H, W) in [0, 1].
    """
    # torch.where, not arithmetic: x + 0 * (y - x) is not x when y is infinite, and -0.0 would turn into 0.0
    return torch.where(alpha > 0, torch.lerp(frames, filled, alpha), frames)
