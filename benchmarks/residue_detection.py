"""How well a residue detector tells removed targets from half removed ones, on composites whose answer is known.

    python -m benchmarks.residue_detection CASES [--detector lite] [--weights FILE] [--work FOLDER] [--pictures FOLDER]

CASES holds a folder per case with ``frames``, ``masks`` and ``clean`` (PNG). From each, the target is removed twice by
the flow backbone in one pass: with its true masks, and with masks of which parts are missing (seeded by the case's
number). A frame of the second removal counts as one with residue if at least 1 % of the target's box is still there.
The score is that of the product: boxes from the very masks that the removal used.

``--detector untrained`` is the part matching alone, on the encoder's own features: what training has to beat.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.inpainting.flow import FlowBackbone
from ciri.inpainting.remove import remove, soft_edges
from ciri.residue import registry
from ciri.residue.base import Box, Removal, ResidueDetector
from ciri.residue.crops import crop, search_window, target_box
from ciri.residue.detect import Residue, detect_residue
from ciri.residue.lite import CROP, SHIPPED, LiteDetector, cell_indices, load_lite
from ciri.training.residue_bank import CLEAN_BELOW, RESIDUE_FROM
from ciri.training.residue_data import FEATHER, GROW, incomplete_masks, residue_label
from ciri.training.residue_report import area_under_curve, average_precision, untrained


class PartMatching(LiteDetector):
    """Part matching without anything trained, with the encoder of the shipped detector."""

    name = "untrained"

    def template(self, frame: Tensor, mask: Tensor) -> Any:
        """See the protocol."""
        box = target_box(mask)
        assert box is not None
        fill, window = frame.mean((1, 2)), [search_window(box)]
        target = crop(mask[None], window, CROP, fill.new_zeros(1), antialias=True)[0]
        maps = self.network.encode(crop(frame[None], window, CROP, fill, antialias=True))
        return maps, [cell_indices(target)], fill

    def detect(self, template: Any, frames: Tensor, boxes: Sequence[Box], removal: Removal | None = None) -> Tensor:
        """See the protocol; the removal is not looked at."""
        maps, index, fill = template
        crops = crop(frames, [search_window(box) for box in boxes], CROP, fill, antialias=True)
        search = self.network.encode(crops)
        return untrained(search, maps, index)


def read(folder: Path, mode: int) -> np.ndarray:
    """All PNGs of a folder, (T, H, W, 3) RGB or (T, H, W)."""
    images = [cv2.imread(str(file), mode) for file in sorted(folder.glob("*.png"))]
    return np.stack([i[..., ::-1] if i.ndim == 3 else i for i in images])


def removals(case: Path, number: int, work: Path | None) -> dict[str, np.ndarray]:
    """The case's frames, and its removals with true and with incomplete masks; kept in the work folder."""
    file = None if work is None else work / f"{case.name}.npz"
    if file is not None and file.exists():
        with np.load(file) as kept:
            return dict(kept)
    frames, clean = (read(case / name, cv2.IMREAD_COLOR) for name in ("frames", "clean"))
    true = read(case / "masks", cv2.IMREAD_GRAYSCALE) > 127
    wrong = incomplete_masks(true, np.random.default_rng([2023, number]))
    result = {"frames": frames, "clean": clean, "true": true, "wrong": wrong}
    for name, masks in (("with_true", true), ("with_wrong", wrong)):
        filled = remove(_clip(frames), torch.from_numpy(masks)[:, None].float(), FlowBackbone(passes=1))
        result[name] = (filled * 255).round().byte().permute(0, 2, 3, 1).numpy()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, **result)
    return result


def _clip(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True)
class Examined:
    """What was found in one removal, and the truth: label and how sure it is, and areas as shares of the box."""

    residue: Residue
    label: Tensor
    sure: Tensor
    size: Tensor
    soft: Tensor
    doubt: Tensor


