"""Quality and speed of the classical backbone on composites with a known clean clip.

    python -m benchmarks.classical_inpainting CASES_DIR [--passes 1] [--save DIR]

CASES_DIR/<case>/{frames,masks,clean}/00000.png ...: a clip with something pasted in, where it is, and the clip
without it. Prints per case the PSNR over mask pixels (mean over frames) of the flow backbone and, for comparison,
of OpenCV's Telea inpainting frame by frame, the processor time and the elapsed time per frame.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import cv2
import numpy as np
import torch

from ciri.frames import grow_mask
from ciri.inpainting.flow import FlowBackbone
from ciri.inpainting.remove import remove


def read_clip(folder: pathlib.Path) -> torch.Tensor:
    """Return float32 (T, 3, H, W) in [0, 1] from a folder of numbered images."""
    images = [cv2.imread(str(file))[:, :, ::-1] for file in sorted(folder.glob("*.png"))]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def local_psnr(result: torch.Tensor, clean: torch.Tensor, masks: torch.Tensor) -> float:
    """Return the PSNR in dB over mask pixels of 8-bit pictures, mean over the frames that have any."""
    error = ((result * 255).round() - clean * 255).square().mean(1)
    values = [
        10 * np.log10(255**2 / max(float(e[m[0] > 0.5].mean()), 1e-9))
        for e, m in zip(error, masks, strict=True)
        if (m > 0.5).any()
    ]
    return float(np.mean(values))


def telea(frames: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the clip with OpenCV's Telea inpainting of every frame on its own."""
    filled = []
    for frame, mask in zip(frames, grow_mask(masks, 4), strict=True):
        image = (frame.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        filled.append(cv2.inpaint(image, (mask[0].numpy() > 0).astype(np.uint8), 5, cv2.INPAINT_TELEA))
    return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).float() / 255


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=pathlib.Path)
    parser.add_argument("--save", type=pathlib.Path, help="write the results here, as CASE/00000.png")
    parser.add_argument("--passes", type=int, default=2, choices=(1, 2), help="of the flow backbone (default 2)")
    arguments = parser.parse_args()
    rows = []
    print(f"{'case':30s} {'flow dB':>8s} {'Telea dB':>8s} {'cpu s/frame':>12s} {'s/frame':>8s}")
    for case in sorted(p for p in arguments.cases.iterdir() if (p / "clean").is_dir()):
        frames, clean = read_clip(case / "frames"), read_clip(case / "clean")
        masks = (read_clip(case / "masks")[:, :1] > 0).float()
        used, elapsed = time.process_time(), time.perf_counter()
        result = remove(frames, masks, FlowBackbone(arguments.passes))
        used, elapsed = time.process_time() - used, time.perf_counter() - elapsed
        row = (local_psnr(result, clean, masks), local_psnr(telea(frames, masks), clean, masks))
        rows.append((*row, used / len(frames), elapsed / len(frames)))
        print("{:30s} {:8.2f} {:8.2f} {:12.3f} {:8.3f}".format(case.name, *rows[-1]), flush=True)
        if arguments.save:
            (arguments.save / case.name).mkdir(parents=True, exist_ok=True)
            for index, frame in enumerate(result):
                image = (frame.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
                cv2.imwrite(str(arguments.save / case.name / f"{index:05d}.png"), image[:, :, ::-1])
    print("{:30s} {:8.2f} {:8.2f} {:12.3f} {:8.3f}".format("MEAN", *np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()
