"""Everything the propagator is trained on, decoded once and kept as bytes on the training device.

Three kinds of material: scenes (clips and stills), annotated tracks (a real object's mask in some frames of a
scene), and sprites (RGBA objects, still or moving) to paste.

Dimensions: n frames of all scenes together, h w pixels, s side of a sprite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.errors import TrainingError
from ciri.training.data import Clip, Library, read_still, resize_to_cover
from ciri.training.located import Placement

Item = TypeVar("Item")

#: Side of a sprite and the part of it that the object fills: a margin lets deformations push outwards.
SPRITE, FILLED = 192, 0.84
#: An annotated mask below so many pixels (of 432x240) is no start for a track.
SMALLEST = 60


@dataclass
class Bank:
    """Decoded material on the device.

    Attributes:
        frames: uint8 (n, 3, h, w), the frames of all clips, then the stills.
        clips: (first, length) of every clip in ``frames``.
        stills: index in ``frames`` of every still.
        masks: uint8 (m, h, w), the masks of the annotated tracks.
        tracks: per annotated track its indices into ``frames`` and those into ``masks``, equally many.
        sprites: uint8 (p, 4, s, s), RGBA, colour multiplied by alpha.
        casts: (first, length) of every object in ``sprites``.
    """

    frames: Tensor
    clips: list[tuple[int, int]]
    stills: list[int]
    masks: Tensor
    tracks: list[tuple[list[int], list[int]]]
    sprites: Tensor
    casts: list[tuple[int, int]]
    skipped: list[str] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        return int(self.frames.shape[-2]), int(self.frames.shape[-1])


def load_bank(
    library: Library,
    placements: Sequence[Placement],
    *,
    height: int,
    width: int,
    device: torch.device | str,
    workers: int = 8,
    clip_frames: int | None = None,
) -> Bank:
    """Decode a library with several threads.

    Args:
        library: what to read; its unreadable files are skipped and named in ``Bank.skipped``.
        placements: objects found in their source pictures (see ciri.training.located).
        height, width: the size of every frame; divisible by 16.
        device: where the bytes are kept.
        workers: decoding threads.
        clip_frames: read at most so many frames of each clip.

    Raises:
        TrainingError: not enough to train on.
    """
    skipped = list(library.skipped)
    shapes: dict[str, tuple[int, int]] = {}

    def fit(name: str, images: np.ndarray) -> np.ndarray:
        shapes[name] = (images.shape[1], images.shape[2])
        return resize_to_cover(images, height, width)

    clips = _map(library.clips, lambda c: fit(c.name, c.frames(clip_frames)), workers, skipped)
    stills = _map(library.stills, lambda f: fit(f.stem, read_still(f)[None]), workers, skipped)
    cutouts = _map(library.cutouts, lambda c: c.images(), workers, skipped)
    if not (clips or stills) or not (cutouts or any(clip.labels for clip, _ in clips)):
        raise TrainingError(
            f"The data holds {len(clips)} clips, {len(stills)} stills and {len(cutouts)} objects; training needs "
            "scenes and objects (or clips with annotations)."
        )
    frames, spans = _stack([images for _, images in clips + stills], device)
    first_still = len(clips)
    where = {clip.name: spans[i] for i, (clip, _) in enumerate(clips)}
    where |= {file.stem: spans[first_still + i] for i, (file, _) in enumerate(stills)}

    annotated = _annotations(clips, where, (height, width), skipped)
    annotated += _placed(placements, dict((c.name, images) for c, images in cutouts), where, shapes, (height, width))
    sprites = [_sprites(images) for _, images in cutouts] or [_lift(frames, a) for a in annotated[:200]]
    if not sprites:
        raise TrainingError(
            f"No annotation of the {len(clips)} clips shows an object of {SMALLEST} pixels at {width}x{height}, "
            "and there are no cut-outs; training needs objects. Give clips with larger ones, or a larger --size."
        )
    masks, mask_spans = _stack([m for _, m in annotated] or [np.zeros((1, height, width), np.uint8)], device)
    cast, cast_spans = _stack(sprites, device)
    tracks = [(index, list(range(a, a + n))) for (index, _), (a, n) in zip(annotated, mask_spans, strict=False)]
    return Bank(
        frames, spans[:first_still], [a for a, _ in spans[first_still:]], masks, tracks, cast, cast_spans, skipped
    )


def _map(
    items: Sequence[Item], load: Callable[[Item], np.ndarray], workers: int, skipped: list[str]
) -> list[tuple[Item, np.ndarray]]:
    """Load with threads (OpenCV decodes outside the interpreter lock); what fails is noted and left out."""

    def attempt(item: Item) -> np.ndarray | str:
        try:
            return load(item)
        except (TrainingError, OSError, cv2.error) as error:
            return str(error)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        loaded = list(zip(items, pool.map(attempt, items), strict=True))
    skipped += [result for _, result in loaded if isinstance(result, str)]
    return [(item, result) for item, result in loaded if not isinstance(result, str)]


def _stack(groups: Sequence[np.ndarray], device: torch.device | str) -> tuple[Tensor, list[tuple[int, int]]]:
    """Concatenate (t, h, w[, c]) groups on the device, channels first; return it and each group's (first, length)."""
    total = sum(len(g) for g in groups)
    shape = groups[0].shape[1:]
    shape = (shape[2], *shape[:2]) if len(shape) == 3 else shape
    out = torch.empty((total, *shape), dtype=torch.uint8, device=device)
    spans, at = [], 0
    for group in groups:
        part = torch.from_numpy(np.ascontiguousarray(group)).to(device)
        out[at : at + len(group)] = part.permute(0, 3, 1, 2) if part.ndim == 4 else part
        spans.append((at, len(group)))
        at += len(group)
    return out, spans