def examine(data: dict[str, np.ndarray], detector: ResidueDetector) -> dict[str, Examined]:
    """Detect in both removals."""
    frames, clean, true = _clip(data["frames"]), _clip(data["clean"]), torch.from_numpy(data["true"])[:, None].float()
    found = {}
    for name, masks in (("with_true", "true"), ("with_wrong", "wrong")):
        used = torch.from_numpy(data[masks])[:, None].float()
        inpainted = _clip(data[name])
        residue = detect_residue(inpainted, true[0], frames, used, detector)
        label, sure = residue_label(inpainted, clean, frames, true, soft_edges(used, GROW, FEATHER)[1])
        if masks == "true":
            label, sure = 0 * label, torch.ones_like(sure)
        areas = torch.tensor([box.width * box.height if box else 1 for box in residue.boxes])
        size = (label >= 0.5).sum((1, 2, 3)) / areas
        soft, doubt = (x.sum((1, 2, 3)) / areas for x in (label, 1 - sure))
        found[name] = Examined(residue, label, sure, size, soft, doubt)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--detector", default="lite")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--threshold", type=float, default=0.9, help="of --detector untrained (default 0.9)")
    parser.add_argument("--work", type=Path, help="keep the removals here")
    parser.add_argument("--pictures", type=Path, help="write a picture per case here")
    args = parser.parse_args()
    if args.detector == "untrained":
        report(args, PartMatching(load_lite(args.weights or SHIPPED)[0], args.threshold))
    else:
        report(args, registry.build(args.detector, weights=args.weights))


def report(args: argparse.Namespace, detector: ResidueDetector) -> None:
    """Print a row per case and the totals."""
    positive: list[float] = []
    clean_true: list[float] = []
    clean_wrong: list[float] = []
    within: list[float] = []
    pixels: list[tuple[np.ndarray, np.ndarray]] = []
    print(f"{'case':28} {'frames':>7} {'mean r':>8} {'clean r':>8} {'AUC':>6}")
    for number, case in enumerate(sorted(p for p in args.cases.iterdir() if (p / "frames").is_dir())):
        data = removals(case, number, args.work)
        found = examine(data, detector)
        wrong = found["with_wrong"]
        here = wrong.residue.scores[wrong.size > RESIDUE_FROM].tolist()
        none = found["with_true"].residue.scores[1:].tolist()
        positive += here
        clean_true += none
        clean_wrong += wrong.residue.scores[1:][(wrong.soft + wrong.doubt)[1:] < CLEAN_BELOW].tolist()
        for one in found.values():
            judged = (one.sure > 0.5) & ((one.label >= 0.5) | (one.label < 0.1))
            pixels.append((one.residue.maps[judged][::7].numpy(), one.label[judged][::7].numpy()))
        auc = area_under_curve(np.array(here), np.array(none))
        within.append(auc)
        mean = np.mean(here) if here else float("nan")
        print(f"{case.name:28} {len(here):7} {mean:8.3f} {np.mean(none):8.3f} {auc:6.3f}", flush=True)
        if args.pictures is not None:
            _picture(args.pictures, case.name, data, found)
    good, bad, other = (np.array(x) for x in (positive, clean_true, clean_wrong))
    response, truth = (np.concatenate(x) for x in zip(*pixels, strict=True))
    print(
        f"frames with residue {len(good)}, removed with true masks {len(bad)}, clean ones of wrong masks {len(other)}"
    )
    print(f"frame-wise AUC: {area_under_curve(good, bad):.4f} against true masks")
    print(f"                {area_under_curve(good, np.concatenate([bad, other])):.4f} against all clean frames")
    print(f"                {np.nanmean(within):.4f} mean of the cases")
    print(f"pixel average precision: {average_precision(response, truth >= 0.5):.4f}")
    print(f"over 0.03 target areas: {(good > 0.03).mean():.3f} of the former, {(bad > 0.03).mean():.3f} of the clean")


def _picture(folder: Path, name: str, data: dict[str, np.ndarray], found: dict[str, Examined]) -> None:
    """Six frames: filmed, removed with wrong masks, truth, response; removed with true masks, response."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for t in np.linspace(1, len(data["frames"]) - 1, 6).astype(int):
        maps = [found["with_wrong"].label[t], *(found[key].residue.maps[t] for key in ("with_wrong", "with_true"))]
        truth, wrong, true = (
            cv2.applyColorMap((m[0].numpy() * 255).clip(0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO) for m in maps
        )
        filmed, half, whole = (data[key][t][..., ::-1] for key in ("frames", "with_wrong", "with_true"))
        row = np.concatenate([filmed, half, truth, wrong, whole, true], 1)
        rows.append(cv2.resize(row, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    cv2.imwrite(str(folder / f"{name}.png"), np.concatenate(rows))


if __name__ == "__main__":
    main()
