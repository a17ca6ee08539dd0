"""Wrong masks of measured strength: how much worse does a removal become when the mask does?

The errors are those that trackers make, at five strengths each. :mod:`ciri.training.masks` draws such errors at random
to train with; a benchmark needs the same error for every method, growing in even steps, so nothing here is random
except the shapes of leaks, which the seed fixes. The first mask that shows the target, which a person painted, always
stays true.

Masks are bool (T, H, W), True = target.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from ciri.errors import EvaluationError
from ciri.training.masks import random_blob

Masks = NDArray[np.bool_]
STRENGTHS = (1, 2, 3, 4, 5)


def degrade(masks: Masks, kind: str, strength: int) -> Masks:
    """Return masks with one kind of error; strength 0 returns them as they are.

    Args:
        masks: bool (T, H, W).
        kind: one of :data:`KINDS`.
        strength: 0 to 5.

    Raises:
        EvaluationError: an unknown kind or strength.
    """
    if kind not in KINDS or strength not in (0, *STRENGTHS):
        raise EvaluationError(f"No error {kind!r} of strength {strength}; expected {', '.join(KINDS)} and 0 to 5.")
    if strength == 0 or not masks.any():
        return masks
    wrong = KINDS[kind](masks, strength)
    first = int(masks.any((1, 2)).argmax())
    wrong[first] = masks[first]
    return wrong


def target_side(masks: Masks) -> float:
    """Side in pixels of a square with the target's mean area, over the frames that show it."""
    areas = masks.reshape(len(masks), -1).sum(1)
    return float(np.sqrt(areas[areas > 0].mean())) if areas.any() else 0.0


def _disk(masks: Masks, strength: int) -> NDArray[np.uint8]:
    """A disk whose radius is strength x 3 % of the target's side, at least strength pixels."""
    radius = max(strength, round(0.03 * strength * target_side(masks)))
    offsets = np.arange(-radius, radius + 1)
    return (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.uint8)


def eroded(masks: Masks, strength: int) -> Masks:
    """The rim is missing: a radius of 3 % of the target's side for each step."""
    disk = _disk(masks, strength)
    # beyond the frame the target goes on
    return np.stack([cv2.erode(m.astype(np.uint8), disk) for m in masks]) > 0


def dilated(masks: Masks, strength: int) -> Masks:
    """The rim is too generous: a radius of 3 % of the target's side for each step."""
    disk = _disk(masks, strength)
    return np.stack([cv2.dilate(m.astype(np.uint8), disk) for m in masks]) > 0


def missing(masks: Masks, strength: int) -> Masks:
    """The lower part of the target (legs, wheels) is missing: 10 % of its area for each step."""
    wrong = masks.copy()
    for mask in wrong:
        rows = np.nonzero(mask)[0]
        if len(rows):
            # whole rows, so that a part is never lost in stripes
            mask[int(np.quantile(rows, 1 - 0.1 * strength, method="lower")) + 1 :] = False
    return wrong


def lagging(masks: Masks, strength: int) -> Masks:
    """Every mask is as many frames late as the strength says."""
    return np.stack([masks[max(t - strength, 0)] for t in range(len(masks))])


def leaking(masks: Masks, strength: int) -> Masks:
    """Things beside the target are taken for it: blobs on its rim, 10 % of its area for each step, moving with it."""
    wrong, side = masks.copy(), target_side(masks)
    for number in range(strength):
        # as many blobs as the strength says: each strength contains the weaker ones
        rng = np.random.default_rng(number)
        size = max(3, round(side * np.sqrt(0.1) * 1.25))
        blob, angle = random_blob(rng, size, size) > 0, 2 * np.pi * (0.15 + 0.382 * number)
        for t, mask in enumerate(masks):
            _stamp(wrong[t], mask, blob, angle)
    return wrong


def _stamp(wrong: Masks, mask: Masks, blob: Masks, angle: float) -> None:
    """Add a blob where a ray from the target's centre leaves the target."""
    ys, xs = np.nonzero(mask)
    if not len(ys):
        return
    along = (xs - xs.mean()) * np.cos(angle) + (ys - ys.mean()) * np.sin(angle)
    rim = int(np.argmax(along))
    # outward by a third of the blob: it touches the target and mostly covers background
    reach = 0.35 * len(blob)
    top = round(ys[rim] + reach * np.sin(angle) - len(blob) / 2)
    left = round(xs[rim] + reach * np.cos(angle) - len(blob) / 2)
    height, width = wrong.shape
    rows, columns = (
        slice(max(top, 0), max(min(top + len(blob), height), 0)),
        slice(max(left, 0), max(min(left + len(blob), width), 0)),
    )
    part = blob[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    wrong[rows, columns] |= part


#: The errors by name.
KINDS: dict[str, Callable[[Masks, int], Masks]] = {
    "eroded": eroded,
    "dilated": dilated,
    "missing part": missing,
    "lagging": lagging,
    "leaking": leaking,
}
