"""How well painted masks of pictures that were not trained on are corrected: figures, and a sheet of pictures.

Dimensions: b pictures, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.training.film import Dice
from ciri.training.propagator_data import Bank
from ciri.training.snap_data import Batch, Pictures

#: Pictures that are looked at, and how many times they are enlarged.
COUNT, AT_ONCE, ENLARGED = 64, 8, 1.6
#: Rows of the sheet.
ROWS = 16


class Examiner:
    """Validates on pictures made once of held-back material, always the same ones.

    Args:
        held: the held-back material.
        folder: where sheets go.
        seed: of the pictures.
        window: (height, width) of what is looked at.
        count: pictures.
    """

    def __init__(self, held: Bank, folder: Path, *, seed: int, window: tuple[int, int], count: int = COUNT) -> None:
        self.folder = folder
        pool = Pictures(held, seed=seed, capacity=count)
        pool.fill(count)
        dice = Dice(seed, "cpu")
        at_once = min(AT_ONCE, count)
        self.batches = [pool.draw(at_once, window, (ENLARGED, ENLARGED), dice) for _ in range(count // at_once)]

    def look(self, answer: Callable[[Batch], Tensor], step: int) -> dict[str, float]:
        """Return figures, and write a sheet.

        Args:
            answer: a batch -> probabilities (b, 1, h, w).
            step: names the sheet.

        Returns:
            Mean overlaps (Jaccard) with the truth: of what was painted ("J painted") and what became of it ("J"), and
            of masks that were exact ("J exact"); and which share of the target is found ("found"), and was ("painted").
        """
        rows, pictures = [], []
        for batch in self.batches:
            with torch.no_grad():
                said = answer(batch)
            parts = zip(batch.frames, batch.painted > 0.5, batch.truth > 0.5, said, strict=True)
            for frame, paint, truth, found in parts:
                mask = found > 0.5
                rows.append((_overlap(paint, truth), _overlap(mask, truth), _share(mask, truth), _share(paint, truth)))
                pictures.append((frame, paint, truth, found))
        table = np.array(rows)
        _write_sheet(self.folder / f"{step:06d}.jpg", pictures[:ROWS])
        names = ("J painted", "J", "found", "painted")
        values = dict(zip(names, table.mean(0).tolist(), strict=True))
        exact = table[:, 0] > 0.999
        return {**values, "J exact": float(table[exact, 1].mean())} if exact.any() else values


def _overlap(a: Tensor, b: Tensor) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def _share(found: Tensor, truth: Tensor) -> float:
    return int((found & truth).sum()) / max(1, int(truth.sum()))


def _write_sheet(file: Path, pictures: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
    """Picture, painted mask and answer, with the truth as a green line."""
    rows = []
    for frame, paint, truth, found in pictures:
        image = (frame.permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8)
        edge = cv2.morphologyEx(truth[0].numpy().astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
        cells = [image]
        for mask in (paint[0].float(), found[0]):
            share = mask.numpy()[..., None] * 0.5
            cell = (image * (1 - share) + share * np.array([40, 40, 255])).astype(np.uint8)
            cell[edge] = (60, 220, 60)
            cells.append(cell)
        rows.append(np.concatenate(cells, 1))
    half = len(rows) // 2 or 1
    sides = [np.concatenate(rows[:half]), np.concatenate(rows[half:] or rows[:half])]
    height = min(len(side) for side in sides)
    sheet = np.concatenate([side[:height] for side in sides], 1)
    cv2.imwrite(str(file), cv2.resize(sheet, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
