"""Find cut-out objects in the very pictures they were cut from: that turns them into annotated images and clips.

Compositing alone teaches a network what pasted edges look like. Where the data pack also holds the picture that
an object comes from, its alpha laid back in place is a mask of a real object in its real surroundings. Placements
are found once by masked template matching and kept in ``located.json`` beside the data; a poor match is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from ciri.errors import TrainingError
from ciri.progress import OnStep, ignore
from ciri.replacing import replacing
from ciri.training.data import Clip, CutOut, Library, manifest, read_still

#: Masked correlation below which a placement is not believed (right ones are above 0.97, measured on the pack).
BELIEVED = 0.95
FILE = "located.json"
#: Matched is the middle of the object only: the picture may have been cropped since.
CORE_MARGIN = 0.28


@dataclass(frozen=True)
class Placement:
    """Where an object lies in a picture.

    Attributes:
        cutout: name of the object.
        picture: name of the still's file, or of the clip.
        frames: picture's frame for each of the object's images (a single 0 for a still); -1 = not found there.
        scale: picture pixels per cut-out pixel.
        x, y: left and top of the cut-out in the picture, pixels; negative where the picture shows less of it.
        score: correlation under the alpha, at most 1.
    """

    cutout: str
    picture: str
    frames: tuple[int, ...]
    scale: float
    x: int
    y: int
    score: float

    def mask(self, alpha: np.ndarray, height: int, width: int) -> np.ndarray:
        """Lay the cut-out's alpha uint8 (h, w) back into a picture: uint8 (height, width)."""
        h, w = (max(1, round(side * self.scale)) for side in alpha.shape)
        small = cv2.resize(alpha, (w, h), interpolation=cv2.INTER_AREA if self.scale < 1 else cv2.INTER_LINEAR)
        mask = np.zeros((height, width), np.uint8)
        top, left = max(self.y, 0), max(self.x, 0)
        bottom, right = min(self.y + h, height), min(self.x + w, width)
        if top < bottom and left < right:
            mask[top:bottom, left:right] = small[top - self.y : bottom - self.y, left - self.x : right - self.x]
        return mask


def locate(library: Library, root: Path, *, on_step: OnStep = ignore) -> list[Placement]:
    """Find what can be found and write ``located.json`` into the data folder.

    Raises:
        OSError: nothing can be written there, which is known before the search.
    """
    with replacing(root / FILE) as part:
        found = _located(library, root, on_step)
        part.write_text(json.dumps([asdict(p) for p in found], indent=0) + "\n")
    return found


def _located(library: Library, root: Path, on_step: OnStep) -> list[Placement]:
    stills = {file.stem: file for file in library.stills}
    sources = _sources(root)
    found: list[Placement] = []
    for done, cutout in enumerate(library.cutouts):
        try:
            images = cutout.images()
            if len(images) == 1 and cutout.name in stills:
                picture = read_still(stills[cutout.name])
                match = _search(images[0], picture[None])
                found += [Placement(cutout.name, cutout.name, (0,), *match[1:])]
            elif len(images) > 1:
                source = sources.get(cutout.name, "")
                clips = [c for c in library.clips if _same_source(source, sources.get(c.name, ""))]
                found += _in_clips(cutout, images, clips)
        except TrainingError as error:
            library.skipped.append(str(error))
        on_step(done + 1, len(library.cutouts))
    return [p for p in found if p.score >= BELIEVED]


def read_placements(root: Path) -> list[Placement]:
    """Read ``located.json``; empty if there is none.

    Raises:
        TrainingError: it is not what :func:`locate` writes.
    """
    file = root / FILE
    try:
        entries: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
        return [Placement(**{**entry, "frames": tuple(entry["frames"])}) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{file} is damaged; 'python -m ciri train locate --data {root}' makes it again."
        ) from error


def together(kept: Library, held: Library, placements: Sequence[Placement]) -> tuple[Library, Library]:
    """Bring every located object to the side of the split that its picture is on."""
    held_pictures = {clip.name for clip in held.clips} | {file.stem for file in held.stills}
    side = {p.cutout: p.picture in held_pictures for p in placements}

    def objects(library: Library, other: Library, hold: bool) -> list[CutOut]:
        stays = [c for c in library.cutouts if side.get(c.name, hold) == hold]
        names = {c.name for c in stays}
        return stays + [c for c in other.cutouts if side.get(c.name) == hold and c.name not in names]

    return (
        Library(kept.clips, kept.stills, objects(kept, held, False), kept.skipped),
        Library(held.clips, held.stills, objects(held, kept, True), held.skipped),
    )


