"""Maps shown as heat over the clip: attention, fused maps, residue.

Dimensions: t frames, h w pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.errors import MaskError
from ciri.frames import grow_mask
from ciri.progress import OnStep, ignore

#: The frame under the heat: grey, and darker than it was, so that colour means heat and nothing else.
GROUND = 0.55
#: Values up to the first are not shown: a network is never quite at 0. From the second on they hide the frame.
SHOWN_FROM, COVERS_FROM = 0.04, 0.6
#: Share of the colour scale that is left out at its dark end, which could not be told from the ground.
DARK_END = 0.22
#: The strip in the corner that says what the colours mean: share of the height, and the least it can be.
LEGEND, LEAST_LEGEND = 1 / 15, 12


def heat(
    frames: Tensor,
    values: Tensor,
    *,
    outline: Tensor | None = None,
    legend: bool = True,
    on_step: OnStep = ignore,
) -> Tensor:
    """Show a map as colours over the darkened clip, violet for little, yellow for 1.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        values: float32 (T, 1, H, W) in [0, 1]; where a map is (nearly) 0 the frame is grey.
        outline: float32 (T, 1, H, W), masks whose outline is drawn in white; above 0.5 is inside.
        legend: write the colour scale into the top right corner, where there is room for it.
        on_step: called after each frame; may raise to stop.

    Returns:
        float32 (T, 3, H, W) in [0, 1].

    Raises:
        MaskError: maps or masks of another length or size than the clip.
    """
    expected = (len(frames), 1, *frames.shape[2:])
    for what, given in (("maps", values), ("masks to outline", outline)):
        if given is not None and given.shape != expected:
            raise MaskError(f"The {what} have shape {tuple(given.shape)}; expected {expected}, one per frame.")
    scale = _scale().to(frames)
    weights = frames.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    result = torch.empty_like(frames)
    # frame by frame: the intermediate results of a whole clip would cost several times its memory
    for index, (frame, value) in enumerate(zip(frames, values.to(frames.device), strict=True)):
        ground = (frame * weights).sum(0, keepdim=True) * GROUND
        colours = scale[(value[0].clamp(0, 1) * 255).round().long()].movedim(-1, 0)
        cover = ((value - SHOWN_FROM) / (COVERS_FROM - SHOWN_FROM)).clamp(0, 1).sqrt()
        shown = torch.lerp(ground.expand_as(frame), colours, cover)
        if outline is not None:
            solid = (outline[index : index + 1].to(frames.device) > 0.5).float()
            shown = torch.where((grow_mask(solid, 1) > solid)[0], frames.new_ones(()), shown)
        result[index] = shown
        on_step(index + 1, len(frames))
    if legend:
        _write_legend(result, scale)
    return result


def _scale() -> Tensor:
    """The colours of values 0 to 1 in 256 steps, float32 (256, 3): a scale of even steps, for any kind of eye."""
    steps = np.linspace(255 * DARK_END, 255, 256).round().astype(np.uint8)
    table = cv2.applyColorMap(steps[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1]
    return torch.from_numpy(np.ascontiguousarray(table)).float() / 255


def _write_legend(clip: Tensor, scale: Tensor) -> None:
    """Write "0 [colours] 1" into the top right corner of a clip, in place: a player's buttons cover the bottom."""
    height, width = clip.shape[2:]
    tall = max(LEAST_LEGEND, round(height * LEGEND))
    wide = 8 * tall
    if wide > width // 2 or tall > height // 4:
        return
    strip = torch.full((3, tall, wide), 0.08)
    bar = scale.T[:, None].expand(-1, tall - 6, -1)
    bar = F.interpolate(bar[None], (tall - 6, wide - 2 * tall), mode="bilinear", align_corners=False)[0]
    strip[:, 3:-3, tall:-tall] = bar.cpu()
    for left, digit in ((0, "0"), (wide - tall, "1")):
        strip[:, :, left : left + tall] += 0.85 * _digit(digit, tall)
    clip[:, :, :tall, width - wide :] = strip.clamp(0, 1).to(clip)


def _digit(digit: str, side: int) -> Tensor:
    """A digit in a square, float32 (side, side) in [0, 1]."""
    box, size = np.zeros((side, side), np.uint8), side / 36
    (w, h), _ = cv2.getTextSize(digit, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    cv2.putText(box, digit, ((side - w) // 2, (side + h) // 2), cv2.FONT_HERSHEY_SIMPLEX, size, 255, 1, cv2.LINE_AA)
    return torch.from_numpy(box.astype(np.float32) / 255)
