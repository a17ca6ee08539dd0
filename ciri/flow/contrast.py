"""How much a picture tells of its own motion: optical flow is measured on contrast, and guessed elsewhere.

In a sky or on a wall, flow is what is usual around, near a moving target that is the target's own, and forward and
backward flow agree on it. The more so with noise, which has a contrast of its own and takes no part in any motion.

Dimensions: T frames, h w pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.noise import measure
from ciri.progress import OnStep, ignore

#: Energy of the contrast that rounding to 256 grey levels makes, in grey levels squared.
ROUNDING = 0.0225
#: So many times the noise's energy, noise itself may look like contrast.
BY_CHANCE = 2.0
#: Contrast of so many times the noise's energy, or so many times what is usual in the picture, is believed by half.
OF_NOISE, OF_USUAL = 1000.0, 5.0
#: Pixels, of half the size, over which contrast is looked for, and by which the target is kept away from.
AROUND, APART = 5, 2
#: Pixels a side of the sample that noise is judged by.
SAMPLE = 128


def flow_confidence(grey: np.ndarray, hidden: np.ndarray, noise: float) -> np.ndarray:
    """Return how much the parts of a picture tell of their motion, from 0, nothing, to 1.

    Args:
        grey: uint8 (h, w).
        hidden: bool (h, w), what has an edge and a motion of its own, or was made up: it tells nothing.
        noise: energy of the noise's contrast, as :func:`noise_contrast` finds it.

    Returns:
        float32 (ceil(h / 2), ceil(w / 2)).
    """
    shown = 1 - cv2.dilate(_halved(hidden.view(np.uint8), most=True), np.ones((2 * APART + 1,) * 2))
    energy = _energy(_halved(grey)) * shown
    box = (AROUND, AROUND)
    count = cv2.boxFilter(shown, -1, box, normalize=False, borderType=cv2.BORDER_CONSTANT)
    total = cv2.boxFilter(energy, -1, box, normalize=False, borderType=cv2.BORDER_CONSTANT)
    contrast = np.maximum(total / np.maximum(count, 1) - BY_CHANCE * noise, 0)
    usual = float(contrast.sum() / max(shown.sum(), 1))
    told: np.ndarray = contrast / (contrast + max(min(OF_NOISE * noise, OF_USUAL * usual), ROUNDING))
    return told


def noise_contrast(frames: Tensor, hidden: Tensor, *, on_step: OnStep = ignore) -> float:
    """Return the energy of the contrast that a clip's noise makes, in grey levels of 255 squared.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        hidden: bool (T, H, W), what is not looked at.
        on_step: progress callback; may raise to stop.
    """
    noise = measure(frames, hidden, on_step=on_step)
    if noise is None:
        return ROUNDING
    sample = noise.sample(SAMPLE, SAMPLE, torch.Generator().manual_seed(0))[0] * noise.deviation[0].median()
    return max(ROUNDING, float(_energy(_halved(255 * sample.numpy())).mean()))


def _halved(picture: np.ndarray, *, most: bool = False) -> np.ndarray:
    """A picture (h, w) at half the size, as float32: the mean of four pixels, or the most of them."""
    h, w = picture.shape
    even = cv2.copyMakeBorder(picture, 0, h % 2, 0, w % 2, cv2.BORDER_REPLICATE)
    if most:
        rows = np.maximum(even[::2], even[1::2])
        return np.maximum(rows[:, ::2], rows[:, 1::2]).astype(np.float32)
    size = (even.shape[1] // 2, even.shape[0] // 2)
    return cv2.resize(even.astype(np.float32), size, interpolation=cv2.INTER_AREA)


def _energy(picture: np.ndarray) -> np.ndarray:
    """The squared gradient of a picture, by central differences; what is beyond the border is as the border."""
    across, down = (cv2.Sobel(picture, cv2.CV_32F, *axes, ksize=1, scale=0.5) for axes in ((1, 0), (0, 1)))
    energy: np.ndarray = np.square(across) + np.square(down)
    return energy
