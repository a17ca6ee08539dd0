"""The complementary attention map (paper 3.2): where a frame looks like the target of the first frame.

Dimensions: t frames, c channels, h w cells of the feature map, H W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ciri.errors import MaskError
from ciri.frames import grow_mask
from ciri.inactivation.gate import area_average

#: The map is restricted to the prediction dilated by this share of the frame's height.
DILATION = 1 / 16


def pool_target(features: Tensor, mask: Tensor) -> Tensor:
    """Masked region pooling: the mean feature of the target.

    Args:
        features: (1, C, h, w), features of the annotated frame before inactivation.
        mask: (1, 1, H, W) in [0, 1], its annotation; a cell counts by the share of it that is target.

    Returns:
        (1, C, 1, 1), the target's feature vector.

    Raises:
        MaskError: the mask is empty.
    """
    weight = area_average(mask.to(features), features.shape[-2:])
    total = weight.sum()
    if total <= 0:
        raise MaskError("The first mask is empty, so there is no target to compare the frames with.")
    return (features * weight).sum((-2, -1), keepdim=True) / total


def target_similarity(features: Tensor, target: Tensor) -> Tensor:
    """Cosine similarity of every cell with the target's vector, clamped to [0, 1].

    Args:
        features: (T, C, h, w).
        target: (1, C, 1, 1) of :func:`pool_target`.

    Returns:
        (T, 1, h, w); 0 where either vector is 0.
    """
    return F.cosine_similarity(features, target.expand_as(features), dim=1, eps=1e-6)[:, None].clamp(0, 1)


def attention_map(features: Tensor, target: Tensor, predicted: Tensor, *, dilation: int | None = None) -> Tensor:
    """The complementary attention map M_attn: the similarity, inside the dilated prediction only.

    Args:
        features: (T, C, h, w), the backbone's coarsest encoder features before inactivation.
        target: (1, C, 1, 1), from the annotated frame.
        predicted: (T, 1, H, W) in [0, 1], the propagated masks M_pred.
        dilation: pixels that the prediction is dilated by; default: :data:`DILATION` of the height.

    Returns:
        (T, 1, H, W) in [0, 1].
    """
    if dilation is None:
        dilation = round(DILATION * predicted.shape[-2])
    similarity = target_similarity(features, target)
    similarity = F.interpolate(similarity, size=predicted.shape[-2:], mode="bilinear", align_corners=False)
    return similarity * grow_mask(predicted, dilation)
