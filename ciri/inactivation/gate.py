"""The gate on a backbone's features (paper Eq. 1): F_out = (1 - M_iac) * F_in, at every scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def area_average(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Average a map (T, 1, H, W) over the area of each cell of a grid (h, w): a cell's share of target."""
    return F.adaptive_avg_pool2d(mask, (size[0], size[1]))


def inactivate(features: Tensor, inactivation: Tensor) -> Tensor:
    """Suppress what the target caused in one feature map.

    Args:
        features: (T, C, h, w).
        inactivation: (T, 1, H, W) in [0, 1], M_iac at any resolution that is at least the features'.
    """
    return features * (1 - area_average(inactivation, features.shape[-2:]).to(features.dtype))


def inactivate_scales(features: Sequence[Tensor], inactivation: Tensor) -> list[Tensor]:
    """Apply :func:`inactivate` to every scale of an encoder, fine to coarse."""
    return [inactivate(scale, inactivation) for scale in features]
