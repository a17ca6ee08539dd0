"""From new masks to new pictures: one pass of the backbone around what changed, shown under the masks that stay.

Residue in one frame is taken for background by every other frame that copies from it, so a pass repaints its
neighbours too; copying reaches far, hence the wide margin.

Dimensions: T frames, n of them, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ciri.inpainting.base import Backbone
from ciri.inpainting.remove import remove_from_shot, soft_edges
from ciri.progress import OnStep, part
from ciri.refinement.settings import RefinementSettings
from ciri.shots import in_place, shots

#: Frames before and after a changed one that are inpainted with it.
REACH = 40


def spans(changed: Sequence[int], count: int, reach: int = REACH) -> list[range]:
    """The stretches of a clip of ``count`` frames that lie within ``reach`` of a changed frame, in order."""
    found: list[range] = []
    for t in sorted(changed):
        start, stop = max(t - reach, 0), min(t + reach + 1, count)
        if found and start <= found[-1].stop:
            found[-1] = range(found[-1].start, stop)
        else:
            found.append(range(start, stop))
    return found


def repaint(
    frames: Tensor,
    masks: Tensor,
    inpainted: Tensor,
    changed: Sequence[int],
    backbone: Backbone,
    settings: RefinementSettings,
    on_step: OnStep,
) -> Tensor:
    """Return the clip (T, 3, H, W), inpainted anew around the changed frames and as it was elsewhere.

    Args:
        frames: the clip as it was filmed.
        masks: (T, 1, H, W), the new masks.
        inpainted: (T, 3, H, W), the clip as it was inpainted with the old masks.
        changed: frames whose mask is new.
    """
    result = inpainted.clone()
    # what changed in one shot is nothing to the others
    stretches = []
    for shot in shots(frames, on_step=on_step):
        inside = [i for i, t in enumerate(shot) if t in changed]
        stretches += [shot[span.start : span.stop] for span in spans(inside, len(shot))]
    total, done = sum(map(len, stretches)), 0
    for stretch in stretches:
        at = in_place(stretch)
        result[at] = remove_from_shot(
            frames[at],
            masks[at],
            backbone,
            grow=settings.grow,
            feather=settings.feather,
            crop=settings.crop,
            on_step=part(on_step, done / total, (done + len(stretch)) / total),
        )
        done += len(stretch)
    return result


def shown_under(
    frames: Tensor, painted: Tensor, wide: Tensor, narrow: Tensor, at: Sequence[int], settings: RefinementSettings
) -> Tensor:
    """Return some frames (n, 3, H, W) with what was painted under wide masks shown only under narrower ones.

    Where both are the same the picture is the painted one, bit for bit.

    Args:
        frames: (T, 3, H, W), as filmed.
        painted: (T, 3, H, W), made by :func:`repaint` with the wide masks.
        wide, narrow: (T, 1, H, W); the narrow ones are nowhere above the wide ones.
        at: the n frames.
        settings: how the edges of masks are softened.
    """
    result = frames.new_empty(len(at), *frames.shape[1:])
    # frame by frame: the intermediate results of a whole clip would cost several times its memory
    for shown, t in zip(result, at, strict=True):
        if torch.equal(wide[t], narrow[t]):
            shown.copy_(painted[t])
            continue
        alpha, wanted = (soft_edges(x[t : t + 1], settings.grow, settings.feather)[1][0] for x in (wide, narrow))
        # the painted picture holds the share ``alpha`` of fill already
        share = torch.where(wanted >= alpha, torch.ones_like(alpha), wanted / alpha.clamp(min=1e-6))
        mixed = torch.lerp(frames[t], painted[t], share)
        shown.copy_(torch.where(share >= 1, painted[t], torch.where(share <= 0, frames[t], mixed)))
    return result
