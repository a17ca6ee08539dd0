"""PSNR and SSIM of every frame, as the video inpainting literature computes them and as everybody else does.

Values are compared on the 8-bit scale, in float64, after one rounding to 8 bits: what a viewer gets is what is scored.

Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004.

Dimensions: t frames, h w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ciri.errors import ClipError
from ciri.progress import OnStep, ignore

#: PSNR of equal pictures; the published evaluation programs return infinity, which no mean survives.
HIGHEST_PSNR = 100.0
PEAK = 255.0
#: The stabilising constants of SSIM, (K1 L)^2 and (K2 L)^2.
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2

#: One 8-bit frame in float64, (h, w, 3), 0..255.
Picture = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """The neighbourhood that SSIM takes its statistics from.

    Attributes:
        size: side in pixels, odd.
        gaussian: weights fall off with a standard deviation of 1.5 pixels and moments are the population's, as in the
            original paper; else all pixels count alike and moments are the sample's (scikit-image's default).
    """

    size: int
    gaussian: bool = False

    def fitted(self, height: int, width: int) -> Window:
        """The same window, no larger than the picture: sides stay odd."""
        shorter = min(height, width)
        return Window(min(self.size, shorter - 1 + shorter % 2), self.gaussian)


#: "ssim65" is what STTN, FuseFormer, E2FGVI and ProPainter report; it is far more forgiving than the two common ones.
WINDOWS = {"ssim65": Window(65), "ssim7": Window(7), "ssim11g": Window(11, gaussian=True)}


def to_pictures(clip: Tensor) -> Iterator[Picture]:
    """Round a clip, floating (T, 3, H, W) in [0, 1], to 8 bits: one after another, T arrays (H, W, 3) in 0..255."""
    for frame in clip.detach():
        # half precision would round the product once more, and NumPy knows no bfloat16
        single = frame.cpu().to(torch.promote_types(frame.dtype, torch.float32))
        rounded = (single.clamp(0, 1) * PEAK).round()
        yield np.ascontiguousarray(rounded.permute(1, 2, 0).numpy(), dtype=np.float64)


def check_pair(result: Tensor, clean: Tensor) -> None:
    """Refuse clips that cannot be compared.

    Raises:
        ClipError: other shapes than (T, 3, H, W), different ones, no frame, or values that are not numbers.
    """
    if result.shape != clean.shape or result.ndim != 4 or result.shape[1] != 3 or not result.numel():
        raise ClipError(
            f"The result has shape {tuple(result.shape)} and the reference {tuple(clean.shape)}; "
            "expected the same (frames, 3, height, width) of both."
        )
    for name, clip in (("result", result), ("reference", clean)):
        for index, frame in enumerate(clip):
            if not torch.isfinite(frame).all():
                raise ClipError(f"Frame {index} of the {name} holds values that are not numbers (NaN or infinite).")


def psnr(result: Tensor, clean: Tensor, *, on_step: OnStep = ignore) -> Tensor:
    """Return the PSNR of every frame in dB, float64 (T,), at most 100.

    Args:
        result, clean: floating (T, 3, H, W) in [0, 1].
        on_step: called after each frame; may raise to stop.

    Raises:
        ClipError: see :func:`check_pair`.
    """
    return _by_frame(result, clean, psnr_of, on_step)


def ssim(result: Tensor, clean: Tensor, window: Window = WINDOWS["ssim65"], *, on_step: OnStep = ignore) -> Tensor:
    """Return the SSIM of every frame, float64 (T,), the mean of the three channels.

    Pictures smaller than the window are scored with the largest odd window that fits; the value is not-a-number where
    that is a single pixel.

    Args:
        result, clean: floating (T, 3, H, W) in [0, 1].
        window: one of :data:`WINDOWS`, or another.
        on_step: called after each frame; may raise to stop.

    Raises:
        ClipError: see :func:`check_pair`.
    """
    return _by_frame(result, clean, lambda a, b: ssim_of(a, b, window), on_step)


def _by_frame(result: Tensor, clean: Tensor, score: Callable[[Picture, Picture], float], on_step: OnStep) -> Tensor:
    check_pair(result, clean)
    scores = []
    for t, (a, b) in enumerate(zip(to_pictures(result), to_pictures(clean), strict=True)):
        scores.append(score(a, b))
        on_step(t + 1, len(result))
    return torch.tensor(scores, dtype=torch.float64)


def psnr_of(result: NDArray[np.float64], clean: NDArray[np.float64]) -> float:
    """PSNR in dB of two arrays of any (the same) shape, 0..255; not-a-number if they are empty."""
    if not result.size:
        return math.nan
    error = float(np.square(result - clean).mean())
    return min(10 * math.log10(PEAK**2 / error), HIGHEST_PSNR) if error > 0 else HIGHEST_PSNR


def ssim_of(result: Picture, clean: Picture, window: Window) -> float:
    """SSIM of two pictures: the mean of the map where the window lies inside the frame."""
    window = window.fitted(*result.shape[:2])
    if window.size < 3:
        return math.nan
    border = window.size // 2
    return float(ssim_map(result, clean, window)[border:-border, border:-border].mean())


def ssim_map(result: Picture, clean: Picture, window: Window) -> Picture:
    """SSIM around every pixel and channel, (H, W, 3); beyond the border the picture is mirrored."""
    mean_a, mean_b = _averaged(result, window), _averaged(clean, window)
    sample = 1.0 if window.gaussian else window.size**2 / (window.size**2 - 1)
    variances = sample * (_averaged(result * result, window) - mean_a**2 + _averaged(clean * clean, window) - mean_b**2)
    covariance = sample * (_averaged(result * clean, window) - mean_a * mean_b)
    similar = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    mapped: Picture = similar / ((mean_a**2 + mean_b**2 + _C1) * (variances + _C2))
    return mapped


def _averaged(picture: Picture, window: Window) -> Picture:
    """The window's mean around every pixel."""
    size = (window.size, window.size)
    if window.gaussian:
        return np.asarray(cv2.GaussianBlur(picture, size, 1.5, borderType=cv2.BORDER_REFLECT), dtype=np.float64)
    return np.asarray(cv2.boxFilter(picture, cv2.CV_64F, size, borderType=cv2.BORDER_REFLECT), dtype=np.float64)
