"""Masks for training: random shapes, and the wrong masks that trackers make.

Masks are bool (T, H, W), True = target; every function takes a NumPy generator and nothing else that is random.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Mask = np.ndarray
Rng = np.random.Generator


def smooth_path(rng: Rng, length: int, amplitude: float) -> np.ndarray:
    """A smooth random function of time, float64 (T,), of zero mean and about ``amplitude`` from end to end."""
    t = np.linspace(-0.5, 0.5, length)
    path = rng.uniform(-1, 1) * t
    for waves in (1, 2):
        path += rng.normal() * 0.25 / waves * np.sin(2 * np.pi * (waves * t * rng.uniform(0.5, 1) + rng.uniform()))
    return amplitude * (path - path.mean())


def random_blob(rng: Rng, height: int, width: int) -> np.ndarray:
    """A closed smooth shape that fills its box, uint8 (height, width) in {0, 255}."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = np.ones_like(angles)
    for waves in range(1, 7):
        radius += rng.normal() * 0.35 / waves * np.cos(waves * angles + rng.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.15, None)
    points = np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)
    low, high = points.min(0), points.max(0)
    points = (points - low) / (high - low) * [width - 1, height - 1]
    shape = np.zeros((height, width), np.uint8)
    cv2.fillPoly(shape, [points.round().astype(np.int32)], 255)
    return shape


# ------------------------------------------------------------------------------------------- wrong masks


def wrong_masks(true: Mask, rng: Rng, *, errors: tuple[str, ...] | None = None) -> Mask:
    """Return what a tracker might have made of true masks; the first frame, which a person painted, stays true.

    Args:
        true: bool (T, H, W).
        errors: names out of :data:`ERRORS`, applied in turn; default: one to three at random.
    """
    names = errors if errors is not None else tuple(rng.choice(list(ERRORS), rng.integers(1, 4), replace=False))
    wrong = true.copy()
    for name in names:
        wrong = ERRORS[name](wrong, rng)
    wrong[0] = true[0]
    return wrong


def _object_size(masks: Mask) -> float:
    """Side of a square with the target's mean area, in pixels."""
    areas = masks.reshape(len(masks), -1).sum(1)
    return float(np.sqrt(areas[areas > 0].mean())) if areas.any() else 0.0


def _stretch(rng: Rng, length: int) -> slice:
    """Some consecutive frames after the first."""
    start = int(rng.integers(1, max(2, length - 1)))
    return slice(start, start + int(rng.integers(max(2, length // 4), length + 1)))


def _ball(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _each(masks: Mask, change: Callable[[int, np.ndarray], np.ndarray]) -> Mask:
    return np.stack([change(t, mask.astype(np.uint8)) for t, mask in enumerate(masks)]) > 0


def erode(masks: Mask, rng: Rng) -> Mask:
    """The rim is lost; thin parts go first. The radius drifts over time."""
    radii = _radii(masks, rng)
    return _each(masks, lambda t, mask: cv2.erode(mask, _ball(radii[t])))


def dilate(masks: Mask, rng: Rng) -> Mask:
    """The rim is too generous. The radius drifts over time."""
    radii = _radii(masks, rng)
    return _each(masks, lambda t, mask: cv2.dilate(mask, _ball(radii[t])))


def _radii(masks: Mask, rng: Rng) -> list[int]:
    largest = max(2.0, 0.12 * _object_size(masks))
    drift = rng.uniform(0.3, 0.8) + smooth_path(rng, len(masks), 0.5)
    return [int(r) for r in np.clip(drift * largest, 1, largest).round()]


def lose_part(masks: Mask, rng: Rng) -> Mask:
    """A part beyond a line through the target (a leg, a head, a bag) is missing for a stretch of frames."""
    out, stretch = masks.copy(), _stretch(rng, len(masks))
    angle, share = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.6)
    for t in range(len(masks))[stretch]:
        ys, xs = np.nonzero(masks[t])
        if len(ys):
            along = xs * np.cos(angle) + ys * np.sin(angle)
            limit = np.quantile(along, 1 - share)
            out[t, ys[along > limit], xs[along > limit]] = False
    return out


def lose_spots(masks: Mask, rng: Rng) -> Mask:
    """Spots inside the target are missing; they stay with it."""
    return _with_spots(masks, rng, np.logical_and, inside=True)


def leak(masks: Mask, rng: Rng) -> Mask:
    """Neighbouring things of similar colour are taken for the target."""
    return _with_spots(masks, rng, np.logical_or, inside=False)


def _with_spots(masks: Mask, rng: Rng, join: Callable[..., np.ndarray], *, inside: bool) -> Mask:
    """Join blobs that sit on the target (inside) or on its rim, following its centre, for a stretch of frames."""
    out, side = masks.copy(), _object_size(masks)
    if side < 4:
        return out
    stretch = _stretch(rng, len(masks))
    for _ in range(int(rng.integers(1, 4))):
        size = int(np.clip(side * rng.uniform(0.2, 0.6), 3, min(masks.shape[1:])))
        blob = random_blob(rng, size, int(np.clip(size * rng.uniform(0.6, 1.6), 3, masks.shape[2])))
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3) if inside else rng.uniform(0.4, 0.7)
        for t in range(len(masks))[stretch]:
            ys, xs = np.nonzero(masks[t])
            if not len(ys):
                continue
            centre = np.array(
                [xs.mean() + reach * np.ptp(xs) * np.cos(angle), ys.mean() + reach * np.ptp(ys) * np.sin(angle)]
            )
            spot = _place(blob, centre, masks.shape[1:])
            out[t] = join(out[t], ~spot if inside else spot)
    return out


def _place(blob: np.ndarray, centre: np.ndarray, size: tuple[int, ...]) -> Mask:
    shift = centre - np.array(blob.shape[::-1]) / 2
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
    return cv2.warpAffine(blob, move, (size[1], size[0]), flags=cv2.INTER_NEAREST) > 0


def lag(masks: Mask, rng: Rng) -> Mask:
    """The mask is some frames late for a stretch."""
    out, late = masks.copy(), int(rng.integers(1, 4))
    for t in range(len(masks))[_stretch(rng, len(masks))]:
        out[t] = masks[max(t - late, 0)]
    return out


def shake(masks: Mask, rng: Rng) -> Mask:
    """The outline is wavy, differently in each frame, as with coarse logits."""
    amplitude = max(1.5, 0.08 * _object_size(masks))
    h, w = masks.shape[1:]
    y, x = np.mgrid[:h, :w].astype(np.float32)

    def warped(t: int, mask: np.ndarray) -> np.ndarray:
        wave = [
            cv2.resize(rng.normal(0, amplitude, (h // 12 + 2, w // 12 + 2)).astype(np.float32), (w, h)) for _ in "xy"
        ]
        return cv2.remap(mask, x + wave[0], y + wave[1], cv2.INTER_NEAREST)

    return _each(masks, warped)


def vanish(masks: Mask, rng: Rng) -> Mask:
    """The target is lost altogether for a few frames."""
    out, start = masks.copy(), int(rng.integers(1, max(2, len(masks))))
    out[start : start + int(rng.integers(1, 4))] = False
    return out


#: The errors by name.
ERRORS: dict[str, Callable[[Mask, Rng], Mask]] = {
    "erode": erode,
    "dilate": dilate,
    "lose part": lose_part,
    "lose spots": lose_spots,
    "leak": leak,
    "lag": lag,
    "shake": shake,
    "vanish": vanish,
}
