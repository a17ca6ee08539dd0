"""PSNR and SSIM against scikit-image, closed forms and properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ciri.errors import ClipError
from ciri.metrics.similarity import HIGHEST_PSNR, WINDOWS, Window, psnr, ssim


def noise(seed, shape=(2, 3, 71, 83)):
    return torch.from_numpy(np.random.default_rng(seed).random(shape, np.float32))


def bytes_of(clip):
    return (clip.double() * 255).round().byte().movedim(1, -1).numpy()


@pytest.mark.parametrize("name", WINDOWS)
def test_against_scikit_image(name):
    clean = noise(1)
    result = (clean + 0.1 * noise(2)).clamp(0, 1)
    window = WINDOWS[name]
    options = {"gaussian_weights": True, "use_sample_covariance": False} if window.gaussian else {}
    for a, b, similarity, decibels in zip(
        bytes_of(result), bytes_of(clean), ssim(result, clean, window), psnr(result, clean), strict=True
    ):
        expected = structural_similarity(a, b, win_size=window.size, channel_axis=2, data_range=255, **options)
        assert float(similarity) == pytest.approx(expected, abs=1e-6)
        assert float(decibels) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=255), abs=1e-6)


@given(level=st.integers(0, 200), step=st.integers(1, 55))
def test_a_constant_difference_has_the_closed_form(level, step):
    clean = torch.full((1, 3, 20, 24), level / 255)
    result = torch.full((1, 3, 20, 24), (level + step) / 255)
    assert float(psnr(result, clean)) == pytest.approx(20 * math.log10(255 / step))
    c1 = (0.01 * 255) ** 2
    expected = (2 * level * (level + step) + c1) / (level**2 + (level + step) ** 2 + c1)
    assert float(ssim(result, clean, Window(7))) == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), height=st.integers(3, 40), width=st.integers(3, 40))
def test_properties(seed, height, width):
    """Equal is best, order does not matter, mirroring the picture changes nothing; any size works."""
    a, b = noise(seed, (1, 3, height, width)), noise(seed + 1000, (1, 3, height, width))
    assert float(psnr(a, a)) == HIGHEST_PSNR and float(ssim(a, a)) == pytest.approx(1)
    assert float(psnr(a, b)) == pytest.approx(float(psnr(b, a)))
    for window in WINDOWS.values():
        value = float(ssim(a, b, window))
        assert value < 1
        assert value == pytest.approx(float(ssim(b, a, window)))
        assert value == pytest.approx(float(ssim(a.flip(3), b.flip(3), window)))


def test_what_rounds_to_the_same_bytes_is_equal():
    clean = bytes_of(noise(3))
    exact = torch.from_numpy(clean).movedim(-1, 1).float() / 255
    assert (psnr((exact + 0.4 / 255).clamp(0, 1), exact) == HIGHEST_PSNR).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_as_what_it_stands_for(dtype):
    result, clean = noise(5).to(dtype), noise(6).to(dtype)
    assert torch.equal(psnr(result, clean), psnr(result.float(), clean.float()))


def test_a_single_pixel_has_no_ssim():
    dot = torch.zeros(1, 3, 1, 1)
    assert math.isnan(float(ssim(dot, dot))) and float(psnr(dot, dot)) == HIGHEST_PSNR


def test_bad_input_is_named():
    clip = noise(4)
    with pytest.raises(ClipError, match=r"\(2, 3, 71, 83\).*\(1, 3, 71, 83\)"):
        psnr(clip, clip[:1])
    with pytest.raises(ClipError, match="expected the same"):
        ssim(clip, clip[..., :40])
    with pytest.raises(ClipError, match="frames, 3, height"):
        psnr(clip[:0], clip[:0])
    broken = clip.clone()
    broken[1, 0, 0, 0] = float("nan")
    with pytest.raises(ClipError, match="Frame 1 of the result"):
        psnr(broken, clip)
