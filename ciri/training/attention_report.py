"""How well the attention network corrects masks that it was not trained on: figures, and a sheet of pictures.

Dimensions: h w pixels.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.inactivation.attention_network import AttentionNetwork, log_odds
from ciri.training.attention_data import Example, unpack


@torch.no_grad()
def validate(network: AttentionNetwork, examples: list[Example], sheet: Path | None = None) -> dict[str, float]:
    """Overlap of masks with the truth (intersection over union), of the prediction and of the map; and of shadows.

    ``recovered`` is the share of the missed pixels that the map adds, ``withdrawn`` the share of those covered in vain
    that it gives back, ``spoilt`` the pixels it gets wrong that were right, in areas of the target.
    """
    network.eval()
    rows: list[dict[str, float]] = []
    pictures = []
    for i, example in enumerate(examples):
        h, w = (side // 16 * 16 for side in example.evidence.shape[1:])
        evidence = unpack(torch.from_numpy(example.evidence[None, :, :h, :w]))
        answer = torch.from_numpy(example.answer[:, :h, :w]).float() / 255
        correction, shadow_odds = network(evidence)
        region = evidence.region[0, 0] > 0
        told = (evidence.predicted[0, 0] > 0.5) & region
        odds = log_odds(evidence.predicted) + correction
        map_ = (odds[0, 0] > 0) & region
        true, shade = (answer[0] > 0.5) & region, (answer[1] > 0.5) & region
        dark = (shadow_odds[0, 0] > 0) & region & ~map_
        area = max(int(true.sum()), 1)
        row = {
            "predicted IoU": _overlap(told, true),
            "attended IoU": _overlap(map_, true),
            "spoilt": float(((map_ != true) & (told == true)).sum() / area),
        }
        missed, vain = true & ~told, told & ~true
        if missed.sum() > 0.03 * area:
            row["recovered"] = float((map_ & missed).sum() / missed.sum())
        if vain.sum() > 0.03 * area:
            row["withdrawn"] = float((~map_ & vain).sum() / vain.sum())
        if shade.sum() > 30:
            row["shadow IoU"] = _overlap(dark, shade)
        else:
            row["false shadow"] = float(dark.sum() / area)
        rows.append(row)
        if sheet is not None and i % max(1, len(examples) // 24) == 0:
            maps = [
                evidence.predicted[0],
                odds.sigmoid()[0] * region,
                shadow_odds.sigmoid()[0] * region,
                answer[:1],
                answer[1:],
            ]
            gray = [m.expand(3, -1, -1) for m in maps]
            pictures.append([evidence.frame[0], evidence.before[0], evidence.after[0], *gray])
    network.train()
    if sheet is not None:
        write_sheet(sheet, pictures)
    names = sorted({name for row in rows for name in row})
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def _overlap(a: Tensor, b: Tensor) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def write_sheet(file: Path, rows: list[list[Tensor]]) -> None:
    """Write pictures (3, h, w) in [0, 1], one example a row."""
    lines = []
    for row in rows:
        images = [(x.permute(1, 2, 0).clamp(0, 1) * 255).byte().numpy() for x in row]
        lines.append(
            np.concatenate([cv2.resize(image, (168, 120), interpolation=cv2.INTER_AREA) for image in images], 1)
        )
    cv2.imwrite(str(file), np.ascontiguousarray(np.concatenate(lines)[..., ::-1]))
