"""How the published tracker cuts its crops and reads its boxes: what its weights were trained on.

The residue detector cuts its own crops (:mod:`ciri.residue.crops`); these are for comparing with the tracker.
Dimensions: h w pixels, n anchors = 5 shapes x 25 rows x 25 columns.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.residue.siammask_network import SEARCH, TEMPLATE

_STRIDE, _SCALE = 8, 8
_RATIOS = (0.33, 0.5, 1.0, 2.0, 3.0)
#: Correlation cells a side.
_CELLS = 25


def template_side(width: float, height: float) -> float:
    """Side of the square around a box that becomes the template: half as much context again as the box is large."""
    context = 0.5 * (width + height)
    return math.sqrt((width + context) * (height + context))


def search_side(width: float, height: float) -> float:
    """Side of the square that becomes the search: the template's scale, in pixels of the frame per pixel."""
    return template_side(width, height) * SEARCH / TEMPLATE


def cut(frame: np.ndarray, centre: tuple[float, float], side: int, size: int, fill: np.ndarray) -> np.ndarray:
    """Cut a square and resize it as the tracker does.

    Args:
        frame: uint8 (h, w, 3).
        centre: (x, y) in pixels.
        side: of the square, in pixels; it may reach outside the frame.
        size: of the crop.
        fill: (3,) colour outside the frame; the tracker's is the frame's mean, truncated to whole levels.

    Returns:
        uint8 (size, size, 3).
    """
    left, top = (round(c - (side + 1) / 2) for c in centre)
    height, width = frame.shape[:2]
    square = np.empty((side, side, 3), np.uint8)
    square[:] = np.asarray(fill).astype(np.uint8)
    rows, columns = (slice(max(0, a), min(n, a + side)) for a, n in ((top, height), (left, width)))
    if rows.start < rows.stop and columns.start < columns.stop:
        square[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = frame[rows, columns]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_LINEAR)


def anchors() -> Tensor:
    """All anchor boxes (n, 4): centre x, centre y, width, height in crop pixels from the middle of the search."""
    shapes = []
    for ratio in _RATIOS:
        width = math.floor(math.sqrt(_STRIDE**2 / ratio))
        shapes.append((width * _SCALE, math.floor(width * ratio) * _SCALE))
    steps = torch.arange(_CELLS, dtype=torch.float32) * _STRIDE - _CELLS // 2 * _STRIDE
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    boxes = [torch.stack([x, y, torch.full_like(x, w), torch.full_like(x, h)], -1) for w, h in shapes]
    return torch.stack(boxes).flatten(0, 2)


def decode_boxes(boxes: Tensor) -> Tensor:
    """What the box head says, (b, 20, 25, 25), as boxes (b, n, 4) like :func:`anchors`."""
    base = anchors().to(boxes)
    dx, dy, dw, dh = boxes.unflatten(1, (4, len(_RATIOS))).flatten(2).unbind(1)
    x, y, width, height = base.unbind(-1)
    return torch.stack([dx * width + x, dy * height + y, dw.exp() * width, dh.exp() * height], -1)
