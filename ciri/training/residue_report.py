"""How good a residue detector is on held-back samples, and pictures of what it finds, misses and invents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.residue.lite import Maps, ResidueNetwork
from ciri.residue.parts import evidence, gather_cells
from ciri.residue.score import BORDER
from ciri.training.residue_bank import Bank, Batch, respond
from ciri.training.residue_data import KINDS

#: Share of the responses on clean removals that stay below the threshold.
QUANTILE = 0.99
#: The threshold is not lower than this, so that refinement does not work on what is hardly a response.
LEAST_THRESHOLD = 0.2
#: Label from which a cell counts as residue, and below which as none; between them it is not judged.
IS_RESIDUE, IS_NONE = 0.5, 0.1
#: From this score on, in target areas, a frame is suspected (refinement starts there).
SUSPECT = 0.03
#: Residue sizes that recall is reported for, as shares of the target's box.
SIZES = ((0.002, 0.01), (0.01, 0.05), (0.05, 10.0))

Responder = Callable[[Batch], Tensor]


@dataclass
class Answers:
    """Responses to every sample of a bank, (n, h, w) each; scores (n,) in target areas."""

    response: np.ndarray
    label: np.ndarray
    sure: np.ndarray
    scores: np.ndarray
    threshold: float


@torch.no_grad()
def answers(bank: Bank, responder: Responder, batch: int = 32) -> Answers:
    """Run a detector over a bank and choose its threshold on the clean samples."""
    response, label, sure = [], [], []
    for start in range(0, len(bank), batch):
        samples = bank.batch(range(start, min(start + batch, len(bank))))
        response.append(responder(samples).sigmoid()[:, 0].numpy())
        label.append(samples.label[:, 0].numpy())
        sure.append(samples.sure[:, 0].numpy())
    found, truth, known = (_inside(np.concatenate(x)) for x in (response, label, sure))
    clean = found[bank.clean.numpy()]
    threshold = float(np.quantile(clean, QUANTILE)) if clean.size else 0.5
    threshold = float(np.clip(threshold, LEAST_THRESHOLD, 0.99))
    # the search window is twice the box, so the box is a quarter of the whole map
    box = found.shape[1] * found.shape[2] / 4 * ((found.shape[1] + 2 * BORDER) / found.shape[1]) ** 2
    scores = np.maximum(found - threshold, 0).sum((1, 2)) / box
    return Answers(found, truth, known, scores, threshold)


def _inside(maps: np.ndarray) -> np.ndarray:
    return maps[:, BORDER:-BORDER, BORDER:-BORDER]


def measure(bank: Bank, found: Answers) -> dict[str, float]:
    """Return the figures by name; a figure that no sample speaks for is left out."""
    residue, clean = bank.with_residue.numpy() & ~bank.clean.numpy(), bank.clean.numpy()
    judged = (found.sure > 0.5) & ((found.label >= IS_RESIDUE) | (found.label < IS_NONE))
    figures = {
        "frame AUC": area_under_curve(found.scores[residue], found.scores[clean]),
        "pixel AP": average_precision(found.response[judged], found.label[judged] >= IS_RESIDUE),
        "threshold": found.threshold,
        "clean score mean": float(found.scores[clean].mean()) if clean.any() else float("nan"),
        "clean suspected": float((found.scores[clean] > SUSPECT).mean()) if clean.any() else float("nan"),
        "clean false area": float((found.response[clean] > found.threshold).mean()) if clean.any() else float("nan"),
    }
    for low, high in SIZES:
        chosen = (bank.size.numpy() > low) & (bank.size.numpy() <= high) & ~clean
        if chosen.any():
            name = f"recall {100 * low:g}-{100 * high:g} %" if high < 1 else f"recall over {100 * low:g} %"
            figures[name] = float((found.scores[chosen] > SUSPECT / 3).mean())
    hit = (found.label >= IS_RESIDUE) & (found.sure > 0.5)
    figures["pixel recall"] = float((found.response[hit] > found.threshold).mean()) if hit.any() else float("nan")
    for number, kind in enumerate(KINDS):
        of = bank.kind.numpy() == number
        figures[f"frame AUC {kind}"] = area_under_curve(found.scores[residue & of], found.scores[clean & of])
    return {name: value for name, value in figures.items() if np.isfinite(value)}


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order, ties half; NaN if one side is empty."""
    if not (len(positive) and len(negative)):
        return float("nan")
    ordered = np.sort(negative)
    below, upto = (np.searchsorted(ordered, positive, side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(negative)))