def _annotations(
    clips: Sequence[tuple[Clip, np.ndarray]],
    where: dict[str, tuple[int, int]],
    size: tuple[int, int],
    skipped: list[str],
) -> list[tuple[list[int], np.ndarray]]:
    """Tracks of the annotated clips (DAVIS, YouTube-VOS, OVIS): one per object, from its first visible frame on.

    Where only some frames are annotated (YouTube-VOS with all its frames), a track has these. A clip whose annotations
    cannot be used stays as background, and is noted in ``skipped``.
    """
    found = []
    for clip, images in clips:
        try:
            annotated = clip.label_masks(len(images))
        except TrainingError as error:
            skipped.append(str(error))
            continue
        if annotated is None:
            continue
        at, labels = annotated
        for number in range(1, int(labels.max()) + 1):
            mask = resize_to_cover(((labels == number) * np.uint8(255))[..., None], *size)
            found += _track(where[clip.name], at, mask.reshape(len(at), *size))
    return found


def _placed(
    placements: Sequence[Placement],
    cutouts: dict[str, np.ndarray],
    where: dict[str, tuple[int, int]],
    shapes: dict[str, tuple[int, int]],
    size: tuple[int, int],
) -> list[tuple[list[int], np.ndarray]]:
    """Tracks of objects that were found in their source pictures, whose own sizes are ``shapes``."""
    found = []
    for place in placements:
        if place.cutout not in cutouts or place.picture not in where:
            continue
        kept = [(f, image) for f, image in zip(place.frames, cutouts[place.cutout], strict=False)]
        kept = [(f, image) for f, image in kept if 0 <= f < where[place.picture][1]]
        if not kept:
            continue
        masks = np.stack([place.mask(image[..., 3], *shapes[place.picture]) for _, image in kept])
        masks = resize_to_cover(masks[..., None], *size).reshape(len(kept), *size)
        found += _track(where[place.picture], [f for f, _ in kept], masks)
    return found


def _track(span: tuple[int, int], frames: Sequence[int], masks: np.ndarray) -> list[tuple[list[int], np.ndarray]]:
    """One annotated track from its first visible frame on; none if the object is hardly to be seen."""
    areas = (masks > 127).sum((1, 2))
    if not (areas >= SMALLEST).any():
        return []
    start = int(np.argmax(areas >= SMALLEST))
    return [([span[0] + f for f in frames[start:]], masks[start:])]


def _sprites(images: np.ndarray) -> np.ndarray:
    """Centre RGBA images (t, h, w, 4) in squares, colour multiplied by alpha."""
    h, w = images.shape[1:3]
    scale = SPRITE * FILLED / max(h, w)
    new_h, new_w = max(1, round(h * scale)), max(1, round(w * scale))
    out = np.zeros((len(images), SPRITE, SPRITE, 4), np.uint8)
    y, x = (SPRITE - new_h) // 2, (SPRITE - new_w) // 2
    for index, image in enumerate(images.astype(np.float32)):
        image[..., :3] *= image[..., 3:] / 255
        out[index, y : y + new_h, x : x + new_w] = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_AREA)
    return out


def _lift(frames: Tensor, track: tuple[list[int], np.ndarray]) -> np.ndarray:
    """Cut an annotated object out of its clip, for data sets that bring no cut-outs."""
    indices, masks = track[0][:14], track[1][:14]
    images = frames[indices].permute(0, 2, 3, 1).cpu().numpy()
    rows, columns = (np.flatnonzero(masks.max(0).any(axis)) for axis in (1, 0))
    window = np.s_[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _sprites(np.concatenate([images[window], masks[window][..., None]], -1))
