"""Scenes for the attention network: an object over a clip, with its shadow, and with things in front of it.

Dimensions: t frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ciri.errors import TrainingError
from ciri.training.composites import CompositeMaker, over
from ciri.training.masks import Rng

#: Shares of scenes with something that moves behind the target, with a shadow, with something in front, compressed.
BEHIND, SHADOWED, IN_FRONT, COMPRESSED = 0.4, 0.5, 0.25, 0.5
#: Difference to the scene without shadow, in levels of 255, from which on it is seen, and from which on clearly.
SEEN_FROM, SEEN_CLEARLY = 5, 16
#: Opacity from which on a pixel counts as the target's.
OPAQUE = 0.3
#: Something else in front is no target any more from this opacity on.
IN_THE_WAY = 0.5


@dataclass(frozen=True)
class Scene:
    """What a person has, and the answer.

    Attributes:
        frames: uint8 (T, H, W, 3).
        mask: bool (T, H, W), the target, as far as it is not hidden.
        shadow: float32 (T, H, W) in [0, 1], how clearly its shadow is seen; 0 on the target itself.
    """

    frames: np.ndarray
    mask: np.ndarray
    shadow: np.ndarray


class SceneMaker(CompositeMaker):
    """Makes scenes from a library; the same generator state gives the same scene."""

    # short clips stand for long ones: what is behind the target has to show in some
    travels = (0.04, 0.15, 0.4, 0.9, 0.9)

    def scene(self, rng: Rng) -> Scene:
        """Return one scene whose object is visible in at least one frame.

        Raises:
            TrainingError: after many unreadable files or invisible objects in a row.
        """
        for _ in range(50):
            try:
                scene = self._scene(rng)
            except TrainingError as error:
                if str(error) not in self.library.skipped:
                    self.library.skipped.append(str(error))
                continue
            if scene.mask.any():
                return scene
        raise TrainingError(f"No scene could be made; last trouble: {(self.library.skipped or ['none'])[-1]}")

    def _scene(self, rng: Rng) -> Scene:
        clean = self.background(rng)
        if rng.random() < BEHIND:
            clean, _ = self.paste(clean, rng)
        target = self.layers(rng)
        shadows = cast_shadow(target[..., 3], rng) if rng.random() < SHADOWED else None
        lit, shadow = clean, np.zeros(clean.shape[:3], np.float32)
        if shadows is not None:
            tint = np.array([1.0, rng.uniform(0.9, 1.0), rng.uniform(0.8, 1.0)], np.float32)
            lit = np.stack([f * (1 - s[..., None] * tint) for f, s in zip(clean, shadows, strict=True)]).astype(
                np.uint8
            )
            change = np.abs(clean.astype(np.int16) - lit).mean(-1)
            shadow = np.clip((change - SEEN_FROM) / (SEEN_CLEARLY - SEEN_FROM), 0, 1).astype(np.float32)
        frames, _ = over(lit, target)
        seen = target[..., 3] > OPAQUE
        if rng.random() < IN_FRONT:
            front = self.layers(rng)
            frames, _ = over(frames, front)
            hidden = front[..., 3] > IN_THE_WAY
            seen &= ~hidden
            shadow[hidden] = 0
        shadow[seen] = 0
        if rng.random() < COMPRESSED:
            frames = _compressed(frames, int(rng.integers(45, 95)))
        return Scene(frames, seen, shadow)


def cast_shadow(alpha: np.ndarray, rng: Rng) -> np.ndarray:
    """Return how much a flat ground is darkened by an upright object under one light: float32 (T, H, W) in [0, 1).

    The silhouette is laid flat from its lowest point on, sheared and shortened, towards the camera or away from it; or
    only a soft dark spot is left under it, as under a cloudy sky.

    Args:
        alpha: float32 (T, H, W) in [0, 1], the object's opacity.
    """
    strength, softness = rng.uniform(0.15, 0.65), rng.uniform(0.4, 4)
    shear, length = rng.uniform(-1.5, 1.5), rng.choice([-1, 1]) * rng.uniform(0.1, 0.7)
    spot = rng.random() < 0.3
    h, w = alpha.shape[1:]
    result = np.zeros_like(alpha)
    foot = None
    for t, a in enumerate(alpha):
        rows, columns = np.nonzero((a > 0.5).any(1))[0], np.nonzero((a > 0.5).any(0))[0]
        if not len(rows):
            continue
        # feet leave the ground, the shadow stays with the body
        foot = float(rows[-1]) if foot is None else 0.7 * foot + 0.3 * rows[-1]
        if spot:
            axes = (max(2, round(0.6 * np.ptp(columns))), max(2, round(0.15 * np.ptp(columns))))
            dark = cv2.ellipse(
                np.zeros((h, w), np.float32), (round(columns.mean()), round(foot)), axes, 0, 0, 360, 1, -1
            )
            dark = cv2.GaussianBlur(dark, (0, 0), max(1.0, axes[1] / 2))
        else:
            move = np.array([[1, -shear, shear * foot], [0, -length, foot * (1 + length)]])
            dark = cv2.warpAffine(a, move, (w, h), flags=cv2.INTER_AREA)
            dark = cv2.GaussianBlur(dark, (0, 0), softness)
        result[t] = strength * dark
    return result


def _compressed(frames: np.ndarray, quality: int) -> np.ndarray:
    """As a camera's codec leaves them."""
    result = np.empty_like(frames)
    for t, frame in enumerate(frames):
        packed = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        unpacked = cv2.imdecode(packed, cv2.IMREAD_COLOR)
        assert unpacked is not None
        result[t] = unpacked
    return result
