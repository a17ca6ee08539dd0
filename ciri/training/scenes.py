"""Scenes for the attention network: an object over a clip, with its shadow, and with others before and behind it.

What else moves beside the target is what a comparison with other frames takes for a part of it. So some of the others
keep it company: they move along with it, touch it, look like it, and cast shadows of their own.

Dimensions: t frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ciri.errors import TrainingError
from ciri.training.composites import CompositeMaker, over, similarity_transform
from ciri.training.masks import Rng, smooth_path

#: Shares of scenes with something that moves behind the target, with a second such thing where there is one, with a
#: shadow, with something in front, compressed.
BEHIND, SECOND, SHADOWED, IN_FRONT, COMPRESSED = 0.65, 0.35, 0.5, 0.3, 0.5
#: Share of what moves behind or in front that keeps the target company, and of those that look like it.
COMPANY, ALIKE = 0.6, 0.3
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
        others: bool (T, H, W), where the shadows of others fall: whose they are can often not be told.
    """

    frames: np.ndarray
    mask: np.ndarray
    shadow: np.ndarray
    others: np.ndarray


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
        images, moves = self.moving_object(rng)
        target = self.lay(images, moves)
        # one light for all: its numbers are drawn anew from the same state for each object
        light = int(rng.integers(2**32)) if rng.random() < SHADOWED else None
        others = np.zeros(clean.shape[:3], bool)
        behind = int(rng.random() < BEHIND) * (1 + int(rng.random() < SECOND))
        for _ in range(behind):
            other = self._other(images, moves, rng)
            if light is not None:
                dark = _darkened(clean, cast_shadow(other[..., 3], np.random.default_rng(light)), np.ones(3))
                others |= _change(clean, dark) > SEEN_FROM
                clean = dark
            clean, _ = over(clean, other)
        lit, shadow = clean, np.zeros(clean.shape[:3], np.float32)
        if light is not None:
            tint = np.array([1.0, rng.uniform(0.9, 1.0), rng.uniform(0.8, 1.0)])
            lit = _darkened(clean, cast_shadow(target[..., 3], np.random.default_rng(light)), tint)
            shadow = ((_change(clean, lit) - SEEN_FROM) / (SEEN_CLEARLY - SEEN_FROM)).clip(0, 1).astype(np.float32)
        frames, _ = over(lit, target)
        seen = target[..., 3] > OPAQUE
        if rng.random() < IN_FRONT:
            front = self._other(images, moves, rng)
            frames, _ = over(frames, front)
            hidden = front[..., 3] > IN_THE_WAY
            seen &= ~hidden
            shadow[hidden] = 0
        shadow[seen] = 0
        if rng.random() < COMPRESSED:
            frames = _compressed(frames, int(rng.integers(45, 95)))
        return Scene(frames, seen, shadow, others)

    def _other(self, images: np.ndarray, moves: list[np.ndarray], rng: Rng) -> np.ndarray:
        """Layers of something else that moves, given the target's pictures and path."""
        if rng.random() >= COMPANY:
            return self.layers(rng)
        if rng.random() < ALIKE:
            # the same kind of thing in another pose
            other = images[::-1, :, ::-1] if rng.random() < 0.5 else images[::-1]
        else:
            other, _ = self.moving_object(rng)
        return self.lay(other, company(images.shape[1:3], moves, other.shape[1:3], rng))


def company(size: tuple[int, ...], moves: list[np.ndarray], other: tuple[int, ...], rng: Rng) -> list[np.ndarray]:
    """Return the path of something that goes beside an object, as 2 x 3 matrices like its own.

    Args:
        size: (height, width) of the object's pictures in pixels.
        moves: the object's path.
        other: (height, width) of the companion's pictures.
    """
    middle, own = np.array([size[1] / 2, size[0] / 2, 1.0]), (other[1] / 2, other[0] / 2)
    side = [np.sqrt(abs(np.linalg.det(move[:, :2])) * size[0] * size[1]) for move in moves]
    away, towards = rng.uniform(0.3, 1.1), rng.uniform(0, 2 * np.pi)
    # more often beside it than above or below
    offset = away * np.array([np.cos(towards), 0.5 * np.sin(towards)])
    scale = float(np.exp(rng.uniform(np.log(0.5), np.log(1.7)))) / np.sqrt(other[0] * other[1])
    strays = rng.choice([0.05, 0.3, 1.0])
    drift = np.stack([smooth_path(rng, len(moves), strays * share) for share in (1.0, 0.4)], 1)
    turn = rng.normal(0, 0.1)
    return [
        similarity_transform(own, move @ middle + s * (offset + d), turn, s * scale)
        for move, s, d in zip(moves, side, drift, strict=True)
    ]


def _darkened(frames: np.ndarray, shadows: np.ndarray, tint: np.ndarray) -> np.ndarray:
    """Frames uint8 (T, H, W, 3) with so much light, float32 (T, H, W) in [0, 1], taken away from each colour."""
    tint = tint.astype(np.float32)
    return np.stack([f * (1 - s[..., None] * tint) for f, s in zip(frames, shadows, strict=True)]).astype(np.uint8)


def _change(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean difference over the colours of uint8 (T, H, W, 3), in levels: float (T, H, W)."""
    return np.stack([np.abs(a.astype(np.int16) - b).mean(-1) for a, b in zip(one, other, strict=True)])


def cast_shadow(alpha: np.ndarray, rng: Rng) -> np.ndarray:
    """Return how much its surroundings are darkened by an upright object under one light: float32 (T, H, W) in [0, 1).

    The silhouette is laid flat from its lowest point on, sheared and shortened, towards the camera or away from it; or
    it falls upright on a wall behind; or only a soft dark spot is left under it, as under a cloudy sky.

    Args:
        alpha: float32 (T, H, W) in [0, 1], the object's opacity.
    """
    strength, softness = rng.uniform(0.15, 0.65), rng.uniform(0.4, 4)
    shear, length = rng.uniform(-1.5, 1.5), rng.choice([-1, 1]) * rng.uniform(0.1, 0.7)
    kind = rng.random()
    spot, wall = kind < 0.3, 0.3 <= kind < 0.5
    # in sizes of the object: how far beside it and below, and how much larger than it
    aside, below, larger = (
        (rng.uniform(-0.6, 0.6), rng.uniform(-0.15, 0.35), rng.uniform(0.9, 1.25)) if wall else [0] * 3
    )
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
            if wall:
                corner = np.array([columns.mean(), foot]) * (1 - larger)
                corner += [aside * np.ptp(columns), below * np.ptp(rows)]
                move = np.array([[larger, 0, corner[0]], [0, larger, corner[1]]])
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
