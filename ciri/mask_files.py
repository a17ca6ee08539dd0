"""Reads masks as people make them: white or transparent, numbered labels, coloured annotations, folders and videos.

Masks are float32 (T, 1, H, W) in [0, 1], 1 = target.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.errors import MediaError
from ciri.media import IMAGE_SUFFIXES, Clip, decode_image, image_files, read_clip

#: A greyscale mask whose brightest pixel is darker than this share of white holds label numbers, not grey levels.
_DARKEST_WHITE = 0.5


def _has_alpha(image: np.ndarray) -> bool:
    return image.ndim == 3 and image.shape[2] == 4


def read_mask(file: str | Path) -> tuple[Tensor, list[str]]:
    """Read one mask, float32 (H, W) in [0, 1], and notes on how it was understood.

    Transparent is the target where an image has transparent pixels (so ComfyUI's mask editor saves it), unless nothing
    but white is opaque: then that is. In an image without transparent pixels white is: grey levels are kept, label
    numbers (all values small) and coloured annotations count as 1 where they are not black.

    Raises:
        MediaError: no readable image.
    """
    file = Path(file)
    image = _decode_mask(file)
    return _understood(file, image, _alpha_is_target(image))


def _decode_mask(file: Path) -> np.ndarray:
    if file.is_dir():
        raise MediaError(
            f"{file} is a folder; expected one image in which the object is white, or transparent. A mask for every "
            "frame is given with --masks."
        )
    if not file.is_file():
        raise MediaError(f"{file} does not exist; expected an image in which the object is white, or transparent.")
    image = decode_image(file, cv2.IMREAD_UNCHANGED)
    return image if _has_alpha(image) else decode_image(file)


def _understood(file: Path, image: np.ndarray, alpha_is_target: bool) -> tuple[Tensor, list[str]]:
    """A decoded image as a mask, and notes: see :func:`read_mask`."""
    white = np.iinfo(image.dtype).max
    if _has_alpha(image):
        if image[..., 3].min() < white:
            alpha = torch.from_numpy(image[..., 3].astype(np.float32) / white)
            if not alpha_is_target:
                return 1 - alpha, []
            return alpha, [f"{file.name} shows nothing but white where it is opaque: that was taken as the object."]
        image = image[..., :3]
    if image.ndim == 3:
        if (image == image[..., :1]).all():
            image = image[..., 0]
        else:
            note = f"{file.name} is in colour: everything that is not black was taken as the object."
            return torch.from_numpy(image.any(2).astype(np.float32)), [note]
    brightest = int(image.max())
    if 0 < brightest < _DARKEST_WHITE * white:
        note = f"{file.name} holds values from 0 to {brightest}: everything above 0 was taken as the object."
        return torch.from_numpy((image > 0).astype(np.float32)), [note]
    return torch.from_numpy(image.astype(np.float32) / white), []


def _alpha_is_target(image: np.ndarray) -> bool:
    """Whether an image is a white shape on a transparent ground; under a painted hole the picture itself is kept."""
    if not _has_alpha(image):
        return False
    opaque = image[image[..., 3] > np.iinfo(image.dtype).max // 2]
    return 0 < len(opaque) < image[..., 0].size and bool((opaque[:, :3] == np.iinfo(image.dtype).max).all())


def read_masks(
    path: str | Path, *, start: int = 0, count: int | None = None, clip: Clip | None = None
) -> tuple[Tensor, list[str]]:
    """Read a mask for every frame, float32 (T, 1, H, W) in [0, 1], and notes on how they were understood.

    Args:
        path: a folder of numbered images, a video, or an image for a clip of one frame.
        start: skip this many masks.
        count: read at most this many (default: to the end).
        clip: what was read with this start and count. Masks that were made for this part alone, as the names, the
            numbers or the count of the files show, are not skipped.

    Raises:
        MediaError: as :func:`read_clip`.
    """
    path = Path(path)
    if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
        mask, said = read_mask(path)
        return mask[None, None], said
    if not path.is_dir():
        return _read_mask_video(path, start, count, clip)
    files, choice = _mask_files(image_files(path), start, count, clip)
    if not files:
        raise MediaError(f"{path} holds no mask for frame {start}.")
    masks, notes = read_alike(files)
    for file, mask in zip(files, masks, strict=True):
        if mask.shape != masks[0].shape:
            raise MediaError(f"{file} has another size than {files[0].name}; all masks of a clip must have one size.")
    return torch.stack(masks)[:, None], choice + notes


def read_alike(files: Sequence[Path]) -> tuple[list[Tensor], list[str]]:
    """Read masks of one clip, each float32 (H, W) in [0, 1], and notes on how the first was understood.

    Raises:
        MediaError: no readable image.
    """
    images = [_decode_mask(file) for file in files]
    # a wholly transparent image tells nothing by itself; the others show what is meant
    alpha_is_target = any(map(_alpha_is_target, images))
    read = [_understood(file, image, alpha_is_target) for file, image in zip(files, images, strict=True)]
    return [mask for mask, _ in read], read[0][1]


def _read_mask_video(path: Path, start: int, count: int | None, clip: Clip | None) -> tuple[Tensor, list[str]]:
    if clip is not None and start:
        frames = len(clip.frames)
        # one more than is needed shows whether the video is longer
        read = read_clip(path, count=frames + 1)
        if len(read.frames) == frames:
            notes = [f"The first mask of {path.name} was taken for frame {start}.", *read.notes]
            return read.frames.mean(1, keepdim=True), notes
    read = read_clip(path, start=start, count=count)
    return read.frames.mean(1, keepdim=True), read.notes


def _mask_files(files: list[Path], start: int, count: int | None, clip: Clip | None) -> tuple[list[Path], list[str]]:
    """The masks of a clip among those of a folder, and a note where that is a guess."""
    skipped = files[start:][:count]
    # as many as there are frames in the whole folder are the masks of these, whatever either are called
    if clip is None or len(files) == clip.total:
        return skipped, []
    named = {file.stem: file for file in files}
    if clip.names and all(name in named for name in clip.names):
        return [named[name] for name in clip.names], []
    if not start:
        return skipped, []
    # frames of a video have no other numbers than their places
    numbered = _numbered(files, start, len(clip.frames)) if clip.total is None else []
    # what begins with 1 may as well be the whole clip, by a tool that counts from there
    if numbered and _last_number(files[0]) != 1:
        return numbered[:count], []
    alone = len(files) == len(clip.frames)
    chosen = files if alone else skipped
    guessed = alone or bool(numbered)
    return chosen, [f"{chosen[0].name} was taken as the mask of frame {start}."] * (guessed and bool(chosen))


def _numbered(files: list[Path], start: int, frames: int) -> list[Path]:
    """The masks from the number ``start`` on, if these are numbered without a gap for so many frames; else none."""
    later = [file for file in files if _last_number(file) >= start]
    return later if [_last_number(file) for file in later[:frames]] == list(range(start, start + frames)) else []


def _last_number(file: Path) -> int:
    """The last number in a file's name, -1 where there is none."""
    found = re.findall(r"\d+", file.stem)
    return int(found[-1]) if found else -1