def _sources(root: Path) -> dict[str, str]:
    """Where each clip and each moving object came from, by name, as the manifests say."""
    sources = {}
    for folder, name in (("video", "file"), ("objects/seq", "name")):
        for entry in manifest(root, folder, name, []):
            sources[PurePosixPath(entry[name]).stem] = str(entry.get("source", ""))
    return sources


def _same_source(cutout: str, clip: str) -> bool:
    stem = PurePosixPath(cutout.split(" ")[-1] if "/" not in cutout else cutout).stem
    return bool(stem) and stem in clip


def _in_clips(cutout: CutOut, images: np.ndarray, clips: Sequence[Clip]) -> list[Placement]:
    """Place a moving object in the one clip that fits best: its window is fixed, so only the frame varies."""
    best: tuple[float, Clip, tuple[int, float, int, int, float]] | None = None
    for clip in clips:
        frames = clip.frames()
        match = _search(images[0], frames)
        if best is None or match[-1] > best[0]:
            best = (match[-1], clip, match)
    if best is None or best[0] < BELIEVED:
        return []
    _, clip, (first, scale, x, y, score) = best
    frames, indices = clip.frames(), [first]
    for image in images[1:]:
        start = max(indices)
        errors = [_score_at(image, frame, scale, x, y) for frame in frames[start + 1 : start + 16]]
        at = int(np.argmax(errors)) if errors else 0
        indices.append(start + 1 + at if errors and errors[at] >= BELIEVED else -1)
    return [Placement(cutout.name, clip.name, tuple(indices), scale, x, y, score)]


def _search(cutout: np.ndarray, pictures: np.ndarray) -> tuple[int, float, int, int, float]:
    """Return (picture, scale, x, y, score) of the best placement: at a quarter of the size, then finer."""
    longest = max(cutout.shape[:2])
    scales = [side / longest for side in np.geomspace(40, 1.7 * max(pictures.shape[1:3]), 30)]
    quarter = [cv2.resize(p, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA) for p in pictures]

    def best(options: Iterable[tuple[int, float]]) -> tuple[int, float]:
        return max(options, key=lambda option: _match(cutout, quarter[option[0]], 0.25 * option[1])[0])

    step = max(1, len(pictures) // 10)
    picture, scale = best((i, s) for i in range(0, len(pictures), step) for s in scales)
    if step > 1:
        picture, scale = best((i, scale) for i in range(len(pictures)))
    for size, reach in ((0.5, 0.09), (1.0, 0.025)):
        image = cv2.resize(pictures[picture], None, fx=size, fy=size, interpolation=cv2.INTER_AREA)
        near = [scale * f for f in np.linspace(1 - reach, 1 + reach, 11)]
        scale = float(max(near, key=lambda s: _match(cutout, image, size * s)[0]))
    score, x, y = _match(cutout, pictures[picture], scale)
    return picture, scale, x, y, float(score)


def _match(cutout: np.ndarray, picture: np.ndarray, scale: float) -> tuple[float, int, int]:
    """Return (score, x, y) of the best place of the cut-out's core at one scale; -1 where it does not fit."""
    h, w = (round(side * scale) for side in cutout.shape[:2])
    if h < 12 or w < 12:
        return -1.0, 0, 0
    top, left = int(h * CORE_MARGIN), int(w * CORE_MARGIN)
    core = cv2.resize(cutout, (w, h), interpolation=cv2.INTER_AREA)[top : h - top, left : w - left]
    if core.shape[0] > picture.shape[0] or core.shape[1] > picture.shape[1]:
        return -1.0, 0, 0
    # well inside the object only: its soft edge is mixed with black
    inside = cv2.erode((core[..., 3] > 250).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.float32)
    if inside.sum() < 60:
        return -1.0, 0, 0
    template, image = (np.ascontiguousarray(a[..., :3]).astype(np.float32) for a in (core, picture))
    scores = cv2.matchTemplate(image, template, cv2.TM_CCOEFF_NORMED, mask=np.dstack([inside] * 3))
    scores[~np.isfinite(scores) | (scores > 1.001)] = -1
    _, best, _, place = cv2.minMaxLoc(scores)
    return best, place[0] - left, place[1] - top


def _score_at(cutout: np.ndarray, picture: np.ndarray, scale: float, x: int, y: int) -> float:
    """Masked correlation of the cut-out at a known place."""
    h, w = (round(side * scale) for side in cutout.shape[:2])
    top, left = y + int(h * CORE_MARGIN), x + int(w * CORE_MARGIN)
    there = picture[top : 2 * y + h - top, left : 2 * x + w - left]
    return _match(cutout, there, scale)[0]
