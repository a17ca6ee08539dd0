"""What noise costs a removal, and how near the grain of what was filled in comes to that of the clip.

    python -m benchmarks.grain CASES [--deviations 0,2,6] [--backbone lite] [--sheet SHEET.png]

CASES holds a folder of ``frames``, ``clean`` and ``masks`` (PNG) per case. Frames and clean frames get the same noise,
white in three colours, of so many grey levels of 255 each; the true masks say what is removed. Per clip and deviation
are printed: the PSNR of the hidden pixels against the clean clip without noise, before grain is matched; and how rough
the fill is, as a share of the roughness of the clip without the object, before and after grain is matched: the root
mean square of the Laplacian of luma, in parts whose background is flat. Without noise the share says how much of its
faint texture the fill has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.frames import grow_mask
from ciri.grain import match_grain
from ciri.inpainting import registry as backbones
from ciri.inpainting.remove import remove
from ciri.mask_files import read_masks
from ciri.media import read_clip
from ciri.noise import to_planes

#: Pixels from the edge of a mask that are looked at neither for roughness nor for flatness.
RIM = 3
#: The Laplacian's mean absolute value, in grey levels, over so many pixels a side, up to which a background is flat.
FLAT, AROUND = 10.0, 9
_LAPLACIAN = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])[None, None]


def laplacian(clip: Tensor) -> Tensor:
    """The Laplacian (T, 1, H, W) of a clip's luma, in grey levels."""
    luma = torch.stack([to_planes(frame)[:1] for frame in clip])
    return F.conv2d(255 * luma, _LAPLACIAN, padding=1)


def roughness(clip: Tensor, where: Tensor) -> float:
    """Root mean square of the Laplacian where the bool (T, 1, H, W) says."""
    return float(laplacian(clip)[where].square().mean().sqrt())


def measured(case: Path, deviation: float, backbone: str) -> tuple[list[float], Tensor]:
    """PSNR, and both shares, of one case; and a picture (3, h, w) of its middle frame."""
    frames, clean = (read_clip(case / kind).frames for kind in ("frames", "clean"))
    masks = (read_masks(case / "masks")[0] > 0.5).float()
    noise = deviation / 255 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))
    noisy, truth = (((clip + noise).clamp(0, 1) * 255).round() / 255 for clip in (frames, clean))
    filled = remove(noisy, masks, backbones.build(backbone))
    matched, _ = match_grain(noisy, filled)
    error = float((filled - clean).square().mean(1, keepdim=True)[masks > 0].mean())
    inside = grow_mask(masks, -RIM) > 0
    flat = inside & (F.avg_pool2d(laplacian(clean).abs(), AROUND, 1, AROUND // 2) < FLAT)
    whole = roughness(truth, flat)
    row = [-10 * float(np.log10(max(error, 1e-9)))]
    row += [roughness(clip, flat) / whole if flat.any() and whole > 0 else float("nan") for clip in (filled, matched)]
    middle = len(frames) // 2
    return row, torch.cat([clip[middle] for clip in (noisy, filled, matched, truth)], 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--deviations", default="0,2,6", help="grey levels, separated by commas")
    parser.add_argument("--backbone", default="lite")
    parser.add_argument("--sheet", type=Path, help="PNG: noisy frame, filled, grain matched, truth, a row per line")
    options = parser.parse_args()
    deviations = [float(value) for value in options.deviations.split(",")]
    print(f"{'clip':28s} {'noise':>6s} {'PSNR':>7s} {'rough':>7s} {'matched':>7s}")
    rows: dict[float, list[list[float]]] = {deviation: [] for deviation in deviations}
    pictures = []
    for case in sorted(path for path in options.cases.iterdir() if (path / "masks").is_dir()):
        for deviation in deviations:
            row, picture = measured(case, deviation, options.backbone)
            rows[deviation].append(row)
            pictures.append(picture)
            print(f"{case.name:28s} {deviation:6.1f} " + " ".join(f"{value:7.2f}" for value in row), flush=True)
    for deviation, found in rows.items():
        print(f"{'MEAN':28s} {deviation:6.1f} " + " ".join(f"{value:7.2f}" for value in np.nanmean(found, 0)))
    if options.sheet is not None:
        sheet = torch.cat(pictures, 1).permute(1, 2, 0).numpy()[..., ::-1] * 255
        cv2.imwrite(str(options.sheet), sheet.round().astype(np.uint8))


if __name__ == "__main__":
    main()
