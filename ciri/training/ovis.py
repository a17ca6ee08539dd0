"""OVIS and YouTube-VIS: clips whose objects are annotated in one JSON file, as run-length masks.

A mask is a list of run lengths down the columns, of background and object in turn, as in COCO; "compressed" it is a
string. Both are decoded here. The layout that is recognised::

    annotations_train.json       or any annotations*.json, also in a folder annotations/
    train/<clip>/*.jpg           or the clips' folders beside the file, or in JPEGImages/ or train/JPEGImages/

Dimensions: T frames, h w pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ciri.errors import TrainingError
from ciri.training.data import Clip, Library

#: Where the clips' folders may be, relative to the data folder.
IMAGE_FOLDERS = ("train", "train/JPEGImages", "JPEGImages", ".")

#: What comes of JSON that has another form than expected.
MALFORMED = (ValueError, KeyError, TypeError, AttributeError)

#: A compressed count is written in characters of 6 bits from this one on: 5 bits of the number, low ones first, and
#: one that says whether more follow.
FIRST_CHARACTER, CONTINUES, SIGN = 48, 0x20, 0x10


def decode_counts(text: str | bytes) -> list[int]:
    """Return the run lengths of a compressed mask.

    From the fourth on, a number is the difference to the one two before it: runs of one kind are similar.

    Raises:
        TrainingError: a character that cannot be in one, or an end in the middle of a number.
    """
    codes = text if isinstance(text, bytes) else text.encode("latin-1", "replace")
    counts: list[int] = []
    value = shift = 0
    for code in codes:
        bits = code - FIRST_CHARACTER
        if not 0 <= bits < 64:
            raise TrainingError(f"A compressed mask holds {chr(code)!r}, which is none of its characters.")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & CONTINUES:
            continue
        if bits & SIGN:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise TrainingError("A compressed mask ends in the middle of a number.")
    return counts


def decode_mask(segmentation: Mapping[str, Any]) -> np.ndarray:
    """Decode ``{"size": [h, w], "counts": list or string}`` to bool (h, w).

    Raises:
        TrainingError: not such a mask, or its runs do not fill it exactly.
    """
    try:
        height, width = (int(side) for side in segmentation["size"])
        counts = segmentation["counts"]
        runs = decode_counts(counts) if isinstance(counts, (str, bytes)) else [int(count) for count in counts]
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"A mask is not run-length encoded ({error}).") from error
    if min(height, width, *runs) < 0 or sum(runs) != height * width:
        raise TrainingError(f"The runs of a mask add up to {sum(runs)} pixels; expected {height * width}.")
    kinds = np.arange(len(runs)) % 2 == 1
    return np.repeat(kinds, runs).reshape(width, height).T


@dataclass(frozen=True, eq=False)
class TrackAnnotations:
    """The objects of one clip.

    Attributes:
        size: (h, w) of the clip's frames.
        names: of the clip's frames, without ending, in order.
        tracks: for each object, a mask per frame as :func:`decode_mask` takes it, or None where it is not seen.
    """

    size: tuple[int, int]
    names: tuple[str, ...]
    tracks: tuple[Sequence[Mapping[str, Any] | None], ...]

    def numbers(self, name: str) -> np.ndarray | None:
        """Object numbers uint8 (h, w) of the frame of that name, 0 = none; None if there is no such frame.

        Where objects overlap, the later one is in front.

        Raises:
            TrainingError: a mask that cannot be decoded, or of another size than the clip.
        """
        if name not in self.names:
            return None
        at, labels = self.names.index(name), np.zeros(self.size, np.uint8)
        for number, track in enumerate(self.tracks[:255], 1):
            segmentation = track[at] if at < len(track) else None
            if segmentation is None:
                continue
            mask = decode_mask(segmentation)
            if mask.shape != self.size:
                raise TrainingError(f"A mask of frame {name} has size {mask.shape}; expected {self.size}.")
            labels[mask] = number
        return labels


def open_ovis(root: Path) -> Library:
    """Return the clips of every annotation file in a folder; what cannot be used is noted in ``skipped``."""
    library = Library()
    for file in sorted([*root.glob("annotations*.json"), *root.glob("annotations/*.json")]):
        try:
            content = json.loads(file.read_text())
            videos, annotations = content["videos"], content.get("annotations") or []
            tracks: dict[Any, list[Any]] = {}
            for annotation in annotations:
                tracks.setdefault(annotation["video_id"], []).append(annotation.get("segmentations") or [])
        except (OSError, *MALFORMED) as error:
            library.skipped.append(f"{file} is not an OVIS annotation file ({type(error).__name__}: {error}).")
            continue
        for number, video in enumerate(videos):
            try:
                _add_clip(library, root, video, tracks.get(video["id"], []))
            except MALFORMED as error:
                library.skipped.append(f"Clip {number} of {file} is malformed ({type(error).__name__}: {error}).")
    return library


def _add_clip(library: Library, root: Path, video: Mapping[str, Any], tracks: list[Any]) -> None:
    files = [Path(str(name)) for name in video["file_names"]]
    folders = [root / place / files[0].parent for place in IMAGE_FOLDERS] if files else []
    folder = next((folder for folder in folders if (folder / files[0].name).is_file()), None)
    if folder is None:
        library.skipped.append(f"No picture of clip {files[0].parent if files else video['id']} is below {root}.")
        return
    size = (int(video["height"]), int(video["width"]))
    annotations = TrackAnnotations(size, tuple(file.stem for file in files), tuple(tracks)) if tracks else None
    library.clips.append(Clip(folder.name, folder.name, folder, annotations))
