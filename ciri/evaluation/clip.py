"""One finished clip measured on its own: numbers as text, and a plot over time.

Dimensions: t frames, h w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ciri.errors import MaskError
from ciri.evaluation.cases import Material
from ciri.evaluation.charts import Chart, Series
from ciri.evaluation.scores import Scores, check_result, score
from ciri.evaluation.tables import COLUMNS, GLOBAL, LOCAL, mean
from ciri.frames import check_clip
from ciri.metrics.warping import ESTIMATOR, motion_of
from ciri.progress import OnStep, ignore, part

#: What the text lists, in this order: score -> what it is called.
_SHOWN = {
    "psnr_box": "local PSNR (box)",
    "ssim_box": "local SSIM (box)",
    "psnr_mask": "local PSNR (mask)",
    "psnr": "global PSNR",
    "ssim65": "global SSIM",
    "psnr_outside": "outside PSNR",
    "e_warp_masked": "E_warp of what was filled, x 1000",
    "e_warp": "E_warp, x 1000",
    "J": "J of the masks",
    "F": "F of the masks",
}
_FOUR_DIGITS = ("ssim65", "ssim_box", "J", "F")
#: The motion's share of the time that a measurement takes, measured at 864x480 against a clean clip.
MOTION_SHARE = 0.2


@dataclass
class ClipReport:
    """What one clip's measurement says.

    Attributes:
        scores: values per frame.
        text: a Markdown table, and remarks.
        plot: over time: PSNR against a clean clip, else the warping error; empty where there is nothing to draw.
    """

    scores: Scores
    text: str
    plot: Chart


def evaluate_clip(
    result: Tensor,
    masks: Tensor,
    reference: Tensor,
    *,
    clean: bool,
    tracked: Tensor | None = None,
    on_step: OnStep = ignore,
) -> ClipReport:
    """Measure a removal.

    Args:
        result: floating (T, 3, H, W) in [0, 1], the finished clip.
        masks: float32 (T, 1, H, W), where the target was.
        reference: floating (T, 3, H, W): the clip without the target, or the original one.
        clean: whether the reference shows the scene without the target. Without such a clip, quality inside the target
            cannot be known; what was changed outside it, and flicker, can.
        tracked: float32 (T, 1, H, W), masks to be compared with ``masks``.
        on_step: progress callback; may raise to stop.

    Raises:
        EvaluationError: result and reference are of different length or size.
        MaskError: no mask shows a target.
        ClipError: values that are not numbers.
    """
    result, reference = check_clip(result), check_clip(reference)
    check_result(result, reference)
    hard = (masks > 0.5).float()
    seen = torch.nonzero(hard.flatten(1).any(1)).flatten().tolist()
    if not seen:
        raise MaskError("No mask shows a target (no pixel above 0.5); there is no region to measure.")
    material = Material(reference, hard, list(range(len(result))), seen[0], reference if clean else None)
    motion = motion_of(reference, on_step=part(on_step, 0.0, MOTION_SHARE))
    scores = score(result, material, motion, masks=tracked, on_step=part(on_step, MOTION_SHARE, 1.0))
    remarks = [f"{len(result)} frames of {result.shape[3]}x{result.shape[2]}; the target is seen in {len(seen)}."]
    if not clean:
        remarks.append("Against the original clip: PSNR and SSIM near the target need the clip without it.")
    remarks.append(f"E_warp: flow by {ESTIMATOR} on the reference; compare it with other values of this tool only.")
    return ClipReport(scores, describe(scores, remarks), plot_over_time(scores, clean))


def describe(scores: Scores, remarks: Sequence[str]) -> str:
    """Means, lowest values and where they are, as a Markdown table."""
    lines = ["| Metric | Mean | Worst | in frame |", "| --- | ---: | ---: | ---: |"]
    higher_is_worse = ("e_warp", "e_warp_masked")
    for name, title in _SHOWN.items():
        values = [1000 * v if name in higher_is_worse else v for v in scores.get(name, [])]
        average = mean(values)
        if average is None:
            continue
        worst = (max if name in higher_is_worse else min)(v for v in values if not math.isnan(v))
        unit, digits = (" dB" if "psnr" in name else ""), 4 if name in _FOUR_DIGITS else 2
        lines.append(f"| {title} | {average:.{digits}f}{unit} | {worst:.{digits}f}{unit} | {values.index(worst)} |")
    meanings = {column.key: column.meaning for column in [*LOCAL, *GLOBAL, *COLUMNS]}
    # its flow is that of the reference, which may be the original clip: a remark says so
    meanings["e_warp_masked"] = "Warping error of inpainted pixels."
    explained = [f"- {_SHOWN[name]}: {meanings[name]}" for name in _SHOWN if name in scores and name in meanings]
    return "\n".join([*lines, "", *(f"- {remark}" for remark in remarks), *explained])


def plot_over_time(scores: Scores, clean: bool) -> Chart:
    """PSNR of every frame, or the warping error of every pair of frames."""
    shown = {"local (box)": "psnr_box", "global": "psnr"} if clean else {"filled pixels": "e_warp_masked"}
    factor = 1 if clean else 1000
    series = []
    for index, (title, name) in enumerate(shown.items()):
        points = [(float(t), factor * v) for t, v in enumerate(scores.get(name, [])) if not math.isnan(v)]
        if points:
            series.append(Series(title, points, colour=index))
    y_title = "PSNR (dB)" if clean else "E_warp x 1000"
    return Chart(series, "frame", y_title, size=(640, 320))
