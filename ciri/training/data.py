"""Data sets for training: background clips, still images, and objects to paste.

Four layouts are recognised in a folder: this project's data pack (``video/``, ``images/``, ``objects/`` with
manifests), DAVIS (``JPEGImages/480p``, ``Annotations/480p``), YouTube-VOS (``train/JPEGImages``) and OVIS
(``annotations*.json``). An unreadable file is skipped and counted; it never ends a training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np

from ciri.errors import TrainingError
from ciri.media import IMAGE_SUFFIXES, natural_order

Item = TypeVar("Item")


class Annotations(Protocol):
    """Object masks of a clip that are not image files."""

    def numbers(self, name: str) -> np.ndarray | None:
        """Object numbers uint8 (H, W), 0 = none, of the frame with that file name (without ending), if annotated."""
        ...


@dataclass(frozen=True)
class Clip:
    """A background clip: a video file, or a folder of images that may be annotated.

    Attributes:
        name: for messages.
        scene: clips of one scene never fall on both sides of a split.
        source: the video file or the folder.
        labels: folder of label images (0 = background) named like the frames, or annotations from elsewhere.
    """

    name: str
    scene: str
    source: Path
    labels: Path | Annotations | None = None

    def frames(self, limit: int | None = None) -> np.ndarray:
        """Return uint8 (T, H, W, 3), RGB; at most ``limit`` frames.

        Raises:
            TrainingError: no frame can be read.
        """
        found = _read_folder(self.source, limit) if self.source.is_dir() else _read_video(self.source, limit)
        if not found or any(f.shape != found[0].shape for f in found):
            raise TrainingError(f"No clip can be read from {self.source} ({len(found)} frames).")
        return np.stack(found)

    def label_masks(self, limit: int | None = None) -> tuple[list[int], np.ndarray] | None:
        """Return which of the first frames are annotated, and their object numbers uint8 (T', H, W); None: none is.

        A number means the same object in all frames.

        Raises:
            TrainingError: annotations that cannot be decoded, or that differ in size.
        """
        files = image_files(self.source)[:limit] if self.labels is not None else []
        pairs = self._numbers(files)
        if not pairs:
            return None
        if len({numbers.shape for _, numbers in pairs}) > 1:
            raise TrainingError(f"The annotations of clip {self.name} differ in size.")
        return [files.index(file) for file, _ in pairs], np.stack([numbers for _, numbers in pairs])

    def annotated_files(self) -> list[Path]:
        """The frames that are annotated, in order; nothing is read."""
        files = image_files(self.source) if self.labels is not None else []
        if not isinstance(self.labels, Path):
            return files
        names = {file.stem for file in image_files(self.labels)}
        return [file for file in files if file.stem in names]

    def annotated(self, files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
        """Return some of its annotated files: uint8 (T', H, W, 3), RGB, and their object numbers uint8 (T', H, W).

        Raises:
            TrainingError: there are none, a frame or its annotation cannot be read, or they differ in size.
        """
        pairs = [(read_still(file), numbers) for file, numbers in self._numbers(files)]
        if not pairs or any({image.shape[:2], numbers.shape} != {pairs[0][1].shape} for image, numbers in pairs):
            raise TrainingError(f"Clip {self.name} has no frames with annotations of the same size.")
        return np.stack([image for image, _ in pairs]), np.stack([numbers for _, numbers in pairs])

    def _numbers(self, files: Sequence[Path]) -> list[tuple[Path, np.ndarray]]:
        """Object numbers of those of the frames that have readable annotations."""
        if isinstance(self.labels, Path):
            wanted = {file.stem: file for file in files}
            # indexed PNG: OpenCV would turn the palette into colours, whose values still tell objects apart
            read = [
                (f.stem, cv2.imread(str(f), cv2.IMREAD_COLOR)) for f in image_files(self.labels) if f.stem in wanted
            ]
            found = {stem: image for stem, image in read if image is not None}
            return [(wanted[stem], n) for stem, n in zip(found, _colours_to_labels(list(found.values())), strict=True)]
        numbered = [(file, self.labels.numbers(file.stem)) for file in files] if self.labels else []
        return [(file, numbers) for file, numbers in numbered if numbers is not None]


@dataclass(frozen=True)
class CutOut:
    """An object on its own, RGBA: one image, or the frames of a moving, deforming object."""

    name: str
    files: tuple[Path, ...]

    def images(self) -> np.ndarray:
        """Return uint8 (T, h, w, 4), RGBA.

        Raises:
            TrainingError: an image is unreadable, has no alpha channel or more than 8 bits.
        """
        images: list[np.ndarray] = []
        for file in self.files:
            image = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
            if image is None or image.ndim != 3 or image.shape[2] != 4 or image.dtype != np.uint8:
                raise TrainingError(f"{file} is not a readable RGBA image of 8 bits.")
            images.append(image)
        if len({image.shape for image in images}) > 1:
            raise TrainingError(f"The images of object {self.name} differ in size; crop them with one window.")
        return np.stack(images)[..., [2, 1, 0, 3]]


@dataclass
class Library:
    """All that is available for training, and what had to be skipped."""

    clips: list[Clip] = field(default_factory=list)
    stills: list[Path] = field(default_factory=list)
    cutouts: list[CutOut] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def read(self, items: Sequence[Item], load: Callable[[Item], np.ndarray]) -> list[np.ndarray]:
        """Load every item that can be loaded; the others are noted in ``skipped``."""
        loaded = []
        for item in items:
            try:
                loaded.append(load(item))
            except (TrainingError, OSError, cv2.error) as error:
                self.skipped.append(str(error))
        return loaded

    def check_scenes(self) -> None:
        """Raise TrainingError: a single scene and no still, so that nothing is left to validate on."""
        scenes = {clip.scene for clip in self.clips}
        if not self.stills and len(scenes) < 2:
            raise TrainingError(
                f"The data shows a single scene ({', '.join(scenes)}); one is held back to validate on, so give two or "
                "more."
            )

    def split(self, every: int = 10) -> tuple[Library, Library]:
        """Return (training, held-back) libraries; every so-manyth scene, still and object is held back.

        What had to be skipped is told by the first of them.
        """
        scenes = sorted({clip.scene for clip in self.clips})
        held = set(scenes[:: max(every, 2)]) if len(scenes) > 1 else set()
        kept = Library(
            [c for c in self.clips if c.scene not in held], *_take(self, every, hold=False), list(self.skipped)
        )
        back = Library([c for c in self.clips if c.scene in held], *_take(self, every, hold=True))
        return kept, back


def _take(library: Library, every: int, *, hold: bool) -> tuple[list[Path], list[CutOut]]:
    """Stills and cut-outs of one side of the split; one that would be empty gets all."""

    def part(items: Sequence[Item]) -> list[Item]:
        return [item for i, item in enumerate(items) if (i % every == every // 2) == hold] or list(items)

    moving = [c for c in library.cutouts if len(c.files) > 1]
    still = [c for c in library.cutouts if len(c.files) == 1]
    return part(library.stills), [*part(moving), *part(still)]


def open_library(root: Path | str) -> Library:
    """Find the clips, stills and objects in a folder.

    Raises:
        TrainingError: the folder is missing or holds none of the known layouts.
    """
    root = Path(root)
    if not root.is_dir():
        raise TrainingError(f"The data folder {root} does not exist.")
    from ciri.training.ovis import open_ovis

    skipped: list[str] = []
    for layout in (_open_pack, _open_davis, open_ovis, _open_youtube_vos):
        library = layout(root)
        if library.clips or library.stills:
            return library
        skipped += library.skipped
    raise TrainingError(
        f"{root} holds no training data"
        + (f" ({len(skipped)} places were empty or unreadable; the first: {skipped[0].rstrip('.')})" if skipped else "")
        + ". Expected this project's pack (video/manifest.json), DAVIS (JPEGImages/480p/<clip>/*.jpg), OVIS "
        "(annotations_train.json and train/<clip>/*.jpg) or YouTube-VOS (train/JPEGImages/<clip>/*.jpg)."
    )


def manifest(root: Path, folder: str, name: str, skipped: list[str]) -> list[dict[str, Any]]:
    """Return the entries of a data pack's folder that hold a text under ``name``; others are noted in ``skipped``."""
    file = root / folder / "manifest.json"
    if not file.exists():
        return []
    try:
        found = list(json.loads(file.read_text()))
    except (ValueError, TypeError):
        skipped.append(f"{file} is not readable JSON, or no list.")
        return []
    named = [entry for entry in found if isinstance(entry, dict) and isinstance(entry.get(name), str)]
    if len(named) < len(found):
        skipped.append(f"{file} has {len(found) - len(named)} entries without {name!r}.")
    return named


def _open_pack(root: Path) -> Library:
    library = Library()

    def entries(folder: str, name: str = "file") -> list[dict[str, Any]]:
        return manifest(root, folder, name, library.skipped)

    def existing(file: Path) -> bool:
        if not file.exists():
            library.skipped.append(f"{file} is missing.")
        return file.exists()

    for entry in entries("video"):
        file = root / "video" / entry["file"]
        if existing(file):
            library.clips.append(Clip(file.stem, entry.get("scene", file.stem), file))
    library.stills = [file for e in entries("images") if existing(file := root / "images" / e["file"])]
    for entry in entries("objects/seq", "name"):
        files = image_files(root / "objects/seq" / entry["name"])
        if files:
            library.cutouts.append(CutOut(entry["name"], tuple(files)))
    for entry in entries("objects/still"):
        file = root / "objects/still" / entry["file"]
        if existing(file):
            library.cutouts.append(CutOut(file.stem, (file,)))
    return library


def _open_davis(root: Path) -> Library:
    return _clips_below(root, "JPEGImages/480p", "Annotations/480p")


def _open_youtube_vos(root: Path) -> Library:
    found = _clips_below(root, "train/JPEGImages", "train/Annotations")
    if found.clips:
        return found
    other = _clips_below(root, "JPEGImages", "Annotations")
    return Library(other.clips, skipped=found.skipped + other.skipped)


def _clips_below(root: Path, images: str, labels: str) -> Library:
    library = Library()
    if (root / images).is_dir():
        for folder in sorted(p for p in (root / images).iterdir() if p.is_dir()):
            annotations = root / labels / folder.name
            if image_files(folder):
                kept = annotations if annotations.is_dir() else None
                library.clips.append(Clip(folder.name, folder.name, folder, kept))
            else:
                library.skipped.append(f"{folder} holds no image.")
    return library


def image_files(folder: Path) -> list[Path]:
    """Images of a folder, ordered by the numbers in their names; empty if there is no such folder."""
    if not folder.is_dir():
        return []
    # names alone: to ask of each of a data set's files what it is takes minutes on a disk in the network
    found = [f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith("._")]
    return sorted(found, key=lambda file: (natural_order(file), file.name))


def read_still(file: Path) -> np.ndarray:
    """Return uint8 (H, W, 3), RGB.

    Raises:
        TrainingError: not a readable image.
    """
    image = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if image is None:
        raise TrainingError(f"{file} is not a readable image.")
    return np.ascontiguousarray(image[..., ::-1])


def resize_to_cover(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (T, H, W, C) so that it covers height x width with its aspect ratio kept, and cut the centre out."""
    old_h, old_w = images.shape[1:3]
    if (old_h, old_w) == (height, width):
        return images
    scale = max(height / old_h, width / old_w)
    size = (max(width, round(old_w * scale)), max(height, round(old_h * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = np.stack([cv2.resize(image, size, interpolation=how) for image in images])
    y, x = (size[1] - height) // 2, (size[0] - width) // 2
    return np.ascontiguousarray(resized[:, y : y + height, x : x + width])


def _read_video(file: Path, limit: int | None) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(file))
    found: list[np.ndarray] = []
    try:
        while limit is None or len(found) < limit:
            ok, image = capture.read()
            if not ok:
                break
            found.append(np.ascontiguousarray(image[..., ::-1]))
    finally:
        capture.release()
    return found


def _read_folder(folder: Path, limit: int | None) -> list[np.ndarray]:
    return [read_still(file) for file in image_files(folder)[:limit]]


def _colours_to_labels(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Number the colours of a clip's indexed masks; black is 0.

    Raises:
        TrainingError: more colours than an indexed image can have: photographs, or edges that fade.
    """
    codes = [image.astype(np.int64) @ np.array([1, 256, 65536]) for image in images]
    colours = sorted({int(value) for code in codes for value in np.unique(code)} - {0})
    if len(colours) > 255:
        raise TrainingError(
            f"Annotations have {len(colours)} colours; expected one for each object, as in indexed PNG."
        )
    order = np.array([0, *colours])
    return [np.searchsorted(order, code).astype(np.uint8) for code in codes]
