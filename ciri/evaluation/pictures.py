"""Pictures for the report: a few moments of each case, small enough to live inside one page.

Dimensions: h w pixels.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.compare import overlay
from ciri.evaluation.cases import Case
from ciri.evaluation.degrade import KINDS, degrade
from ciri.evaluation.methods import TRUE_MASKS
from ciri.evaluation.run import CaseRun, Record, Runner
from ciri.mask_files import read_mask
from ciri.media import image_files, read_clip

#: Longest side of a picture, in pixels.
LONGEST = 640
MOMENTS = 5
#: Of the wrong masks that are shown.
SHOWN_STRENGTH = 3


@dataclass(frozen=True)
class Strip:
    """Pictures of one clip at the case's moments, as data URIs."""

    name: str
    pictures: list[str]


@dataclass(frozen=True)
class CasePictures:
    """What the report shows of one case.

    Attributes:
        case: its name.
        moments: frame numbers.
        aspect: width over height.
        centre: of the target in the middle moment, 0 (left) to 1 (right): where the dividing line begins.
        strips: input, masks, every result, clean.
    """

    case: str
    moments: list[int]
    aspect: float
    centre: float
    strips: list[Strip]


def data_uri(picture: Tensor, quality: int = 82) -> str:
    """A picture (3, H, W) in [0, 1] as a WebP data URI, scaled down to :data:`LONGEST`."""
    image = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    scale = LONGEST / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    bgr = np.ascontiguousarray(image[..., ::-1])
    _, data = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, quality])
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode()


def moments(count: int) -> list[int]:
    """Frame numbers to show: spread over the clip, without its first frame where there are enough."""
    if count <= MOMENTS:
        return list(range(count))
    return [round((count - 1) * (index + 1) / MOMENTS) for index in range(MOMENTS)]


def picture_case(runner: Runner, case: Case, records: Sequence[Record]) -> CasePictures:
    """Choose moments of a case and picture the input, every method's result, and the clean clip.

    Args:
        runner: knows where results are.
        case: which.
        records: of this case, in the order in which methods shall be shown.
    """
    work = CaseRun(runner, case)
    shown = moments(records[0].frames)
    frames = [_frame(case.frames, t) for t in shown]
    strips = [Strip("input", [data_uri(frame) for frame in frames])]
    masks = _masks_shown(work, records)
    if masks:
        name, folder = masks
        tinted = [overlay(f[None], _frame(folder, t)[None, :1])[0] for f, t in zip(frames, shown, strict=True)]
        strips.append(Strip(f"masks: {name}", [data_uri(frame) for frame in tinted]))
    for record in records:
        folder = work.result_folder(record.method)
        strips.append(Strip(record.method.title, [data_uri(_frame(folder, t)) for t in shown]))
    if case.clean is not None:
        strips.append(Strip("clean", [data_uri(_frame(case.clean, t)) for t in shown]))
    aspect = frames[0].shape[2] / frames[0].shape[1]
    return CasePictures(case.name, shown, aspect, _centre(case, shown[len(shown) // 2]), strips)


def _centre(case: Case, number: int) -> float:
    """Where the target is across the frame; the middle where no mask says so."""
    name = image_files(case.frames)[number].stem
    file = next((file for file in image_files(case.masks) if file.stem == name), None)
    if file is None:
        return 0.5
    covered = (read_mask(file)[0] > 0.5).any(0)
    columns = torch.nonzero(covered).float()
    return float(columns.mean()) / len(covered) if len(columns) else 0.5


def _masks_shown(work: CaseRun, records: Sequence[Record]) -> tuple[str, Path] | None:
    """The propagator whose masks are shown: that of the first method that has one."""
    names = [r.method.masks for r in records if r.method.masks not in ("", TRUE_MASKS)]
    return (names[0], work.mask_folder(names[0])) if names else None


def _frame(folder: Path, number: int) -> Tensor:
    return read_clip(folder, start=number, count=1).frames[0]


def picture_errors(work: CaseRun) -> list[tuple[str, str]]:
    """What each kind of wrong mask looks like: (kind, data URI) in the middle of one case."""
    material = work.material
    middle = len(material.frames) // 2
    true = material.masks[:, 0].numpy() > 0.5
    pictures = []
    for kind in KINDS:
        wrong = torch.from_numpy(degrade(true, kind, SHOWN_STRENGTH)[middle]).float()
        pictures.append((kind, data_uri(overlay(material.frames[middle : middle + 1], wrong[None, None])[0])))
    return pictures
