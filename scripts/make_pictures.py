"""Makes the pictures of the help pages and the workflow thumbnails from the bundled clip.

    .venv/bin/python -m scripts.make_pictures [PART OF A PATH ...]

Writes ``web/docs/<node>/picture.jpg`` and ``workflows/<name>.jpg``: all, or those whose path holds one of the parts. A
new node adds one function and one line to ``PICTURES``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.compare import compare, overlay
from ciri.evaluation.clip import evaluate_clip
from ciri.evaluation.raster import rasterise
from ciri.frames import grow_mask
from ciri.grain import match_grain
from ciri.heat import heat
from ciri.inactivation.clip import complementary_attention
from ciri.inactivation.features import learned_beta
from ciri.inactivation.fusion import fuse
from ciri.inpainting import registry as backbones
from ciri.inpainting.remove import remove
from ciri.mask_files import read_mask
from ciri.media import read_clip
from ciri.propagation import registry as propagators
from ciri.propagation.snap import shipped
from ciri.refinement.bridging import bridged_masks
from ciri.refinement.refine import Refinement, refine
from ciri.residue import registry as detectors
from ciri.residue.base import Box, ResidueDetector
from ciri.residue.crops import search_window, target_box, window_around
from ciri.training.painting import closed, strokes, wavering
from scripts.comfyui import ROOT

ASSETS, DOCS, WORKFLOWS = ROOT / "assets", ROOT / "web" / "docs", ROOT / "workflows"
#: Frames that are shown.
MOMENTS = (0, 24, 47)
GAP = 6


@dataclass
class Example:
    """The bundled clip and what is made of it: clips (T, 3, H, W), masks (T, 1, H, W)."""

    frames: Tensor
    painted: Tensor
    masks: Tensor
    removed: Tensor


@functools.cache
def example() -> Example:
    frames = read_clip(ASSETS / "ciri_example.mp4").frames
    painted = read_mask(ASSETS / "ciri_example_frame0.png")[0].reshape(1, 1, *frames.shape[2:])
    masks = propagators.build("flow").propagate(frames, painted, [0]).probs
    return Example(frames, painted, masks, remove(frames, masks, backbones.build("flow")))


@functools.cache
def maps() -> tuple[Tensor, Tensor]:
    """Attention and inactivation maps (T, 1, H, W) of the bundled clip, with the nodes' defaults."""
    clip = example()
    backbone = backbones.build("flow")
    attention = complementary_attention(clip.frames, clip.painted, clip.masks, backbone)
    beta = learned_beta(backbone)
    assert beta is not None
    return attention, fuse(clip.masks, attention, beta)


def labelled(clip: Tensor, label: str) -> Tensor:
    """The clip (T, 3, H, W) with a label in its corner."""
    return compare(clip, clip, "wipe", labels=(label, ""), wipe=1.0)[..., : clip.shape[3] - 1]


def row(pictures: Sequence[Tensor]) -> Tensor:
    """Put pictures (3, H, W) beside each other, white between them."""
    parts = [torch.nn.functional.pad(picture, (0, GAP, 0, 0), value=1.0) for picture in pictures]
    return torch.cat(parts, 2)[..., :-GAP]


def column(rows: Sequence[Tensor]) -> Tensor:
    """Put pictures (3, H, W) of one width below each other, white between them."""
    parts = [torch.nn.functional.pad(picture, (0, 0, 0, GAP), value=1.0) for picture in rows]
    return torch.cat(parts, 1)[:, :-GAP]


def grid(pictures: Sequence[Tensor]) -> Tensor:
    """Two pictures (3, H, W) a row: the page's help panel is narrow."""
    return column([row(pictures[start : start + 2]) for start in range(0, len(pictures), 2)])


def moment(clip: Tensor, index: int) -> Tensor:
    """One frame (3, H, W) of a clip, its number written on it."""
    return labelled(clip[index : index + 1], f"frame {index}")[0]


def pairs(left: Tensor, right: Tensor) -> Tensor:
    """Some moments of two clips, beside each other."""
    return grid([picture for m in MOMENTS for picture in (moment(left, m), right[m])])


def holes() -> Tensor:
    """The clip with its grown masks cut out in grey."""
    clip = example()
    return torch.where(grow_mask(clip.masks, 4) > 0, torch.tensor(0.5), clip.frames)


def propagate_mask() -> Tensor:
    clip = example()
    painted = labelled(overlay(clip.frames[:1], clip.painted), "painted: frame 0")[0]
    tinted = overlay(clip.frames, clip.masks)
    return grid([painted, *(moment(tinted, m) for m in (16, 32, 47))])