def average_precision(response: np.ndarray, positive: np.ndarray) -> float:
    """Mean precision over the positives in the order of falling response; NaN without a positive."""
    if not positive.any():
        return float("nan")
    hits = positive[np.argsort(-response, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def untrained(search: Maps, reference: Maps, index: list[list[tuple[Tensor, Tensor]]], *, gain: float = 8.0) -> Tensor:
    """The training-free part matching: s_F - s_G of the encoder's own features, summed over the scales, as a logit.

    Args:
        search, reference: maps of the crops.
        index: of each reference, what :func:`ciri.residue.lite.cell_indices` returned.
        gain: logits per unit of similarity.
    """
    total: Tensor | float = 0.0
    for scale, (found, known) in enumerate(zip(search, reference, strict=True)):
        middle = known.mean((2, 3), keepdim=True)
        own, other = ([per[scale][kind] for per in index] for kind in (0, 1))
        limit = max(1, *(len(x) for x in own + other))
        cells = [gather_cells(known - middle, x, limit) for x in (own, other)]
        unit = torch.nn.functional.normalize(found - middle, dim=1)
        margin = evidence(unit, cells[0], cells[1])[:, 2:]
        size = search[0].shape[-2:]
        total = total + torch.nn.functional.interpolate(margin, size, mode="bilinear", align_corners=False)
    assert isinstance(total, Tensor)
    return gain * total


def matching(batch: Batch) -> Tensor:
    """:func:`untrained` as a responder."""
    return untrained(batch.search, batch.reference, batch.index)


def trained(network: ResidueNetwork) -> Responder:
    """The network as a responder."""
    return lambda batch: respond(network, batch)


# ------------------------------------------------------------------------------------------------- pictures


def sheet(bank: Bank, found: Answers, numbers: list[int], side: int = 128) -> np.ndarray:
    """Return a picture (BGR): a row per sample with reference, its mask's outline, search crop, truth, response."""
    rows = []
    for number in numbers:
        search, reference, mask = bank.pictures(number)
        picture, known = (np.ascontiguousarray(x.permute(1, 2, 0).numpy()[..., ::-1]) for x in (search, reference))
        outline = cv2.findContours(mask[0].numpy() // 128, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
        known = cv2.drawContours(known.copy(), outline, -1, (0, 255, 255), 2)
        heats = [_heat(picture, np.pad(x[number], BORDER)) for x in (found.label, found.response)]
        cells = [cv2.resize(x, (side, side), interpolation=cv2.INTER_AREA) for x in (known, picture, *heats)]
        text = f"{100 * float(bank.size[number]):.1f}% {KINDS[int(bank.kind[number])]}"
        cv2.putText(cells[1], text, (3, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (255, 255, 255), 1, cv2.LINE_AA)
        score = f"r {found.scores[number]:.3f}"
        cv2.putText(cells[3], score, (3, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (255, 255, 255), 1, cv2.LINE_AA)
        rows.append(np.concatenate(cells, 1))
    return np.concatenate(rows, 0)


def _heat(picture: np.ndarray, response: np.ndarray) -> np.ndarray:
    size = picture.shape[1::-1]
    strength = cv2.resize(response.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)[..., None]
    colour = cv2.applyColorMap((strength * 255).clip(0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return (picture * 0.35 * (1 - strength) + colour * (0.35 + 0.65 * strength)).clip(0, 255).astype(np.uint8)


def hits_misses_alarms(bank: Bank, found: Answers, each: int = 6) -> list[list[int]]:
    """Sample numbers of typical hits, of the worst misses and of the worst false alarms."""
    residue, clean = (np.nonzero(x.numpy())[0] for x in (bank.with_residue & ~bank.clean, bank.clean))
    order = residue[np.argsort(found.scores[residue] / (bank.size.numpy()[residue] + 0.01))]
    middle = order[len(order) // 4 :]
    hits = middle[np.linspace(0, len(middle) - 1, min(each, len(middle))).round().astype(int)] if len(middle) else []
    alarms = clean[np.argsort(-found.scores[clean])][:each]
    return [[int(i) for i in chosen] for chosen in (hits, order[:each], alarms)]


def write_sheets(folder: Path, name: str, bank: Bank, found: Answers, each: int = 6) -> Path | None:
    """Write hits, misses and false alarms side by side as a JPEG below 300 kB."""
    columns = [sheet(bank, found, numbers) for numbers in hits_misses_alarms(bank, found, each) if numbers]
    if not columns:
        return None
    height = max(len(c) for c in columns)
    padded = [np.pad(c, ((0, height - len(c)), (0, 12), (0, 0)), constant_values=255) for c in columns]
    file = folder / f"{name}.jpg"
    cv2.imwrite(str(file), np.concatenate(padded, 1), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return file
