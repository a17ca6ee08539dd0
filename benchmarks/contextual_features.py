"""Which features make the contextual loss point at the right region, and which way it then pulls a wrong mask.

    python -m benchmarks.contextual_features CASES_DIR [--lite FILE] [--vgg FILE] [--later 8]

CASES_DIR/<case>/{frames,masks}/00000.png ...: clips with the target's true mask. The target of frame 0 is compared
with true masks of a later frame that are scaled about their centre. Prints, for each feature extractor, the mean loss
at each scale in the three orders, and in how many clips the symmetric loss is smallest there: scale 1 is right. Then
the share of the gradient's pull (its l1 norm) that is towards the truth, less what is away from it, for masks that lack
a part (a half-plane cut, at 0.15 instead of 1) and for masks with a part too many (a patch beside the target, at 0.85):
1 would be all of it, and a number below 0 is a pull the wrong way. VGG-19 with random weights is the floor to beat.
"""

from __future__ import annotations

import argparse
import math
import pathlib

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.refinement.contextual import Order
from ciri.refinement.features import DetectorFeatures
from ciri.refinement.regions import Comparison, Crop, FeatureExtractor, enlarged, keep_features
from ciri.refinement.vgg import VGG19Features, load_vgg19
from ciri.residue.crops import target_box
from ciri.residue.lite import SHIPPED, build_lite

SCALES = (0.25, 0.55, 0.85, 1.0, 1.15, 1.6, 2.0)
ORDERS: tuple[Order, ...] = ("template rows", "prediction rows", "symmetric")
#: Targets with a shorter side are left out: a cell of the features covers a good part of them.
SMALLEST = 24


def read(file: pathlib.Path) -> Tensor:
    """Return float32 (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(cv2.imread(str(file))[:, :, ::-1])).permute(2, 0, 1).float() / 255


def samples(cases: pathlib.Path, later: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return (first frame, first mask, later frame, later mask) of every case whose target is large enough in both."""
    found = []
    for case in sorted(p for p in cases.iterdir() if (p / "masks").is_dir()):
        names = sorted(file.name for file in (case / "frames").glob("*.png"))
        names = [names[0], names[min(later, len(names) - 1)]]
        frames = [read(case / "frames" / name) for name in names]
        masks = [(read(case / "masks" / name)[:1] > 0.5).float() for name in names]
        boxes = [target_box(mask) for mask in masks]
        if all(box is not None and min(box.width, box.height) >= SMALLEST for box in boxes):
            found.append((frames[0], masks[0], frames[1], masks[1]))
    return found


def random_vgg() -> VGG19Features:
    """VGG-19 with weights drawn once and for all."""
    network, generator = VGG19Features(), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            spread = math.sqrt(2 / parameter[0].numel())
            parameter.data = torch.randn(parameter.shape, generator=generator) * spread
        else:
            parameter.data.zero_()
    return network.eval().requires_grad_(False)


def scaled(mask: Tensor, factor: float) -> Tensor:
    """A mask (1, H, W) enlarged about the centre of its box."""
    box = target_box(mask)
    assert box is not None
    height, width = mask.shape[1:]
    shift = [
        (2 * centre / side - 1) * (1 - 1 / factor) for centre, side in zip(box.centre, (width, height), strict=True)
    ]
    matrix = torch.tensor([[1 / factor, 0, shift[0]], [0, 1 / factor, shift[1]]])
    grid = F.affine_grid(matrix[None], [1, 1, height, width], align_corners=False)
    return F.grid_sample(mask[None], grid, align_corners=False)[0]


def wrong_masks(mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The mask (1, H, W) without a part, and with a part too many; soft, as a propagator's are."""
    box = target_box(mask)
    assert box is not None
    angle = torch.rand((), generator=torch.Generator().manual_seed(seed)) * 2 * math.pi
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in mask.shape[1:]), indexing="ij")
    along = ((x - box.centre[0]) * angle.cos() + (y - box.centre[1]) * angle.sin())[None]
    missing = (mask > 0.5) & (along > along[mask > 0.5].quantile(0.7))
    around = F.max_pool2d(mask[None], 31, 1, 15)[0] > 0.5
    extra = around & (mask < 0.5) & (along < 0)
    soft = mask * 0.96 + 0.02
    return torch.where(missing, 0.15, soft), torch.where(extra, 0.85, soft)


def pull(comparison: Comparison, start: Tensor, truth: Tensor) -> float:
    """Share of the gradient's l1 norm that is towards the truth less the share that is away from it."""
    logits = torch.logit(start).requires_grad_()
    (gradient,) = torch.autograd.grad(comparison.loss(logits.sigmoid()), logits)
    towards = -gradient * (truth - start).sign()
    changed = (truth - start).abs() > 0.1
    return float(towards[changed].sum() / gradient.abs().sum().clamp(min=1e-12))


def measure(extractor: FeatureExtractor, pairs: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
    """Print the table of one extractor."""
    losses: dict[Order, list[list[float]]] = {order: [] for order in ORDERS}
    pulls: dict[Order, list[list[float]]] = {order: [] for order in ORDERS}
    for seed, (first, first_mask, frame, mask) in enumerate(pairs):
        boxes = target_box(first_mask), target_box(mask)
        assert boxes[0] is not None and boxes[1] is not None
        template: Crop = keep_features(extractor, first, boxes[0])
        wide, near = (keep_features(extractor, frame, enlarged(boxes[1], factor)) for factor in (2.2, 1.3))
        for order in ORDERS:
            whole = Comparison(template, first_mask, wide, order=order)
            losses[order].append([float(whole.loss(scaled(mask, scale))) for scale in SCALES])
            comparison = Comparison(template, first_mask, near, order=order)
            pulls[order].append([pull(comparison, start, mask) for start in wrong_masks(mask, seed)])
    print(f"\n{extractor.name}: {len(pairs)} clips")
    print(f"  {'loss at scale':16s}" + "".join(f"{scale:7.2f}" for scale in SCALES) + "   pull: missing   extra")
    for order in ORDERS:
        means, (missing, extra) = np.mean(losses[order], 0), np.mean(pulls[order], 0)
        print(f"  {order:16s}" + "".join(f"{mean:7.2f}" for mean in means) + f"{missing:16.3f} {extra:7.3f}")
    best = np.bincount(np.argmin(losses["symmetric"], 1), minlength=len(SCALES))
    print(f"  {'smallest there':16s}" + "".join(f"{count:7d}" for count in best), flush=True)


def main() -> None:
    """Measure every extractor that there are weights for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=pathlib.Path)
    parser.add_argument("--lite", type=pathlib.Path, help="weights of the residue detector (default: the shipped ones)")
    parser.add_argument("--vgg", type=pathlib.Path, help="torchvision's VGG-19 file")
    parser.add_argument("--later", type=int, default=8, help="which frame is compared with frame 0")
    arguments = parser.parse_args()
    pairs = samples(arguments.cases, arguments.later)
    floor = random_vgg()
    floor.name = "VGG-19, random weights"
    extractors: list[FeatureExtractor] = [floor]
    if arguments.lite or SHIPPED.exists():
        detector = build_lite(arguments.lite)
        extractors += [DetectorFeatures(detector, level) for level in (0, 1, 2)]
    if arguments.vgg:
        extractors.append(load_vgg19(arguments.vgg))
    for extractor in extractors:
        measure(extractor, pairs)


if __name__ == "__main__":
    main()
