"""Makes the pictures of the help pages and the workflow thumbnails from the bundled clip.

    .venv/bin/python -m scripts.make_pictures

Writes ``web/docs/<node>/picture.jpg`` and ``workflows/<name>.jpg``. A new node adds one function and one line to
``PICTURES``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.compare import compare, overlay
from ciri.frames import grow_mask
from ciri.inpainting import registry as backbones
from ciri.inpainting.remove import remove
from ciri.media import read_clip, read_mask
from ciri.propagation import registry as propagators
from scripts.comfyui import ROOT

ASSETS, DOCS, WORKFLOWS = ROOT / "assets", ROOT / "web" / "docs", ROOT / "workflows"
#: Frames that the strips show.
MOMENTS = (0, 16, 32, 47)
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


def strip(clip: Tensor, moments: Sequence[int] = MOMENTS) -> Tensor:
    return row([labelled(clip[m : m + 1], f"frame {m}")[0] for m in moments])


def painted_frame() -> Tensor:
    """Frame 0 with the painted mask, labelled."""
    clip = example()
    return labelled(overlay(clip.frames[:1], clip.painted), "painted: frame 0")[0]


def hole(index: int) -> Tensor:
    """A frame with its grown mask cut out in grey."""
    clip = example()
    covered = grow_mask(clip.masks[index : index + 1], 4) > 0
    return torch.where(covered, torch.tensor(0.5), clip.frames[index : index + 1])


def propagate_mask() -> Tensor:
    clip = example()
    tinted = overlay(clip.frames, clip.masks)
    return row([painted_frame(), *(labelled(tinted[m : m + 1], f"frame {m}")[0] for m in MOMENTS[1:])])


def propagator_flow() -> Tensor:
    clip = example()
    return column([strip(clip.frames), strip(overlay(clip.frames, clip.masks))])


def backbone_flow() -> Tensor:
    clip = example()
    cut = torch.cat([hole(index) for index in range(len(clip.frames))])
    return column([strip(cut), strip(clip.removed)])


def inactivation_inpaint() -> Tensor:
    clip, m = example(), 16
    shown = (clip.frames[m : m + 1], hole(m), clip.removed[m : m + 1])
    return row(
        [labelled(picture, label)[0] for picture, label in zip(shown, ("images", "masks", "result"), strict=True)]
    )


def mask_overlay() -> Tensor:
    clip, m = example(), 16
    frame, mask = clip.frames[m : m + 1], clip.masks[m : m + 1]
    styles = {
        "defaults": {},
        "opacity 0": {"opacity": 0.0, "outline": 3},
        "green, no outline": {"colour": (0.2, 0.9, 0.3), "opacity": 0.7, "outline": 0},
    }
    return row([labelled(overlay(frame, mask, **style), name)[0] for name, style in styles.items()])


def compare_video() -> Tensor:
    clip, m = example(), 16
    before, after = clip.frames[m : m + 1], clip.removed[m : m + 1]
    beside = compare(before, after, "side by side", labels=("before", "after"))[0]
    wiped = compare(before, after, "wipe", labels=("before", "after"), wipe=0.33)[0]
    difference = labelled(compare(before, after, "difference"), "difference")[0]
    return column([fitted(beside, 870), fitted(row([wiped, difference]), 870)])


def one_shot_removal() -> Tensor:
    clip, m = example(), 16
    tinted = overlay(clip.frames[m : m + 1], clip.masks[m : m + 1])
    return compare(tinted, clip.removed[m : m + 1], "stacked", labels=("painted once", "gone in every frame"))[0]


def fitted(picture: Tensor, width: int) -> Tensor:
    """Scale a picture (3, H, W) to a width."""
    height = round(picture.shape[1] * width / picture.shape[2])
    return torch.nn.functional.interpolate(picture[None], (height, width), mode="bilinear", antialias=True)[0]


#: Where each picture goes, and how wide it is.
PICTURES = {
    DOCS / "CIRI_PropagatorFlow" / "picture.jpg": (propagator_flow, 1000),
    DOCS / "CIRI_PropagateMask" / "picture.jpg": (propagate_mask, 1000),
    DOCS / "CIRI_BackboneFlow" / "picture.jpg": (backbone_flow, 1000),
    DOCS / "CIRI_InactivationInpaint" / "picture.jpg": (inactivation_inpaint, 1000),
    DOCS / "CIRI_MaskOverlay" / "picture.jpg": (mask_overlay, 1000),
    DOCS / "CIRI_CompareVideo" / "picture.jpg": (compare_video, 870),
    WORKFLOWS / "one_shot_removal.jpg": (one_shot_removal, 432),
}


def write_jpeg(path: Path, picture: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert done
    np.asarray(data).tofile(path)


def main() -> None:
    for path, (make, width) in PICTURES.items():
        write_jpeg(path, fitted(make(), width))
        print(path.relative_to(ROOT), f"{path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
