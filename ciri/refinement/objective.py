"""What refinement minimises, as a function of a soft mask: residue in the composed picture, and its guards.

The gradient goes through the composition Y = m P + (1 - m) X, not through the inpainting network (which would cost a
pass each way for every step, and answers another question). P has to show what is behind the pixels in question:
where the first fill did not reach, P is X and the gradient is exactly zero, so P is painted for a mask that covers
the residue too.

Dimensions: n frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.frames import grow_mask
from ciri.refinement.decoder_inputs import Annotated
from ciri.refinement.regions import Comparison, FeatureExtractor, enlarged, informative, keep_features
from ciri.refinement.watch import Watch
from ciri.residue.score import residue_loss

#: Masks enter the loss as sigmoid(logit / T): a part that was missed for certain would get no gradient otherwise.
TEMPERATURE = 3.0
#: Probabilities of given masks are taken to be within this of 0 and 1, so that they have a logit.
SURE = 0.02
#: Weights beside the residue loss: how far a mask may leave what it was, and how rough the change may be.
ANCHOR, ROUGHNESS = 0.02, 0.01
#: Share of the contextual loss (Eq. 10).
CONTEXTUAL = 0.1


@dataclass(frozen=True)
class Scene:
    """Some frames, and what they look like with and without their residue.

    Attributes:
        at: their numbers in the clip.
        shown: float32 (n, 3, H, W), filled under the old masks only.
        painted: float32 (n, 3, H, W), filled under a mask that covers the residue too.
        old: float32 (n, 1, H, W), the old masks.
        grown: float32 (n, 1, H, W), masks that cover the residue; painted shows nothing new beyond them.
        quiet: bool (n, 1, H, W), where the detector said nothing: nothing pulls the mask there.
        appearance: the contextual loss of each frame, or None for all where it is not used.
    """

    at: list[int]
    shown: Tensor
    painted: Tensor
    old: Tensor
    grown: Tensor
    quiet: Tensor
    appearance: list[Comparison | None] | None = None


def to_logits(masks: Tensor) -> Tensor:
    """Log odds of masks in [0, 1], within those of :data:`SURE`."""
    return torch.logit(masks.clamp(SURE, 1 - SURE))


def composed(scene: Scene, logits: Tensor, part: slice, grow: int) -> Tensor:
    """Return the pictures (n, 3, H, W) under masks of these logits (n, 1, H, W); gradients flow to the logits.

    The masks are widened as for the product; the gradient goes to the pixel itself, not to the strongest neighbour.
    """
    floor = 1 / (1 + math.exp(math.log((1 - SURE) / SURE) / TEMPERATURE))
    soft = ((logits / TEMPERATURE).sigmoid() - floor) / (1 - 2 * floor)
    wide = grow_mask(soft.detach(), grow).clamp(0, 1)
    alpha = wide + soft - soft.detach()
    shown = scene.shown[part]
    return shown + alpha * (scene.painted[part] - shown)


def frame_losses(watch: Watch, scene: Scene, logits: Tensor, start: Tensor, part: slice, grow: int) -> Tensor:
    """Return the loss of each frame (n,); gradients flow to the logits.

    Args:
        logits: (n, 1, H, W) of the masks.
        start: (n, 1, H, W) where they started; the anchor.
        part: which frames of the scene these are.
        grow: pixels by which the product widens a mask.
    """
    boxes = [watch.boxes[t] for t in scene.at[part]]
    pictures = composed(scene, logits, part, grow)
    size = (pictures.shape[2], pictures.shape[3])
    areas = torch.tensor([b.width * b.height for b in boxes], dtype=torch.float32)
    residue = residue_loss(watch.logits(pictures, scene.at[part]), boxes, size, watch.threshold).cpu()
    anchor = F.binary_cross_entropy_with_logits(logits, start.sigmoid(), reduction="none") - _entropy(start)
    held = (anchor * scene.quiet[part]).flatten(1).sum(1) / areas
    change = logits - start
    rough = change.diff(dim=2).abs().flatten(1).sum(1) + change.diff(dim=3).abs().flatten(1).sum(1)
    total = residue + ANCHOR * held + ROUGHNESS * rough / areas
    if scene.appearance is not None:
        total = total + CONTEXTUAL * torch.stack(_contextual(scene.appearance[part], logits))
    return total


def _contextual(comparisons: Sequence[Comparison | None], logits: Tensor) -> list[Tensor]:
    soft = logits.sigmoid()
    return [soft.new_zeros(()) if c is None else c.loss(m) for c, m in zip(comparisons, soft, strict=True)]


def _entropy(logits: Tensor) -> Tensor:
    """The least value of the cross-entropy with these as the answer, so that the anchor starts at 0."""
    return F.binary_cross_entropy_with_logits(logits, logits.sigmoid(), reduction="none")


def comparisons(
    features: FeatureExtractor, clip: Annotated, masks: Tensor, watch: Watch, at: Sequence[int]
) -> list[Comparison | None]:
    """The contextual loss of some frames of a clip with these masks; None for those in which it says nothing."""
    template = keep_features(features, clip.frames[clip.index], watch.boxes[clip.index])
    all_of_them = [
        Comparison(template, clip.mask, keep_features(features, clip.frames[t], enlarged(watch.boxes[t]))) for t in at
    ]
    tells = informative([float(c.loss(masks[t])) for c, t in zip(all_of_them, at, strict=True)])
    return [c if use else None for c, use in zip(all_of_them, tells, strict=True)]
