"""Makes the README's pictures in ``docs/images/``: ``python -m scripts.make_readme_pictures``.

All come from the bundled clip. The picture of the graph is cut out of the browser test's screenshot, if there is one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ciri.compare import compare, overlay
from ciri.console import ProgressBar
from ciri.inactivation.learned import shipped
from ciri.inpainting import registry as backbones
from ciri.mask_files import read_mask
from ciri.media import read_clip, write_png
from ciri.pipeline import remove_object
from ciri.propagation import registry as propagators
from ciri.propagation import snap
from scripts.demo import CLEAN, EXAMPLE, EXAMPLE_MASK, local_psnr

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
SCREENSHOT = ROOT / "artefacts" / "finished.png"
#: Left, top, right, bottom of the graph in it.
GRAPH = (80, 138, 1640, 714)
#: The frame that shows how the object is followed, and how it is gone.
MOMENT = 24


def main() -> None:
    clip, (mask, _) = read_clip(EXAMPLE), read_mask(EXAMPLE_MASK)
    bar = ProgressBar("removing")
    removal = remove_object(
        clip.frames,
        mask,
        snapper=snap.shipped(),
        propagator=propagators.build("lite"),
        backbone=backbones.build("lite"),
        attention=shipped(),
        on_step=bar,
    )
    bar.close()
    IMAGES.mkdir(parents=True, exist_ok=True)
    animate(IMAGES / "removal.webp", compare(clip.frames, removal.frames, "sweep"), clip.fps)
    painted = overlay(clip.frames[:1], mask[None, None])
    followed = overlay(clip.frames, removal.masks.probs)
    steps = [painted[0], followed[MOMENT], removal.frames[MOMENT]]
    write_png(IMAGES / "three_steps.png", to_image(side_by_side(steps)))
    if SCREENSHOT.exists():
        Image.open(SCREENSHOT).convert("RGB").crop(GRAPH).save(IMAGES / "workflow.jpg", quality=88)
    print(f"local PSNR {local_psnr(clip.frames, removal.frames, read_clip(CLEAN).frames):.2f} dB")


def side_by_side(frames: list[Tensor], gap: int = 6) -> Tensor:
    """Join (3, H, W) frames with white gaps."""
    white = torch.ones(3, frames[0].shape[1], gap)
    parts = [part for frame in frames for part in (frame, white)]
    return torch.cat(parts[:-1], 2)


def animate(path: Path, clip: Tensor, fps: float) -> None:
    """Write an animated WebP that repeats for ever."""
    images = [Image.fromarray(to_image(frame)) for frame in clip]
    images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0, quality=70)


def to_image(frame: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] to uint8 (H, W, 3)."""
    return np.ascontiguousarray((frame * 255).round().byte().permute(1, 2, 0).numpy())


if __name__ == "__main__":
    main()
