"""J and F: how well propagated masks agree with true ones (the DAVIS benchmark's definition).

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016.

Dimensions: t frames, h w pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ciri.errors import MaskError
from ciri.progress import OnStep, ignore

#: Contours may be this share of the frame's diagonal apart and still agree.
BOUNDARY_TOLERANCE = 0.008


@dataclass(frozen=True)
class SegmentationScore:
    """J and F of every frame.

    Attributes:
        region: float64 (T,) in [0, 1], J.
        boundary: float64 (T,) in [0, 1], F, the harmonic mean of the next two.
        precision: float64 (T,) in [0, 1], share of the predicted contour that lies near the true one.
        recall: float64 (T,) in [0, 1], share of the true contour that lies near the predicted one.
    """

    region: Tensor
    boundary: Tensor
    precision: Tensor
    recall: Tensor

    def mean(self, first: int = 1, last: int = -1) -> tuple[float, float, float]:
        """Return (J, F, J&F) averaged over the frames ``first:last``.

        The default leaves out the first frame (it is given) and the last one, as the DAVIS benchmark does.

        Raises:
            MaskError: no frame is left to average over.
        """
        region, boundary = self.region[first:last], self.boundary[first:last]
        if not len(region):
            raise MaskError(f"{len(self.region)} frames leave nothing to average over; expected at least 3 by default.")
        j, f = float(region.mean()), float(boundary.mean())
        return j, f, (j + f) / 2


def segmentation_score(
    predicted: Tensor, true: Tensor, *, threshold: float = 0.5, on_step: OnStep = ignore
) -> SegmentationScore:
    """Score masks of one target, frame by frame.

    Args:
        predicted, true: bool, or floating in [0, 1], (T, 1, H, W) or (T, H, W); target where above ``threshold``.
        on_step: called after each frame; may raise to stop.

    Raises:
        MaskError: the two have different shapes.
    """
    if predicted.shape != true.shape or predicted.ndim not in (3, 4):
        raise MaskError(
            f"The predicted masks have shape {tuple(predicted.shape)} and the true ones {tuple(true.shape)}; "
            "expected the same (frames, height, width) of both."
        )
    rows = []
    for index, (p, t) in enumerate(zip(_to_bool(predicted, threshold), _to_bool(true, threshold), strict=True)):
        rows.append((region_similarity(p, t), *boundary_accuracy(p, t)))
        on_step(index + 1, len(true))
    return SegmentationScore(*torch.tensor(rows, dtype=torch.float64).reshape(-1, 4).unbind(1))


def region_similarity(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """J: intersection over union of two (H, W) masks; 1 if both are empty."""
    union = np.count_nonzero(predicted | true)
    return np.count_nonzero(predicted & true) / union if union else 1.0


def boundary_accuracy(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> tuple[float, float, float]:
    """F, precision and recall of the contour of an (H, W) mask; all 1 if both masks have no contour."""
    radius = boundary_radius(*true.shape)
    of_predicted, of_true = contour(predicted), contour(true)
    precision = _share_near(of_predicted, of_true, radius)
    recall = _share_near(of_true, of_predicted, radius)
    total = precision + recall
    return (2 * precision * recall / total if total else 0.0), precision, recall


def boundary_radius(height: int, width: int) -> int:
    """The distance in pixels within which contours agree: 4 at 432x240, 8 at 854x480."""
    return math.ceil(BOUNDARY_TOLERANCE * math.hypot(height, width))


def contour(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of an (H, W) mask that differ from their right, lower or lower-right neighbour inside the frame."""
    # beyond the frame the last row and column repeat, so nothing differs there
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    inner = padded[:-1, :-1]
    edge = (inner != padded[:-1, 1:]) | (inner != padded[1:, :-1])
    # the diagonal neighbour counts only where it exists: clamped, it is one of the other two
    return edge | (inner != padded[1:, 1:])


def _share_near(points: NDArray[np.bool_], others: NDArray[np.bool_], radius: int) -> float:
    """The share of ``points`` within ``radius`` of ``others``; 1 if there are no points."""
    total = np.count_nonzero(points)
    if not total:
        return 1.0
    offsets = np.arange(-radius, radius + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.uint8)
    near = cv2.dilate(others.astype(np.uint8), disk, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.count_nonzero(points & (near > 0)) / total


def _to_bool(masks: Tensor, threshold: float) -> NDArray[np.bool_]:
    """(T, 1, H, W) or (T, H, W) to boolean (T, H, W)."""
    hard = masks if masks.dtype == torch.bool else masks > threshold
    return hard.reshape(-1, *masks.shape[-2:]).cpu().numpy()
