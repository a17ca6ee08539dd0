"""A chart as pixels, for places that show pictures and no SVG.

Dimensions: h w pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ciri.evaluation.charts import PALETTE, Chart, number

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK, _SOFT, _PAPER = (60, 60, 60), (220, 220, 220), 255


def rasterise(chart: Chart, scale: float = 1.5) -> Tensor:
    """Draw a chart as a picture, float32 (3, H, W) in [0, 1]; its size is the chart's times ``scale``."""
    width, height = (round(side * scale) for side in chart.size)
    canvas = np.full((height, width, 3), _PAPER, np.uint8)
    frame = chart.frame()
    if frame is None:
        return _to_tensor(canvas)

    def at(x: float, y: float) -> tuple[int, int]:
        return round(scale * x), round(scale * y)

    def write(text: str, x: float, y: float, *, anchor: float = 0.0) -> None:
        (w, _), _ = cv2.getTextSize(text, _FONT, 0.4 * scale, 1)
        left, base = at(x, y)
        cv2.putText(canvas, text, (round(left - anchor * w), base), _FONT, 0.4 * scale, _INK, 1, cv2.LINE_AA)

    for tick in frame.y_ticks:
        cv2.line(canvas, at(frame.left, frame.y(tick)), at(frame.right, frame.y(tick)), _SOFT, 1)
        write(number(tick, frame.y_ticks), frame.left - 6, frame.y(tick) + 4, anchor=1.0)
    for tick in frame.x_ticks:
        write(number(tick, frame.x_ticks), frame.x(tick), frame.bottom + 18, anchor=0.5)
    cv2.line(canvas, at(frame.left, frame.bottom), at(frame.right, frame.bottom), _INK, 1)
    write(chart.x_title, (frame.left + frame.right) / 2, frame.bottom + 34, anchor=0.5)
    for index, series in enumerate(chart.series):
        colour = _rgb(PALETTE[series.colour % len(PALETTE)])
        path = np.array([at(frame.x(x), frame.y(y)) for x, y in series.points], np.int32)
        thick = max(1, round(1.6 * scale))
        if len(path) == 1:
            cv2.circle(canvas, (int(path[0, 0]), int(path[0, 1])), 2 * thick, colour, -1, cv2.LINE_AA)
        cv2.polylines(canvas, [path], False, colour, thick, cv2.LINE_AA)
        x, y = 54 + (index % 2) * (chart.size[0] - 54) / 2, frame.bottom + 52 + 18 * (index // 2)
        cv2.rectangle(canvas, at(x, y - 9), at(x + 12, y + 1), colour, -1)
        write(f"{series.name}, {chart.y_title}", x + 18, y)
    return _to_tensor(canvas)


def _rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour such as "#0072b2"."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _to_tensor(canvas: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(canvas).permute(2, 0, 1).float() / 255
