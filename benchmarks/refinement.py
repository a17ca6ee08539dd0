"""Does refinement move masks and pictures the right way, and what does it cost?

    python -m benchmarks.refinement CASES_DIR [--detector oracle | lite | siammask] [--kinds planted,natural,clean]
        [--propagator lite | flow] [--backbone lite | flow] [--detector-weights FILE] [--mode auto | mask]
        [--attention] [--no-bridging] [--frames N] [--only CASE,...] [--save DIR] [--cache DIR]
    python -m benchmarks.refinement --made N --pack TRAINING_PACK ...

CASES_DIR/<case>/{frames,masks,clean}/00000.png ...; or N composites made of the held-back part of a training pack, to
tune thresholds on. Three kinds of masks are refined: "planted", the true ones with a part cut off in some frames;
"natural", those of the propagator; "clean", the true ones.

Prints per case, before and after: J&F, PSNR over the true mask's pixels, the recovered share of what the masks missed,
what they grew over elsewhere (in shares of the target), how many frames were suspicious, changed and refused, and the
processor time of everything over that of propagation and inpainting alone. With ``--attention`` the masks are corrected
by what other frames show before they are refined, and "before" is before that. The detector "oracle" knows the clean
clip: it shows what the procedure can do with a perfect one.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.compare import overlay
from ciri.frames import grow_mask
from ciri.inactivation.learned import inactivation_map, shipped
from ciri.inpainting import registry as backbones
from ciri.inpainting.base import Backbone
from ciri.inpainting.remove import remove
from ciri.metrics.local import local_scores
from ciri.metrics.segmentation import segmentation_score
from ciri.propagation import registry as propagators
from ciri.propagation.base import Propagator
from ciri.refinement.refine import Refinement, refine
from ciri.refinement.settings import RefinementSettings
from ciri.residue import registry
from ciri.residue.crops import crop, search_window

COLUMNS = ("JF", "JF'", "dB", "dB'", "found", "wrong", "seen", "changed", "refused", "time")


@dataclass
class Clip:
    """A composite: frames and clean (T, 3, H, W), true masks (T, 1, H, W)."""

    name: str
    frames: Tensor
    clean: Tensor
    true: Tensor


class Oracle:
    """What a perfect detector would answer: how much of the target's colour is left, blurred by two pixels.

    Only what is visible counts, and only what is the target's: a fill that is merely wrong is no residue.
    """

    name, threshold, device = "oracle", 0.3, torch.device("cpu")

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.near = (grow_mask(clip.true, 3) > 0).float()
        kernel = torch.exp(-torch.arange(-6, 7).float().square() / 8)
        self.kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)

    def template(self, frame: Tensor, mask: Tensor) -> None:
        """Nothing to remember."""

    def detect(self, template: None, frames: Tensor, boxes: list[Any], removal: object = None) -> Tensor:
        """See :class:`ciri.residue.base.ResidueDetector`."""
        maps = []
        for frame, box in zip(frames, boxes, strict=True):
            t = int((self.clip.clean - frame.detach()).abs().mean((1, 2, 3)).argmin())
            change, target = frame - self.clip.clean[t], self.clip.frames[t] - self.clip.clean[t]
            visible = ((change.abs().mean(0) - 0.06) * 60).sigmoid()
            share = ((change * target).sum(0) / (target.square().sum(0) + 1e-3)).clamp(0, 1)
            response = 0.95 * (visible * share * self.near[t, 0])[None, None]
            response = F.conv2d(F.pad(response, (6, 6, 6, 6)), self.kernel)
            response = F.conv2d(response, self.kernel.transpose(2, 3))
            maps.append(crop(response, [search_window(box)], 125, torch.zeros(1)))
        return torch.logit(torch.cat(maps).clamp(0.002, 0.998))


def read_clip(folder: pathlib.Path, count: int | None) -> Tensor:
    """Return float32 (T, 3, H, W) in [0, 1] from a folder of numbered images."""
    images = [cv2.imread(str(file))[:, :, ::-1] for file in sorted(folder.glob("*.png"))[:count]]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def cases(folder: pathlib.Path, only: list[str], count: int | None) -> Iterator[Clip]:
    """Composites on disk."""
    for case in sorted(p for p in folder.iterdir() if (p / "clean").is_dir()):
        if not only or case.name in only:
            true = (read_clip(case / "masks", count)[:, :1] > 0).float()
            yield Clip(case.name, read_clip(case / "frames", count), read_clip(case / "clean", count), true)


def made(pack: pathlib.Path, number: int, count: int | None) -> Iterator[Clip]:
    """Composites of held-back training material."""
    from ciri.training.composites import CompositeMaker
    from ciri.training.data import open_library

    _, held = open_library(pack).split()
    maker = CompositeMaker(held, (240, 432), count or 24)
    for index in range(number):
        composite = maker.make(np.random.default_rng(1000 + index))
        if composite.mask[0].sum() > 400:
            frames, clean = (
                torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).float() / 255
                for x in (composite.frames, composite.clean)
            )
            yield Clip(f"made_{index:02d}", frames, clean, torch.from_numpy(composite.mask)[:, None].float())


def cut_parts(true: Tensor, random: np.random.Generator) -> Tensor:
    """Masks without 10 to 30 % of the target, on one side of a line, in runs of one to five frames."""
    masks, t = true.clone(), 1 + int(random.integers(0, 3))
    while t < len(true):
        run, angle, share = int(random.integers(1, 6)), random.uniform(0, 2 * np.pi), random.uniform(0.1, 0.3)
        for u in range(t, min(t + run, len(true))):
            y, x = torch.nonzero(true[u, 0] > 0.5, as_tuple=True)
            if len(y) >= 200:
                along = x.float() * np.cos(angle) + y.float() * np.sin(angle)
                off = along > torch.quantile(along, 1 - share)
                masks[u, 0, y[off], x[off]] = 0
        t += run + int(random.integers(2, 8))
    return masks


def pipeline(
    clip: Clip, kind: str, propagator: Propagator, backbone: Backbone, cache: pathlib.Path | None
) -> dict[str, Any]:
    """Masks of one kind, the clip inpainted with them, and the processor seconds of both stages; kept on disk."""
    names = (clip.name, kind, propagator.name, backbone.name, str(len(clip.frames)))
    stored = cache / f"{'-'.join(names)}.pt" if cache else None
    if stored and stored.exists():
        found: dict[str, Any] = torch.load(stored, weights_only=True)
        return found
    begun = time.process_time()
    track = propagator.propagate(clip.frames, clip.true[:1], [0])
    propagated = time.process_time() - begun
    planted = cut_parts(clip.true, np.random.default_rng(len(clip.name)))
    masks = {"natural": track.probs, "planted": planted, "clean": clip.true}[kind]
    begun = time.process_time()
    inpainted = remove(clip.frames, masks, backbone)
    result = {"masks": masks, "inpainted": inpainted, "seconds": propagated + time.process_time() - begun}
    if stored:
        stored.parent.mkdir(parents=True, exist_ok=True)
        torch.save(result, stored)
    return result


def measure(clip: Clip, given: dict[str, Any], result: Refinement, seconds: float) -> list[float]:
    """The numbers of COLUMNS."""
    true, masks = clip.true > 0.5, given["masks"] > 0.5
    grown = (result.masks > 0.5) & ~masks
    missed = true & ~masks
    row: list[float] = []
    for m in (given["masks"], result.masks):
        row.append(100 * segmentation_score(m, clip.true).mean()[2])
    for y in (given["inpainted"], result.inpainted):
        rounded = (y * 255).round() / 255
        row.append(float(local_scores(rounded, clip.clean, clip.true).psnr_mask.nanmean()))
    row += [float((grown & missed).sum() / missed.sum().clamp(min=1)), float((grown & ~true).sum() / true.sum())]
    refused = len(result.report.frames) - len(result.report.accepted)
    row += [len(result.report.frames), len(result.report.accepted), refused, 1 + seconds / given["seconds"]]
    return row


def strip(path: pathlib.Path, clip: Clip, given: dict[str, Any], result: Refinement) -> None:
    """Write the frame that changed most: as filmed with both masks, response, and both pictures."""
    change = (result.masks - given["masks"]).abs().sum((1, 2, 3)) + result.before.scores
    t = int(change.argmax())
    rows = [
        overlay(clip.frames[t : t + 1], given["masks"][t : t + 1])[0],
        overlay(clip.frames[t : t + 1], result.masks[t : t + 1])[0],
        result.before.maps[t].expand(3, -1, -1),
        given["inpainted"][t],
        result.inpainted[t],
        clip.clean[t],
    ]
    image = torch.cat(rows, 2).permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), (image * 255).round().astype(np.uint8)[:, :, ::-1])


def main() -> None:
    """Run all cases, kinds and modes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=pathlib.Path, nargs="?")
    parser.add_argument("--made", type=int, default=0, help="make so many composites instead")
    parser.add_argument("--pack", type=pathlib.Path, help="of a training pack")
    parser.add_argument("--propagator", default="lite", choices=("lite", "flow"), help="of the natural masks")
    parser.add_argument("--backbone", default="lite", choices=("lite", "flow"))
    parser.add_argument("--detector", default="lite", help="oracle, lite (default) or siammask")
    parser.add_argument("--detector-weights", type=pathlib.Path)
    parser.add_argument("--kinds", default="planted,natural,clean")
    parser.add_argument("--mode", default="auto", choices=("auto", "mask"))
    parser.add_argument("--attention", action="store_true", help="correct the masks first")
    parser.add_argument("--no-bridging", action="store_true", help="leave masks that drop out to the detector")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--frames", type=int, help="use only so many frames")
    parser.add_argument("--only", default="", help="CASE,...")
    parser.add_argument("--save", type=pathlib.Path, help="write a strip of pictures per case here")
    parser.add_argument("--cache", type=pathlib.Path, help="keep the unrefined results here")
    parser.add_argument("--verbose", action="store_true", help="print every report")
    arguments = parser.parse_args()
    options = {} if arguments.detector_weights is None else {"weights": arguments.detector_weights}
    propagator, backbone = propagators.build(arguments.propagator), backbones.build(arguments.backbone)
    shared = None
    if arguments.detector != "oracle":
        shared = registry.build(arguments.detector, device=torch.device("cpu"), **options)
    only = [name for name in arguments.only.split(",") if name]
    if arguments.made:
        clips = made(arguments.pack, arguments.made, arguments.frames)
    else:
        clips = cases(arguments.cases, only, arguments.frames)
    table: dict[str, list[list[float]]] = {kind: [] for kind in arguments.kinds.split(",")}
    print(f"{'case':30s} {'kind':8s} " + " ".join(f"{c:>7s}" for c in COLUMNS))
    for clip in clips:
        for kind, rows in table.items():
            given = pipeline(clip, kind, propagator, backbone, arguments.cache)
            begun = time.process_time()
            masks, inpainted = given["masks"], given["inpainted"]
            if arguments.attention:
                masks = inactivation_map(clip.frames, clip.true[:1], masks, shipped(), shadow=False)
                inpainted = remove(clip.frames, masks, backbone)
            result = refine(
                clip.frames,
                clip.true[0],
                masks,
                inpainted,
                backbone=backbone,
                detector=shared or Oracle(clip),
                propagator=None if arguments.no_bridging else propagator,
                settings=RefinementSettings(mode=arguments.mode, epochs=arguments.epochs),
            )
            rows.append(measure(clip, given, result, time.process_time() - begun))
            print(f"{clip.name:30s} {kind:8s} " + " ".join(f"{v:7.2f}" for v in rows[-1]), flush=True)
            if arguments.verbose:
                print(result.report.text())
            if arguments.save:
                strip(arguments.save / f"{clip.name}-{kind}.png", clip, given, result)
    for kind, rows in table.items():
        mean = np.nanmean(rows, 0)
        gains = np.array(rows)[:, [1, 3]] - np.array(rows)[:, [0, 2]]
        print(f"{'MEAN':30s} {kind:8s} " + " ".join(f"{v:7.2f}" for v in mean))
        print(f"{'':30s} {kind:8s} gain {mean[1] - mean[0]:+.2f} J&F, {mean[3] - mean[2]:+.2f} dB; worst clip "
              f"{gains[:, 0].min():+.2f} J&F, {gains[:, 1].min():+.2f} dB")  # fmt: skip


if __name__ == "__main__":
    main()