def snap_mask() -> Tensor:
    """Painted by the code that the network was trained with."""
    clip, random = example(), np.random.default_rng(2)
    true = clip.painted[0, 0].numpy() > 0.5
    ways = {
        "too wide": wavering(true, random, 8, 3),
        "a brush": strokes(true, random, 12),
        "a lasso": wavering(closed(true, 8), random, 5, 5),
    }
    pictures = []
    for name, way in ways.items():
        mask = torch.from_numpy(way).float()[None, None]
        both = overlay(clip.frames[:1], mask, opacity=0.35, outline=1)
        both = overlay(both, shipped().snap(clip.frames[0], mask), colour=(0.2, 0.9, 0.3), opacity=0.0, outline=2)
        pictures.append(labelled(both, name)[0])
    return grid([*pictures, labelled(overlay(clip.frames[:1], clip.painted), "exact")[0]])


def bridge_masks() -> Tensor:
    clip, m = example(), MOMENTS[1]
    masks = clip.masks.clone()
    box = target_box(masks[m])
    assert box is not None
    masks[m, :, :, box.x + round(0.6 * box.width) :] = 0
    masks[m + 1] = 0
    whole, _ = bridged_masks(clip.frames, masks, propagators.build("lite"))
    both = overlay(clip.frames, masks, opacity=0.35, outline=1)
    both = overlay(both, whole, colour=(0.2, 0.9, 0.3), opacity=0.0, outline=2)
    return grid([moment(both, t) for t in range(m - 1, m + 3)])


def propagator_flow() -> Tensor:
    clip = example()
    return pairs(clip.frames, overlay(clip.frames, clip.masks))


def propagator_lite() -> Tensor:
    clip, m = example(), MOMENTS[1]
    masks = propagators.build("lite").propagate(clip.frames, clip.painted, [0]).probs
    changed = (masks - clip.masks).abs()
    shown = {
        "the clip": clip.frames,
        "carried by flow": overlay(clip.frames, clip.masks),
        "corrected from memory": overlay(clip.frames, masks),
        "what was corrected": heat(clip.frames, changed),
    }
    return grid([labelled(clips[m : m + 1], label)[0] for label, clips in shown.items()])


def backbone_flow() -> Tensor:
    return pairs(holes(), example().removed)


def backbone_lite() -> Tensor:
    clip, m = example(), MOMENTS[1]
    filled = remove(clip.frames, clip.masks, backbones.build("lite"))
    shown = {
        "the hole": holes(),
        "copied along the flow": clip.removed,
        "chosen and corrected": filled,
        "what was corrected, x 16": heat(clip.frames, 16 * (filled - clip.removed).abs().mean(1, keepdim=True)),
    }
    return grid([labelled(clips[m : m + 1], label)[0] for label, clips in shown.items()])


def inactivation_inpaint() -> Tensor:
    clip, m = example(), 16
    changed = compare(clip.frames, clip.removed, "difference")
    shown = {"images": clip.frames, "inactivation, grown": holes(), "result": clip.removed, "what changed": changed}
    return grid([labelled(clips[m : m + 1], label)[0] for label, clips in shown.items()])


