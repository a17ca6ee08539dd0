"""The guided filter: moves a soft mask's edge onto the image's edge.

He, Sun and Tang, "Guided Image Filtering", ECCV 2010, with a colour guide; applying its coefficients at a higher
resolution is He and Sun, "Fast Guided Filter", 2015.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

#: Channel pairs of the symmetric 3 x 3 colour covariance, row by row.
_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


@dataclass(frozen=True)
class GuidedMask:
    """A mask as a locally linear function of colour: ``slope . colour + offset``.

    Attributes:
        slope: float32 (H, W, 3).
        offset: float32 (H, W).
    """

    slope: np.ndarray
    offset: np.ndarray

    def on(self, image: np.ndarray) -> np.ndarray:
        """Return float32 (h, w) in [0, 1], the mask on an image (h, w, 3) in [0, 1] of any size."""
        size = image.shape[1::-1]
        slope, offset = self.slope, self.offset
        if image.shape[:2] != offset.shape:
            slope, offset = (cv2.resize(x, size, interpolation=cv2.INTER_LINEAR) for x in (slope, offset))
        return np.clip(np.einsum("hwc,hwc->hw", slope, image) + offset, 0, 1)


def guided_filter(image: np.ndarray, mask: np.ndarray, radius: int, epsilon: float) -> GuidedMask:
    """Fit the mask in every window as a linear function of colour.

    Args:
        image: float32 (H, W, 3) in [0, 1].
        mask: float32 (H, W) in [0, 1].
        radius: the windows' half side in pixels.
        epsilon: variance of colour below which a window counts as flat, and the mask is only smoothed.
    """

    def mean(x: np.ndarray) -> np.ndarray:
        side = 2 * radius + 1
        return cv2.blur(x, (side, side), borderType=cv2.BORDER_REPLICATE)

    colour, level = mean(image), mean(mask)
    product = mean(image * mask[..., None]) - colour * level[..., None]
    second = (
        mean(np.stack([image[..., i] * image[..., j] for i, j in _PAIRS[:4]], axis=-1)),
        mean(np.stack([image[..., i] * image[..., j] for i, j in _PAIRS[4:]], axis=-1)),
    )
    moments = [second[0][..., k] for k in range(4)] + [second[1][..., k] for k in range(2)]
    rr, rg, rb, gg, gb, bb = (m - colour[..., i] * colour[..., j] for m, (i, j) in zip(moments, _PAIRS, strict=True))
    rr, gg, bb = rr + epsilon, gg + epsilon, bb + epsilon
    # the inverse of a symmetric 3 x 3 matrix by cofactors: np.linalg.inv takes ten times as long on many small ones
    c00, c01, c02 = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    c11, c12, c22 = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    determinant = rr * c00 + rg * c01 + rb * c02
    p, q, r = product[..., 0], product[..., 1], product[..., 2]
    slope = np.stack([c00 * p + c01 * q + c02 * r, c01 * p + c11 * q + c12 * r, c02 * p + c12 * q + c22 * r], axis=-1)
    slope /= determinant[..., None]
    offset = level - np.einsum("hwc,hwc->hw", slope, colour)
    return GuidedMask(mean(slope), mean(offset))
