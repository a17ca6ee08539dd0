"""Curves of a run: a CSV that is appended to while training, and a picture of it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from ciri.replacing import replacing

PANEL_H, PANEL_W, COLUMNS = 220, 420, 3


class Curves:
    """Values by series and step in ``step,series,value`` rows, so that new series may start at any time."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row per value and redraw nothing (see :meth:`draw`)."""
        new = not self.file.exists()
        try:
            with self.file.open("a", newline="") as stream:
                writer = csv.writer(stream)
                if new:
                    writer.writerow(("step", "series", "value"))
                writer.writerows((step, name, f"{value:.6g}") for name, value in values.items())
        except OSError:
            # a full disk must not end a training whose state is still in memory
            return

    def read(self) -> dict[str, list[tuple[int, float]]]:
        """Return (step, value) pairs per series."""
        series: dict[str, list[tuple[int, float]]] = {}
        if self.file.exists():
            with self.file.open(newline="") as stream:
                for row in csv.DictReader(stream):
                    try:
                        series.setdefault(row["series"], []).append((int(row["step"]), float(row["value"])))
                    except (TypeError, ValueError):
                        continue  # a row torn by an interrupted write
        return series

    def cut(self, step: int) -> None:
        """Forget rows after a step: training resumes there. On a full disk they stay."""
        kept = {name: [p for p in points if p[0] <= step] for name, points in self.read().items()}
        rows = sorted((at, name, value) for name, points in kept.items() for at, value in points)
        if not self.file.exists():
            return
        with suppress(OSError), replacing(self.file) as part, part.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("step", "series", "value"))
            writer.writerows((at, name, f"{value:.6g}") for at, name, value in rows)

    def draw(self) -> None:
        """Write ``curves.png`` beside the CSV, one panel per series."""
        series = {name: points for name, points in self.read().items() if points}
        if not series:
            return
        panels = [_panel(name, np.array(points, float)) for name, points in sorted(series.items())]
        while len(panels) % COLUMNS:
            panels.append(np.full((PANEL_H, PANEL_W, 3), 255, np.uint8))
        rows = [np.concatenate(panels[i : i + COLUMNS], 1) for i in range(0, len(panels), COLUMNS)]
        cv2.imwrite(str(self.file.with_suffix(".png")), np.concatenate(rows, 0))


def _panel(name: str, points: np.ndarray) -> np.ndarray:
    """One series (n, 2) as a line over its steps, with its range written at the axis."""
    image = np.full((PANEL_H, PANEL_W, 3), 255, np.uint8)
    left, top, right, bottom = 62, 26, PANEL_W - 12, PANEL_H - 24
    steps, values = points[:, 0], points[:, 1]
    # the first values of a run may be huge; a robust range keeps the rest readable
    low, high = np.percentile(values, [0, 99]) if len(values) > 20 else (values.min(), values.max())
    span = max(high - low, 1e-9)
    x = left + (steps - steps.min()) / max(np.ptp(steps), 1) * (right - left)
    y = np.clip(bottom - (values - low) / span * (bottom - top), top, bottom)
    cv2.rectangle(image, (left, top), (right, bottom), (200, 200, 200), 1)
    cv2.polylines(image, [np.stack([x, y], 1).round().astype(np.int32)], False, (170, 80, 20), 1, cv2.LINE_AA)

    def write(text: str, at: tuple[int, int]) -> None:
        cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (40, 40, 40), 1, cv2.LINE_AA)

    write(f"{name}: {values[-1]:.4g}", (left, 17))
    write(f"{high:.4g}", (4, top + 8))
    write(f"{low:.4g}", (4, bottom))
    write(f"{int(steps.min())}", (left, PANEL_H - 8))
    write(f"{int(steps.max())}", (right - 50, PANEL_H - 8))
    return image
