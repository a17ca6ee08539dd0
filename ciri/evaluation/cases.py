"""Cases on disk: a clip, the target's true masks, and, where it is known, the clip without the target.

Three layouts are recognised: ``CASE/{frames,masks,clean}/00000.png`` (clean is optional), DAVIS
(``JPEGImages/480p/CASE``, ``Annotations/480p/CASE``) and YouTube-VOS (``JPEGImages/CASE``, ``Annotations/CASE``, where
only some frames are annotated). Annotations of several objects count as one target.

Dimensions: t frames, h w pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ciri.errors import ClipError, EvaluationError, MaskError, MediaError
from ciri.frames import check_masks
from ciri.mask_files import read_alike
from ciri.media import IMAGE_SUFFIXES, image_files, read_clip

#: Where DAVIS and YouTube-VOS keep frames; annotations lie in the folder of the second name.
_BENCHMARKS = tuple(
    (f"{split}JPEGImages{size}", f"{split}Annotations{size}")
    for split in ("", "valid/", "train/", "test/")
    for size in ("/480p", "/Full-Resolution", "")
)


@dataclass(frozen=True)
class Case:
    """Where the parts of one case are.

    Attributes:
        name: of the case; names its results.
        frames, masks: folders of numbered images.
        clean: folder of the clip without the target, if it is known.
    """

    name: str
    frames: Path
    masks: Path
    clean: Path | None = None

    def check(self) -> None:
        """Raise EvaluationError if its frames or its masks are not there."""
        for what, folder in (("frames", self.frames), ("masks", self.masks)):
            if not folder.is_dir():
                raise EvaluationError(f"Case {self.name} has no {what}: {folder} does not exist.")

    def files(self) -> Iterator[Path]:
        """Every file that the case consists of.

        Raises:
            EvaluationError: as :meth:`check`.
            MediaError: a folder without an image.
        """
        self.check()
        for folder in filter(None, (self.frames, self.masks, self.clean)):
            yield from image_files(folder)


@dataclass
class Material:
    """One case in memory.

    Attributes:
        frames: float32 (T, 3, H, W) in [0, 1].
        masks: float32 (T, 1, H, W), 0 or 1, the true target; empty in frames that are not annotated.
        annotated: numbers of the frames whose mask is known.
        first: number of the first frame that shows the target; its mask is what a person would paint.
        clean: float32 (T, 3, H, W) without the target, or None.
        notes: what had to be changed.
    """

    frames: Tensor
    masks: Tensor
    annotated: list[int]
    first: int
    clean: Tensor | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def fully_annotated(self) -> bool:
        """Whether every frame has a mask."""
        return len(self.annotated) == len(self.frames)


def find_cases(root: Path) -> list[Case]:
    """Return the cases in a folder, in name order.

    Raises:
        EvaluationError: no such folder, or none of the known layouts in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise EvaluationError(f"{root} does not exist; expected a folder of cases.")
    if (root / "frames").is_dir():
        return [_own(root)]
    own = [_own(folder) for folder in sorted(root.iterdir()) if (folder / "frames").is_dir()]
    if own:
        return own
    for images, labels in _BENCHMARKS:
        folders = sorted(p for p in (root / images).iterdir() if _has_images(p)) if (root / images).is_dir() else []
        if folders:
            return [Case(folder.name, folder, root / labels / folder.name) for folder in folders]
    raise EvaluationError(
        f"{root} holds no case. Expected CASE/frames and CASE/masks with numbered images (CASE/clean if the clip "
        "without the target is known), DAVIS (JPEGImages/480p, Annotations/480p) or YouTube-VOS (JPEGImages, "
        "Annotations)."
    )


def _own(folder: Path) -> Case:
    clean = folder / "clean"
    return Case(folder.name, folder / "frames", folder / "masks", clean if clean.is_dir() else None)


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.iterdir())


def load(case: Case, limit: int | None = None) -> Material:
    """Read one case.

    Args:
        case: as :func:`find_cases` finds it.
        limit: read only so many frames.

    Raises:
        EvaluationError: parts are missing, do not belong together or cannot be read; the text names case and file.
    """
    try:
        return _load(case, limit)
    except (MediaError, MaskError, ClipError) as error:
        raise EvaluationError(f"Case {case.name}: {error}") from error


def _load(case: Case, limit: int | None) -> Material:
    case.check()
    names = [file.stem for file in image_files(case.frames)]
    _check_numbering(case, names)
    names = names[:limit]
    frames = read_clip(case.frames, count=limit).frames
    clean = None
    if case.clean is not None:
        _check_names(case, "clean", [file.stem for file in image_files(case.clean)][:limit], names)
        clean = read_clip(case.clean, count=limit).frames
        if clean.shape != frames.shape:
            raise EvaluationError(
                f"Case {case.name}: the clean clip is {clean.shape[3]}x{clean.shape[2]} and the frames are "
                f"{frames.shape[3]}x{frames.shape[2]}; expected one size."
            )
    masks, annotated, notes = _read_masks(case, names, frames)
    seen = [index for index in annotated if masks[index].any()]
    if not seen:
        raise EvaluationError(f"Case {case.name}: no mask shows a target; there is nothing to remove.")
    return Material(frames, masks, annotated, seen[0], clean, notes)


def _read_masks(case: Case, names: list[str], frames: Tensor) -> tuple[Tensor, list[int], list[str]]:
    """All masks (T, 1, H, W), the numbers of the frames that have one, and notes."""
    files = {file.stem: file for file in image_files(case.masks)}
    annotated = [index for index, name in enumerate(names) if name in files]
    if not annotated:
        raise EvaluationError(
            f"Case {case.name}: no mask is named like a frame (masks: {next(iter(files))}, ...; frames: {names[0]}, "
            "...)."
        )
    if case.clean is not None and len(annotated) < len(names):
        missing = next(name for name in names if name not in files)
        raise EvaluationError(
            f"Case {case.name}: frame {missing} has no mask; with a clean clip every frame needs one."
        )
    masks = torch.zeros(len(frames), 1, *frames.shape[2:])
    notes: list[str] = []
    for index, mask in zip(annotated, read_alike([files[names[i]] for i in annotated])[0], strict=True):
        checked, remarks = check_masks(mask, *frames.shape[2:], what=f"mask {names[index]}")
        masks[index] = (checked[0] > 0.5).float()
        notes += remarks[:1] if not notes else []
    if len(annotated) < len(names):
        notes.append(f"{len(annotated)} of {len(names)} frames are annotated.")
    return masks, annotated, notes


def _check_names(case: Case, what: str, got: list[str], expected: list[str]) -> None:
    """Refuse a part that has other frames than the clip."""
    if got != expected:
        first = next(
            (a for a, b in zip(expected, got, strict=False) if a != b), (expected + got)[min(len(got), len(expected))]
        )
        raise EvaluationError(
            f"Case {case.name}: {what} has {len(got)} images and frames has {len(expected)}, and they differ at "
            f"{first}; expected an image of the same name for every frame."
        )


def _check_numbering(case: Case, names: list[str]) -> None:
    """Refuse a gap in the numbers: half of the metrics compare neighbours."""
    found = [re.search(r"(\d+)$", name) for name in names]
    if len(names) < 3 or not all(found):
        return
    numbers = [int(match.group(1)) for match in found if match]
    steps = {b - a for a, b in pairwise(numbers)}
    if len(steps) > 1:
        step = min(steps)
        gap = next(a + step for a, b in pairwise(numbers) if b - a != step)
        raise EvaluationError(f"Case {case.name}: frame {gap} is missing from {case.frames}.")
