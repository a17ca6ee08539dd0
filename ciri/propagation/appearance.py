"""What the target looks like: a classifier of pixels, trained on the annotated frame and adapted to the clip.

Colours and gradients at several scales go through random features (Rahimi and Recht, "Weighted Sums of Random
Kitchen Sinks", NIPS 2008) into a ridge regression. Its normal equations are sums over pixels: those of the annotated
frame are kept for good, which holds the model against drift, those of later frames fade.

Dimensions: h w pixels, d features, r random features, n samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

#: Random features of a pixel.
RANDOM_FEATURES = 192
#: Samples of the annotated frame, and of each later one.
KEY_SAMPLES, UPDATE_SAMPLES = 12_000, 4_000
#: Pixels scored at a time.
BLOCK = 1024
RIDGE = 1e-3
#: Weight of what was seen after the annotated frame, and how much of it is kept from frame to frame.
RECENT_WEIGHT, RECENT_DECAY = 0.25, 0.95
#: Weight of the position within the target against colours and gradients.
POSITION_WEIGHT = 0.5
#: Every background pixel keeps this weight, however far from the target it is.
FAR_WEIGHT = 0.05


@dataclass(frozen=True)
class Placement:
    """Where the target is, in pixels of the feature image: its centre and the radius of gyration."""

    x: float
    y: float
    radius: float


def placement(mask: np.ndarray) -> Placement:
    """The centre and size of a soft mask (H, W)."""
    total = float(mask.sum()) + 1e-6
    x, y = np.arange(mask.shape[1]), np.arange(mask.shape[0])
    columns, rows = mask.sum(0), mask.sum(1)
    cx, cy = float(columns @ x) / total, float(rows @ y) / total
    variance = float(columns @ (x - cx) ** 2 + rows @ (y - cy) ** 2) / total
    return Placement(cx, cy, float(np.sqrt(variance + 1)))


def pixel_features(image: np.ndarray) -> np.ndarray:
    """Return float32 (H, W, 13): colour at three scales and the energy of gradients.

    Args:
        image: uint8 RGB (H, W, 3).
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    gx, gy = (cv2.Sobel(lab[..., 0], cv2.CV_32F, *d, ksize=3) for d in ((1, 0), (0, 1)))
    gradients = np.stack([np.abs(gx), np.abs(gy), np.maximum(gx, 0), np.maximum(gy, 0)], axis=-1)
    near, wide = cv2.GaussianBlur(lab, (0, 0), 1.5), cv2.GaussianBlur(lab, (0, 0), 5)
    return np.concatenate([lab, near, wide, cv2.GaussianBlur(gradients, (0, 0), 2.5)], axis=-1)


