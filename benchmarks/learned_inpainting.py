"""Local PSNR of removal with true masks: the classical backbone against the trained one.

    python benchmarks/learned_inpainting.py CASES_DIR [--weights FILE ...] [--predicted] [--sheet FILE.png]

CASES_DIR holds CASE/{frames,masks,clean}/00000.png. Prints, per case and on average, the PSNR in dB over the pixels
under the true mask (mean over frames), and seconds per frame.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ciri.inpainting.base import Backbone
from ciri.inpainting.flow import FlowBackbone
from ciri.inpainting.lite import SHIPPED, load_lite
from ciri.inpainting.remove import remove
from ciri.training.data import image_files
from ciri.training.losses import frame_psnr
from ciri.training.masks import wrong_masks


def read(folder: Path, limit: int | None) -> torch.Tensor:
    """Images of a folder as float32 (T, 3, H, W) in [0, 1], RGB."""
    images = [cv2.imread(str(file))[..., ::-1] for file in image_files(folder)[:limit]]
    return torch.from_numpy(np.ascontiguousarray(np.stack(images))).permute(0, 3, 1, 2).float() / 255


def score(case: Path, backbones: dict[str, Backbone], args: argparse.Namespace) -> tuple[list[float], list[np.ndarray]]:
    """PSNR and seconds per frame of each backbone on one case, and the pictures of its middle frame."""
    frames, clean = read(case / "frames", args.frames), read(case / "clean", args.frames)
    true = (read(case / "masks", args.frames)[:, :1] > 0).float()
    mask = true
    if args.predicted:
        wrong = wrong_masks(true[:, 0].bool().numpy(), np.random.default_rng(len(case.name)))
        mask = torch.from_numpy(wrong)[:, None].float()
    middle = len(frames) // 2
    numbers, pictures = [], [frames[middle]]
    for backbone in backbones.values():
        start = time.perf_counter()
        result = remove(frames, mask, backbone)
        seconds = (time.perf_counter() - start) / len(frames)
        numbers += [float(frame_psnr((result * 255).round() / 255, clean, true).mean()), seconds]
        pictures.append(result[middle])
    pictures.append(clean[middle])
    return numbers, [(p.permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8) for p in pictures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--weights", type=Path, nargs="+", default=[SHIPPED], help="files of 'train backbone'")
    parser.add_argument("--predicted", action="store_true", help="with the wrong masks of training, not the true ones")
    parser.add_argument("--frames", type=int, help="read so many frames of each case only")
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--sheet", type=Path, help="write frame, results and clean of each case side by side")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    backbones: dict[str, Backbone] = {"flow": FlowBackbone()}
    backbones |= {file.stem: load_lite(file, device=args.device) for file in args.weights}
    print(f"{'':28s} " + "  ".join(f"{name[-20:]:>20s}" for name in backbones))
    table, sheet = [], []
    for case in sorted(p for p in args.cases.iterdir() if (p / "clean").is_dir() and (args.only or "") in p.name):
        numbers, pictures = score(case, backbones, args)
        table.append(numbers)
        sheet.append(np.concatenate(pictures, 1))
        cells = [f"{db:10.2f} dB {s:5.2f} s" for db, s in zip(numbers[::2], numbers[1::2], strict=True)]
        print(f"{case.name:28s} " + "  ".join(cells), flush=True)
    means = np.mean(table, 0)
    cells = [f"{db:10.2f} dB {s:5.2f} s" for db, s in zip(means[::2], means[1::2], strict=True)]
    print(f"{'MEAN':28s} " + "  ".join(cells))
    if args.sheet:
        cv2.imwrite(str(args.sheet), np.concatenate(sheet, 0))


if __name__ == "__main__":
    main()
