"""Noise that is known, put over clips that are known, and measured."""

import pytest
import torch
import torch.nn.functional as F

from ciri.noise import BLOCK, LEVELS, measure
from tests.ciri.test_shots import scene

COUNT, HEIGHT, WIDTH = 6, 128, 192


def ramp(low=0.2, high=0.8, count=COUNT):
    """A still clip that grows brighter from left to right."""
    across = torch.linspace(low, high, WIDTH).expand(count, 3, HEIGHT, WIDTH)
    return across * torch.tensor([1.0, 0.9, 0.8])[:, None, None]


def noise(like, seed=0, soft=False):
    """Noise of deviation 1, as strong in each colour."""
    white = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    if not soft:
        return white
    blurred = F.avg_pool2d(white, 3, 1, 1, count_include_pad=False)
    return blurred / blurred[..., 1:-1, 1:-1].std()


@pytest.mark.parametrize("pan", [0, 2])
@pytest.mark.parametrize("grey_levels", [1.0, 3.0, 8.0])
def test_the_strength_of_noise_is_measured(grey_levels, pan):
    clip = torch.stack([torch.roll(frame, pan * t, 2) for t, frame in enumerate(ramp())])
    found = measure((clip + grey_levels / 255 * noise(clip)).clamp(0, 1))
    # of independent noise in R, G and B
    of_luma = grey_levels * (0.299**2 + 0.587**2 + 0.114**2) ** 0.5
    assert torch.allclose(255 * found.deviation[0, 1:6], torch.tensor(of_luma), rtol=0.12)
    assert 255 * found.deviation[1, 3] == pytest.approx(grey_levels * (0.1687**2 + 0.3313**2 + 0.25) ** 0.5, rel=0.12)
    assert f"{255 * found.deviation[0].max():.1f}" in str(found)


def test_noise_that_depends_on_the_light_is_measured_for_each_level():
    clip = ramp(0.1, 1.0, 10)
    strength = 0.04 * (1.2 - clip)
    found = measure((clip + strength * noise(clip)).clamp(0, 1))
    luma = torch.linspace(0, 1, LEVELS)
    # what is as grey as the ramp has noise of this strength
    expected = 0.04 * (1.2 - luma / 0.9185) * 0.669
    assert torch.allclose(found.deviation[0, 1:6], expected[1:6], rtol=0.15)
    between = found.at(torch.tensor([[2.5 / (LEVELS - 1)]]))
    assert torch.allclose(between[:, 0, 0], found.deviation[:, 2:4].mean(1))


def test_the_look_of_noise_is_measured():
    clip = ramp()
    soft, white = (measure(clip + 5 / 255 * noise(clip, soft=soft)) for soft in (True, False))
    for found, neighbours in ((soft, 2 / 3), (white, 0.0)):
        made = found.sample(200, 300, torch.Generator().manual_seed(1))
        assert made.shape == (3, 200, 300) and torch.allclose(made.std((1, 2)), torch.ones(3), atol=0.05)
        # the mean of three neighbours shares two of them with that of the next three
        for plane in made:
            assert float((plane[:, 1:] * plane[:, :-1]).mean()) == pytest.approx(neighbours, abs=0.1)


@pytest.mark.parametrize("pan", [0, 2])
def test_texture_is_no_noise(pan):
    assert measure(scene(0, pan=pan)) is None
    half_a_pixel = F.avg_pool2d(scene(0, pan=2 * pan + 1), 2)
    assert measure(half_a_pixel) is None


def test_nothing_is_told_of_what_is_too_short_or_too_small():
    clip = ramp() + 5 / 255 * noise(ramp())
    assert measure(clip[:1]) is None and measure(clip[..., : 2 * BLOCK - 1, :]) is None
    assert measure(torch.zeros(4, 3, 64, 64)) is None


def test_what_was_put_in_later_does_not_count():
    clip = ramp()
    noisy = clip + 5 / 255 * noise(clip)
    found = measure(noisy)
    barred = noisy.clone()
    barred[..., :48, :] = 0
    titled, title = noisy.clone(), torch.zeros(COUNT, HEIGHT, WIDTH, dtype=torch.bool)
    title[:, 32:96, 48:144] = True
    titled[:, :, 32:96, 48:144] = 0.55
    for changed, aside in ((barred, None), (titled, title)):
        assert torch.allclose(measure(changed, aside).deviation[0, 2:5], found.deviation[0, 2:5], rtol=0.15)
