"""All numbers of one result: every metric that the case allows, frame by frame.

Dimensions: t frames, h w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from ciri.errors import EvaluationError
from ciri.evaluation.cases import Material
from ciri.metrics.i3d import I3D, load_i3d
from ciri.metrics.local import bounding_box, local_scores, to_targets
from ciri.metrics.lpips import LPIPS, load_lpips
from ciri.metrics.segmentation import segmentation_score
from ciri.metrics.similarity import WINDOWS, psnr, ssim
from ciri.metrics.warping import Motion, warping_error
from ciri.progress import OnStep, ignore, parts

#: name -> one value per frame (per pair of frames for e_warp); not-a-number where there is nothing to score.
Scores = dict[str, list[float]]


@dataclass
class Networks:
    """Users' networks that some metrics need; None where there is no file.

    Attributes:
        i3d: for VFID.
        lpips: for LPIPS.
        i3d_key: identifies the I3D file, so that stored features of another one are not used.
    """

    i3d: I3D | None = None
    lpips: LPIPS | None = None
    i3d_key: str = ""


def load_networks(i3d: Path | None, lpips: Sequence[Path], device: torch.device) -> Networks:
    """Load what there is. Raises CheckpointError: a file that was given is not what it should be."""
    key = "" if i3d is None else f"{i3d.name} {i3d.stat().st_size}" if i3d.exists() else i3d.name
    return Networks(
        load_i3d(i3d, device) if i3d else None, load_lpips(*lpips, device=device) if lpips else None, i3d_key=key
    )


def check_result(result: Tensor, frames: Tensor) -> None:
    """Refuse a result that is not this clip's.

    Raises:
        EvaluationError: another number of frames, or another size.
    """
    if result.shape != frames.shape:
        raise EvaluationError(
            f"the result has {len(result)} frames of {result.shape[3]}x{result.shape[2]} and the clip {len(frames)} of "
            f"{frames.shape[3]}x{frames.shape[2]}; expected the same count and size (scaling would change the numbers)."
        )


def score(
    result: Tensor,
    material: Material,
    motion: Motion,
    *,
    masks: Tensor | None = None,
    lpips: LPIPS | None = None,
    on_step: OnStep = ignore,
) -> Scores:
    """Score one result.

    Args:
        result: float32 (T, 3, H, W) in [0, 1].
        material: the case.
        motion: of the clean clip, or of the original one where there is no clean one.
        masks: float32 (T, 1, H, W), the masks that the result was made with, if they are to be scored.
        lpips: network, if there is one.
        on_step: progress callback; may raise to stop.

    Raises:
        EvaluationError: the result is not this clip's.
        ClipError: it holds values that are not numbers.
    """
    check_result(result, material.frames)
    scores: Scores = {}
    whole = 0 if material.clean is None else 1 + len(WINDOWS)
    steps = parts(on_step, whole + 1 + 2 * material.fully_annotated + (masks is not None))
    if material.clean is not None:
        scores["psnr"] = psnr(result, material.clean, on_step=next(steps)).tolist()
        for name, window in WINDOWS.items():
            scores[name] = ssim(result, material.clean, window, on_step=next(steps)).tolist()
        if lpips is not None:
            boxes = [bounding_box(target) for target in to_targets(material.masks, result)]
            scores["lpips"] = lpips.distance(result, material.clean).tolist()
            scores["lpips_box"] = lpips.distance(result, material.clean, boxes).tolist()
    reference = material.frames if material.clean is None else material.clean
    if material.fully_annotated:
        near = local_scores(result, reference, material.masks, on_step=next(steps))
        # without the clean clip the target itself is the reference inside: only "outside" and the shares mean something
        kept = [f.name for f in fields(near) if material.clean is not None or f.name.startswith(("share", "psnr_out"))]
        scores |= {name: getattr(near, name).tolist() for name in kept}
    scores["e_warp"] = warping_error(result, motion, on_step=next(steps)).tolist()
    if material.fully_annotated:
        scores["e_warp_masked"] = warping_error(result, motion, material.masks, on_step=next(steps)).tolist()
    if masks is not None:
        scores |= score_masks(masks, material, next(steps))
    return scores


def score_masks(masks: Tensor, material: Material, on_step: OnStep = ignore) -> Scores:
    """J and F of the annotated frames; the painted frame and the last one do not count, as DAVIS has it."""
    annotated = material.annotated
    agreement = segmentation_score(masks[annotated], material.masks[annotated], on_step=on_step)
    counted = {index for index in annotated if index != material.first} - {annotated[-1]}
    scores: Scores = {}
    for name, values in (("J", agreement.region), ("F", agreement.boundary)):
        by_frame = dict(zip(annotated, values.tolist(), strict=True))
        scores[name] = [by_frame[t] if t in counted else math.nan for t in range(len(material.frames))]
    return scores