def match_grain_picture() -> Tensor:
    """The bundled clip has no noise, so it gets some."""
    clip, m = example(), MOMENTS[1]
    noise = torch.randn(clip.frames.shape, generator=torch.Generator().manual_seed(1))
    noisy = (clip.frames + 0.04 * noise).clamp(0, 1)
    filled = remove(noisy, clip.masks, backbones.build("lite"))
    matched, _ = match_grain(noisy, filled)
    box = target_box(clip.masks[m])
    assert box is not None
    middle = (box.y + box.height // 2, box.x + box.width // 2)
    around = [slice(max(0, at - side), max(0, at - side) + 2 * side) for at, side in zip(middle, (60, 80), strict=True)]
    shown = {
        "a clip with noise": noisy,
        "filled in": filled,
        "grain matched": matched,
        "what was added, x 3": 0.5 + 3 * (matched - filled),
    }
    parts = {label: clips[m : m + 1, :, around[0], around[1]] for label, clips in shown.items()}
    return grid([labelled(_enlarged(part), label)[0] for label, part in parts.items()])


def _enlarged(picture: Tensor) -> Tensor:
    """Twice as large, every pixel to be seen."""
    return torch.nn.functional.interpolate(picture, scale_factor=2, mode="nearest")


def attention() -> Tensor:
    clip = example()
    return pairs(overlay(clip.frames, clip.masks), heat(clip.frames, maps()[0], outline=clip.masks))


def fuse_inactivation() -> Tensor:
    clip, m = example(), 16
    attended, fused = (heat(clip.frames, map_, outline=clip.masks) for map_ in maps())
    removed = remove(clip.frames, maps()[1], backbones.build("flow"))
    shown = {"masks": overlay(clip.frames, clip.masks), "attention": attended, "fused": fused, "removed": removed}
    return grid([labelled(clips[m : m + 1], label)[0] for label, clips in shown.items()])


def mask_overlay() -> Tensor:
    clip, m = example(), 16
    frame, mask = clip.frames[m : m + 1], clip.masks[m : m + 1]
    styles = {
        "defaults": {},
        "opacity 0": {"opacity": 0.0, "outline": 3},
        "green, no outline": {"colour": (0.2, 0.9, 0.3), "opacity": 0.7, "outline": 0},
        "black, opacity 1": {"colour": (0.0, 0.0, 0.0), "opacity": 1.0, "outline": 0},
    }
    return grid([labelled(overlay(frame, mask, **style), name)[0] for name, style in styles.items()])


def compare_video() -> Tensor:
    clip, m = example(), 16
    before, after = clip.frames[m : m + 1], clip.removed[m : m + 1]
    beside = compare(before, after, "side by side", labels=("before", "after"))[0]
    wiped = compare(before, after, "wipe", labels=("before", "after"), wipe=0.33)[0]
    difference = labelled(compare(before, after, "difference"), "difference")[0]
    return column([fitted(beside, 870), fitted(row([wiped, difference]), 870)])


def evaluate_removal() -> Tensor:
    clip, m = example(), 16
    clean = read_clip(ASSETS / "ciri_example_clean.mp4").frames
    plot = rasterise(evaluate_clip(clip.removed, clip.masks, clean, clean=True).plot)
    wiped = compare(clip.removed[m : m + 1], clean[m : m + 1], "wipe", labels=("result", "reference"))[0]
    return column([fitted(wiped, 640), fitted(plot, 640)])


def where_residue_is_looked_for() -> Tensor:
    """The windows that a detector sees; no answer, so no weights are needed."""
    clip, m = example(), 32
    painted, place = target_box(clip.painted[0, 0]), target_box(clip.masks[m, 0])
    assert painted is not None and place is not None
    left = framed(clip.frames[0], window_around(painted, 1.25), "what is looked for")
    right = framed(clip.removed[m], search_window(place), "where it is looked for")
    return row([left, right])


@dataclass
class Planted:
    """The bundled clip with masks that miss a part of the saucer in some frames, and what came of that."""

    masks: Tensor
    removed: Tensor
    detector: ResidueDetector
    refined: Refinement


#: Frames in which the masks miss a part, and the one that is shown.
MISSED, SHOWN = range(14, 30), 22


@functools.cache
def planted() -> Planted:
    clip = example()
    masks = clip.masks.clone()
    for t in MISSED:
        box = target_box(masks[t])
        assert box is not None
        masks[t, :, :, box.x + round(0.74 * box.width) :] = 0
    backbone, detector = backbones.build("flow"), detectors.build("lite")
    removed = remove(clip.frames, masks, backbone)
    refined = refine(clip.frames, clip.painted[0], masks, removed, backbone=backbone, detector=detector)
    return Planted(masks, removed, detector, refined)


def detect_residue_picture() -> Tensor:
    clip, case, m = example(), planted(), SHOWN
    found = heat(case.removed, case.refined.before.maps, outline=case.masks)
    shown = {
        "masks that miss a part": overlay(clip.frames, case.masks),
        "removed with them": case.removed,
        "what is left": found,
        f"frame {MOMENTS[2]}: copied there": torch.roll(found, SHOWN - MOMENTS[2], 0),
    }
    return grid([labelled(clips[m : m + 1], label)[0] for label, clips in shown.items()])


def refine_propagator() -> Tensor:
    clip, case, m = example(), planted(), SHOWN
    both = overlay(clip.frames, case.masks, opacity=0.35, outline=1)
    both = overlay(both, case.refined.masks, colour=(0.2, 0.9, 0.3), opacity=0.0, outline=2)
    shown = {
        "left before": heat(case.removed, case.refined.before.maps, outline=case.masks),
        "masks before and after": both,
        "left after": heat(case.refined.inpainted, case.refined.after.maps, outline=case.masks),
        "filled again": case.refined.inpainted,
    }
    return grid([labelled(clips[m : m + 1], label)[0] for label, clips in shown.items()])


def one_shot_full() -> Tensor:
    case, m = planted(), slice(SHOWN, SHOWN + 1)
    found = heat(case.removed[m], case.refined.before.maps[m], outline=case.masks[m])
    return compare(found, case.refined.inpainted[m], "stacked", labels=("what is left is found", "and removed too"))[0]


def framed(picture: Tensor, box: Box, label: str) -> Tensor:
    """A picture (3, H, W) with a box drawn on it, darker outside."""
    image = np.ascontiguousarray((picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    shown = image // 2
    height, width = image.shape[:2]
    inside = (
        slice(max(box.y, 0), min(box.y + box.height, height)),
        slice(max(box.x, 0), min(box.x + box.width, width)),
    )
    shown[inside] = image[inside]
    cv2.rectangle(shown, (box.x, box.y), (box.x + box.width - 1, box.y + box.height - 1), (255, 217, 26), 2)
    return labelled(torch.from_numpy(shown).permute(2, 0, 1)[None].float() / 255, label)[0]


def one_shot_removal() -> Tensor:
    clip, m = example(), 16
    tinted = overlay(clip.frames[m : m + 1], clip.masks[m : m + 1])
    return compare(tinted, clip.removed[m : m + 1], "stacked", labels=("painted once", "gone in every frame"))[0]


def one_shot_ciri() -> Tensor:
    clip, m = example(), slice(16, 17)
    fused = heat(clip.frames[m], maps()[1][m], outline=clip.masks[m])
    removed = remove(clip.frames, maps()[1], backbones.build("flow"))[m]
    return compare(fused, removed, "stacked", labels=("masks and attention, joined", "gone in every frame"))[0]


def one_shot_e2fgvi_hq() -> Tensor:
    """No result: the weights are not ours to show."""
    clip, m = example(), slice(16, 17)
    tinted = overlay(clip.frames[m], clip.masks[m])
    return compare(tinted, holes()[m], "stacked", labels=("painted once", "E2FGVI-HQ fills this hole"))[0]


def swap_backbone() -> Tensor:
    clip, m = example(), slice(16, 17)
    return compare(clip.removed[m], holes()[m], "stacked", labels=("lite", "any other backbone, beside it"))[0]


def fitted(picture: Tensor, width: int) -> Tensor:
    """Scale a picture (3, H, W) to a width."""
    height = round(picture.shape[1] * width / picture.shape[2])
    return torch.nn.functional.interpolate(picture[None], (height, width), mode="bilinear", antialias=True)[0]


#: Where each picture goes, and how wide it is.
PICTURES = {
    DOCS / "CIRI_PropagatorFlow" / "picture.jpg": (propagator_flow, 640),
    DOCS / "CIRI_PropagatorLite" / "picture.jpg": (propagator_lite, 640),
    DOCS / "CIRI_PropagateMask" / "picture.jpg": (propagate_mask, 640),
    DOCS / "CIRI_SnapMask" / "picture.jpg": (snap_mask, 640),
    DOCS / "CIRI_BridgeMasks" / "picture.jpg": (bridge_masks, 640),
    DOCS / "CIRI_BackboneFlow" / "picture.jpg": (backbone_flow, 640),
    DOCS / "CIRI_BackboneLite" / "picture.jpg": (backbone_lite, 640),
    DOCS / "CIRI_ComplementaryAttention" / "picture.jpg": (attention, 640),
    DOCS / "CIRI_FuseInactivation" / "picture.jpg": (fuse_inactivation, 640),
    DOCS / "CIRI_InactivationInpaint" / "picture.jpg": (inactivation_inpaint, 640),
    DOCS / "CIRI_ResidueDetectorLite" / "picture.jpg": (where_residue_is_looked_for, 640),
    DOCS / "CIRI_ResidueDetectorSiamMask" / "picture.jpg": (where_residue_is_looked_for, 640),
    DOCS / "CIRI_DetectResidue" / "picture.jpg": (detect_residue_picture, 640),
    DOCS / "CIRI_RefinePropagator" / "picture.jpg": (refine_propagator, 640),
    DOCS / "CIRI_MatchGrain" / "picture.jpg": (match_grain_picture, 640),
    DOCS / "CIRI_MaskOverlay" / "picture.jpg": (mask_overlay, 640),
    DOCS / "CIRI_CompareVideo" / "picture.jpg": (compare_video, 640),
    DOCS / "CIRI_EvaluateRemoval" / "picture.jpg": (evaluate_removal, 640),
    WORKFLOWS / "evaluate.jpg": (evaluate_removal, 432),
    WORKFLOWS / "one_shot_removal.jpg": (one_shot_removal, 432),
    WORKFLOWS / "one_shot_ciri.jpg": (one_shot_ciri, 432),
    WORKFLOWS / "one_shot_full.jpg": (one_shot_full, 432),
    WORKFLOWS / "one_shot_e2fgvi_hq.jpg": (one_shot_e2fgvi_hq, 432),
    WORKFLOWS / "swap_backbone.jpg": (swap_backbone, 432),
}


def write_jpeg(path: Path, picture: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert done
    np.asarray(data).tofile(path)


def main() -> None:
    parts = sys.argv[1:]
    for path, (make, width) in PICTURES.items():
        if parts and not any(part in str(path) for part in parts):
            continue
        write_jpeg(path, fitted(make(), width))
        print(path.relative_to(ROOT), f"{path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
