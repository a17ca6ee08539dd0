"""What a loosely painted first mask costs, and how much of that snapping it to the object's edges brings back.

    python -m benchmarks.painted_masks FOLDER [--kinds exact,4,brush] [--only NAME ...] [--follow] [--attention]
                                       [--reach SHARE] [--weights FILE] [--every N] [--sheet FILE.png]

FOLDER holds clips with masks as ``benchmarks.propagation_quality`` reads them, or composites
CASE/{frames,masks,clean}/00000.png. The first mask (with ``--every``: each N-th one) is painted in several ways: as it
is, too wide by 2, 4 or 8 pixels or too narrow by 3 (of a frame of 240 lines), dabbed with a brush, or as its convex
outline. Prints per way the mean overlap (J x 100) with the true mask and the share of the target that is covered, as
painted and as snapped; with ``--follow`` also, over all frames after the first, J&F of what the propagator lite makes
of both, and of composites the local PSNR of what is removed with these masks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.propagation_quality import names_in, read_clip, read_masks, sources
from benchmarks.refinement import cases
from ciri.inactivation.learned import inactivation_map
from ciri.inactivation.learned import shipped as attention
from ciri.inpainting import registry as backbones
from ciri.inpainting.remove import remove
from ciri.metrics.local import local_scores
from ciri.metrics.segmentation import segmentation_score
from ciri.propagation import registry as propagators
from ciri.propagation.snap import REACH, SHIPPED, Snapper, network_with

KINDS = ("exact", "2", "4", "8", "-3", "brush", "outline")
Clip = tuple[str, Tensor, Tensor | None, Tensor]


def clips(folder: Path, only: list[str] | None) -> Iterator[Clip]:
    """Name, frames (T, 3, H, W), the clean clip of a composite, and true masks (T, 1, H, W)."""
    if any(folder.glob("*/clean")):
        for case in cases(folder, only or [], None):
            yield case.name, case.frames, case.clean, case.true
        return
    for name in only or names_in(folder):
        video, truth = sources(folder, name)
        frames = torch.from_numpy(read_clip(video)).permute(0, 3, 1, 2).float() / 255
        yield name, frames, None, torch.from_numpy(read_masks(truth)).float()[:, None]


def painted(mask: np.ndarray, kind: str) -> np.ndarray:
    """A true mask, uint8 (H, W), as a person might paint it.

    Not with the code that the network was trained with: this one is to find out what that overlooks.
    """
    unit = min(mask.shape) / 240
    if kind == "exact":
        return mask
    if kind == "outline":
        return _hulls(mask)
    if kind == "brush":
        return _dabbed(mask, 10 * unit)
    radius = max(1, round(abs(int(kind)) * unit))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    changed = cv2.dilate(mask, disc) if int(kind) > 0 else cv2.erode(mask, disc)
    return changed if changed.sum() > 20 else mask


def _hulls(mask: np.ndarray) -> np.ndarray:
    """The convex outline of every part."""
    result = mask.copy()
    for outline in cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
        cv2.fillConvexPoly(result, cv2.convexHull(outline), 1)
    return result


def _dabbed(mask: np.ndarray, radius: float) -> np.ndarray:
    """A round brush, and for the rest one of half the size."""
    random, result = np.random.default_rng(0), np.zeros_like(mask)
    small = max(1, round(radius / 2))
    inner = cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * small + 1, 2 * small + 1)))
    for middles, size in ((inner, round(radius)), (mask, small)):
        while len(left := np.argwhere((middles > 0) & (result == 0))):
            y, x = left[random.integers(len(left))]
            cv2.circle(result, (int(x), int(y)), size, 1, -1)
    return result


def overlap(a: Tensor, b: Tensor) -> float:
    """J x 100 of two masks."""
    either = float(((a > 0.5) | (b > 0.5)).sum())
    return 100 * float(((a > 0.5) & (b > 0.5)).sum()) / max(either, 1)


def covered(mask: Tensor, true: Tensor) -> float:
    """The share of the target in percent."""
    return 100 * float(((mask > 0.5) & (true > 0.5)).sum()) / max(float((true > 0.5).sum()), 1)


def followed(clip: Clip, first: Tensor, *, attend: bool) -> list[float]:
    """J&F x 100 of the masks that come of a first one (1, H, W), and the local PSNR of the removal (NaN without)."""
    _, frames, clean, true = clip
    probs = propagators.build("lite").propagate(frames, first[None], [0]).probs
    if attend:
        probs = inactivation_map(frames, first[None], probs, attention())
    agreement = segmentation_score(probs[1:, 0] > 0.5, true[1:, 0] > 0.5).mean(None, None)[2]
    if clean is None:
        return [100 * float(agreement), float("nan")]
    result = remove(frames, probs, backbones.build("lite"))
    scores = local_scores(result[1:], clean[1:], true[1:]).psnr_box
    return [100 * float(agreement), float(scores[~torch.isnan(scores)].mean())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"ways of painting (default {','.join(KINDS)})")
    parser.add_argument("--only", nargs="*", help="names of clips (default: all)")
    parser.add_argument("--every", type=int, metavar="N", help="look at each N-th frame, not at the first alone")
    parser.add_argument("--follow", action="store_true", help="also follow, and of composites remove")
    parser.add_argument("--attention", action="store_true", help="with --follow: correct the masks as by default")
    parser.add_argument("--weights", type=Path, default=SHIPPED, help="of 'train snap' (default: those that ship)")
    parser.add_argument("--reach", type=float, default=REACH, help=f"how far edges may move (default {REACH})")
    parser.add_argument("--sheet", type=Path, help="picture of painted (magenta) and snapped (green) masks")
    args = parser.parse_args()
    snapper = Snapper(network_with(args.weights))
    kinds, rows, tiles = args.kinds.split(","), {}, []
    for clip in clips(args.folder, args.only):
        name, frames, _, true = clip
        for kind in kinds:
            for t in range(0, len(frames), args.every) if args.every else (0,):
                if not true[t].any():
                    continue
                paint = torch.from_numpy(painted(true[t, 0].byte().numpy(), kind)).float()[None]
                snap = snapper.snap(frames[t], paint[None], reach=args.reach)[0]
                row = [f(mask, true[t]) for f in (overlap, covered) for mask in (paint, snap)]
                if args.follow and t == 0:
                    row += followed(clip, paint, attend=args.attention) + followed(clip, snap, attend=args.attention)
                if t == 0:
                    print(f"{name:28} {kind:8}", *(f"{value:6.2f}" for value in row), flush=True)
                    tiles.append(tile(frames[t], paint, snap))
                rows.setdefault(kind, []).append(row)
    print(f"\n{'mean':28} {'kind':8} J painted, snapped; covered painted, snapped; then J&F and dB of both")
    for kind, of_kind in rows.items():
        length = max(map(len, of_kind))
        means = np.mean([row for row in of_kind if len(row) == length], axis=0)
        means[:4] = np.mean([row[:4] for row in of_kind], axis=0)
        print(f"{'':28} {kind:8}", *(f"{value:6.2f}" for value in means))
    if args.sheet:
        width = len(kinds)
        sheet = np.vstack([np.hstack(tiles[i : i + width]) for i in range(0, len(tiles), width)])
        cv2.imwrite(str(args.sheet), sheet)


def tile(frame: Tensor, paint: Tensor, snap: Tensor) -> np.ndarray:
    """A frame with what was painted in magenta and what became of it as a green line, BGR, 240 lines at most."""
    image = np.ascontiguousarray((frame.permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8))
    image[paint[0].numpy() > 0.5] = image[paint[0].numpy() > 0.5] // 2 + np.array([100, 0, 100], np.uint8)
    lines, _ = cv2.findContours((snap[0].numpy() > 0.5).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, lines, -1, (0, 255, 0), max(1, image.shape[0] // 240))
    scale = min(1.0, 240 / image.shape[0])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main()