class AppearanceModel:
    """Scores pixels: about +1 on the target, -1 off it."""

    def __init__(self, features: np.ndarray, mask: np.ndarray) -> None:
        """Train on the annotated frame.

        Args:
            features: float32 (H, W, d) of :func:`pixel_features`.
            mask: float32 (H, W) in [0, 1].
        """
        self._random = np.random.default_rng(0)
        flat = features.reshape(-1, features.shape[-1])
        self._mean, self._scale = flat.mean(0), flat.std(0) + 1e-3
        dims = flat.shape[1] + 2
        self._project = (self._random.standard_normal((dims, RANDOM_FEATURES)) * (1.5 / np.sqrt(dims))).astype("f4")
        self._shift = self._random.uniform(-1, 1, RANDOM_FEATURES).astype("f4")
        self._key = self._normal_equations(features, mask, placement(mask), KEY_SAMPLES)
        self._recent = np.zeros_like(self._key)
        self._solve()

    def score(self, features: np.ndarray, where: Placement, region: np.ndarray) -> np.ndarray:
        """Return float32 (H, W): the scores inside the region, -1 outside.

        Args:
            features: float32 (H, W, d).
            where: the expected place of the target in this frame.
            region: bool (H, W), the pixels to score.
        """
        scores = np.full(region.shape, -1, np.float32)
        inputs = self._inputs(features, where, np.flatnonzero(region))
        linear, hidden_weights = self._weights[RANDOM_FEATURES:-1], self._weights[:RANDOM_FEATURES]
        # blocks that stay in the cache: three times as fast as all pixels at once
        blocks = [
            _product(self._hidden(block), hidden_weights) + _product(block, linear)
            for block in np.split(inputs, range(BLOCK, len(inputs), BLOCK))
        ]
        scores[region] = np.concatenate(blocks) + self._weights[-1]
        return scores

    def adapt(self, features: np.ndarray, mask: np.ndarray, where: Placement) -> None:
        """Learn from a later frame and its propagated mask, float32 (H, W) in [0, 1]."""
        equations = self._normal_equations(features, mask, where, UPDATE_SAMPLES)
        self._recent = RECENT_DECAY * self._recent + (1 - RECENT_DECAY) * equations
        self._solve()

    def _inputs(self, features: np.ndarray, where: Placement, index: np.ndarray) -> np.ndarray:
        """Standardised features of some pixels and their place in the target: (H, W, d), (n,) to (n, d + 2)."""
        width = features.shape[1]
        place = np.stack([index % width - where.x, index // width - where.y], axis=1) / where.radius
        standard = (features.reshape(-1, features.shape[-1])[index] - self._mean) / self._scale
        return np.concatenate([standard, np.clip(place, -4, 4) * POSITION_WEIGHT], axis=1).astype(np.float32)

    def _expand(self, inputs: np.ndarray) -> np.ndarray:
        """(n, d + 2) to (n, r + d + 3): random rectified features, the inputs themselves, and a constant."""
        return np.concatenate([self._hidden(inputs), inputs, np.ones((len(inputs), 1), np.float32)], axis=1)

    def _hidden(self, inputs: np.ndarray) -> np.ndarray:
        """(n, d + 2) to (n, r)."""
        hidden = _product(inputs, self._project)
        hidden += self._shift
        return np.maximum(hidden, 0, out=hidden)

    def _normal_equations(self, features: np.ndarray, mask: np.ndarray, where: Placement, samples: int) -> np.ndarray:
        """The weighted sums X^T X and X^T y side by side: float32 (r + d + 3, r + d + 4)."""
        weight = _sample_weights(mask, where)
        index = np.flatnonzero(weight)
        share = weight.ravel()[index]
        if len(index) > samples:
            chance = np.sqrt(share)
            chance /= chance.sum()
            drawn = self._random.choice(len(index), samples, p=chance)
            index, share = index[drawn], share[drawn] / (chance[drawn] * samples)
        x = self._expand(self._inputs(features, where, index))
        y = 2 * mask.ravel()[index] - 1
        weighted = x * share[:, None].astype(np.float32)
        return _product(weighted.T, np.concatenate([x, y[:, None]], axis=1))

    def _solve(self) -> None:
        equations = (self._key + RECENT_WEIGHT * self._recent).astype(np.float64)
        square = equations[:, :-1] + RIDGE * np.eye(len(equations))
        solved = torch.linalg.solve(torch.from_numpy(square), torch.from_numpy(equations[:, -1]))
        self._weights = solved.numpy().astype(np.float32)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The matrix product a b by PyTorch: the threads of NumPy's would wait actively, and take the cores from it."""
    product: np.ndarray = (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
    return product


def _sample_weights(mask: np.ndarray, where: Placement) -> np.ndarray:
    """How much each pixel counts, float32 (H, W): sure ones more, near background more, both classes the same."""
    target = mask > 0.5
    distance = cv2.distanceTransform((~target).astype(np.uint8), cv2.DIST_L2, 3)
    weight = np.abs(2 * mask - 1) * np.where(target, 1, np.exp(-distance / where.radius) + FAR_WEIGHT)
    for side in (target, ~target):
        total = weight[side].sum()
        if total > 0:
            weight[side] /= total
    return weight
