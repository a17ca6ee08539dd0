"""First masks as people paint them: too wide here, too narrow there, with a brush, a lasso, in a hurry.

Dimensions: h w pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

#: Widest and narrowest that a mask is painted, and how much that wavers along its edge, in pixels of a frame whose
#: shorter side has 240.
WIDEST, NARROWEST, WAVERING = 10.0, -2.5, 4.0
#: Radii of brushes, and of the bays that a lasso cuts off.
BRUSHES, BAYS = (3.0, 12.0), (4.0, 20.0)
#: Thin parts up to twice so many pixels across are forgotten.
FORGOTTEN = (1.0, 4.0)
#: A painted mask holds at least this share of the target.
LEAST = 0.6
#: Share of masks that are exact, and of those painted in each way; the edge of the rest wavers.
EXACT, STROKES, LASSO, WITHOUT_PARTS = 0.15, 0.2, 0.15, 0.1


def painted(mask: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    """Paint a target as a person might.

    Args:
        mask: bool (h, w), the target, not empty.
        rng: decides how.
        scale: pixels of this picture for one of a frame whose shorter side has 240.

    Returns:
        bool (h, w).
    """
    way = rng.random()
    if (way := way - EXACT) < 0:
        return mask
    if (way := way - STROKES) < 0:
        result = strokes(mask, rng, rng.uniform(*BRUSHES) * scale)
    elif (way := way - LASSO) < 0:
        result = wavering(closed(mask, rng.uniform(*BAYS) * scale), rng, rng.uniform(0, 4) * scale, scale)
    elif way < WITHOUT_PARTS:
        result = wavering(opened(mask, rng.uniform(*FORGOTTEN) * scale), rng, rng.uniform(0, 3) * scale, scale)
    else:
        offset = rng.uniform(NARROWEST, WIDEST) * scale
        result = wavering(mask, rng, offset, rng.uniform(0, WAVERING) * scale)
    return result if (result & mask).sum() >= LEAST * mask.sum() else mask


def wavering(mask: np.ndarray, rng: np.random.Generator, offset: float, amplitude: float) -> np.ndarray:
    """Move the edge outwards by ``offset`` pixels, and by up to about ``amplitude`` more or less along the way."""
    field = cv2.resize(rng.normal(0, 0.5, (6, 8)), mask.shape[::-1], interpolation=cv2.INTER_CUBIC)
    return signed_distance(mask) > -(offset + amplitude * field)


def strokes(mask: np.ndarray, rng: np.random.Generator, radius: float) -> np.ndarray:
    """Dab with a round brush until all is covered: where its middle was not yet, and last with one of half the size."""
    result = np.zeros(mask.shape, np.uint8)
    inner = signed_distance(mask) > radius / 2
    for middles, size in ((inner, radius), (mask, radius / 2)):
        while len(left := np.flatnonzero(middles & (result == 0))):
            y, x = divmod(int(rng.choice(left)), mask.shape[1])
            cv2.circle(result, (x, y), max(1, round(size)), 1, -1)
    return result > 0


def closed(mask: np.ndarray, radius: float) -> np.ndarray:
    """Bays narrower than twice the radius filled, as a lasso cuts across them."""
    grown = signed_distance(mask) > -radius
    # what lies beyond the frame does not eat into it
    return mask | (signed_distance(grown) > radius)


def opened(mask: np.ndarray, radius: float) -> np.ndarray:
    """Parts thinner than twice the radius forgotten."""
    inner = signed_distance(mask) > radius
    return mask & (signed_distance(inner) > -radius)


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Distance to the edge in pixels, float32 (h, w): positive inside; without an edge, far beyond the frame."""
    far = np.float32(sum(mask.shape))
    if mask.all() or not mask.any():
        return np.full(mask.shape, far if mask.all() else -far, np.float32)
    inside = mask.astype(np.uint8)
    return cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
