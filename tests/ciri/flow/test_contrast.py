"""What pictures tell of their motion, on pictures of which that is known; and completion that goes by it."""

import numpy as np
import pytest
import torch

from ciri.flow.contrast import ROUNDING, flow_confidence, noise_contrast
from ciri.flow.propagate import propagate_pixels
from ciri.inpainting.flow import FlowBackbone
from ciri.inpainting.remove import remove

HEIGHT, WIDTH = 96, 160
NOWHERE = np.zeros((HEIGHT, WIDTH), bool)


def picture():
    """Smooth on the left, with contrast in all directions on the right; uint8."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = 60 * np.sin(x / 3) * np.sin(y / 3) * (x >= 80)
    return (120 + waves).round().astype(np.uint8)


def test_contrast_tells_and_its_absence_does_not():
    told = flow_confidence(picture(), NOWHERE, ROUNDING)
    assert told.shape == (HEIGHT // 2, WIDTH // 2) and told.dtype == np.float32
    assert told[:, :37].max() == 0 and told[:, 43:].min() > 0.2 and told.max() <= 1


def test_noise_is_no_contrast():
    noise = np.random.default_rng(0).normal(0, 6, (HEIGHT, WIDTH))
    noisy = np.clip(picture() + noise, 0, 255).astype(np.uint8)
    # the mean of four pixels has half the deviation; half the difference of two of these, in each direction
    told = flow_confidence(noisy, NOWHERE, 6**2 / 4)
    assert told[:, :37].mean() < 0.01 and told[:, 43:].mean() > 0.1


def test_what_is_hidden_tells_nothing_and_lends_nothing_to_its_surroundings():
    hidden = NOWHERE.copy()
    hidden[30:60, 20:50] = True
    hole = picture()
    hole[hidden] = np.random.default_rng(1).integers(0, 255, hidden.sum())
    assert np.array_equal(flow_confidence(hole, hidden, ROUNDING)[:, :37], np.zeros((HEIGHT // 2, 37), np.float32))
    assert flow_confidence(hole, ~NOWHERE, ROUNDING).max() == 0


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 40)])
def test_odd_sizes_are_rounded_up_and_flat_pictures_tell_nothing(size):
    told = flow_confidence(np.full(size, 90, np.uint8), np.zeros(size, bool), ROUNDING)
    assert told.shape == ((size[0] + 1) // 2, (size[1] + 1) // 2) and told.max() == 0


def test_the_contrast_of_noise_is_measured():
    """White noise of deviation s, halved, has a gradient of energy s^2 / 4 (closed form)."""
    clean = torch.linspace(0.3, 0.7, WIDTH).expand(6, 3, HEIGHT, WIDTH)
    nothing = torch.zeros(6, HEIGHT, WIDTH, dtype=torch.bool)
    grey_noise = torch.randn(6, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    found = noise_contrast(clean + 5 / 255 * grey_noise, nothing)
    assert found == pytest.approx(5**2 / 4, rel=0.25)
    assert noise_contrast(clean, nothing) == ROUNDING


def sky(count=12, pan=2, deviation=0.0):
    """A camera pans over towers before an evening sky, and a disc flies the other way: frames, masks, clean frames."""
    wide, random = WIDTH + pan * count, np.random.default_rng(5)
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(wide), indexing="ij")
    scene = (0.35 + 0.15 * y / HEIGHT).expand(3, -1, -1).clone()
    bricks = torch.from_numpy(random.random((HEIGHT // 4, wide // 4 + 1)).repeat(4, 0).repeat(4, 1)[:, :wide]).float()
    built = ((x % 60 < 12) & (y > 16)) | (y > HEIGHT - 12)
    scene[:, built] = bricks[built]
    clean = torch.stack([scene[..., pan * t : pan * t + WIDTH] for t in range(count)])
    y, x = y[:, :WIDTH], x[:, :WIDTH]
    masks = torch.stack([((y - 40) ** 2 + (x - 30 - 8 * t) ** 2) < 18**2 for t in range(count)])[:, None].float()
    noise = deviation * torch.randn(clean.shape, generator=torch.Generator().manual_seed(4))
    frames = torch.where(masks > 0, torch.tensor([0.8, 0.2, 0.1])[:, None, None], clean)
    return (frames + noise).clamp(0, 1), masks, clean


@pytest.mark.parametrize("deviation", [0.0, 0.01, 0.03])
def test_behind_what_crosses_a_noisy_sky_the_camera_still_pans(deviation):
    frames, masks, _ = sky(deviation=deviation)
    found = propagate_pixels(frames, masks)
    for t in range(4, 8):
        hidden = masks[t, 0] > 0
        motion = found.forward[t][:, hidden]
        assert float((motion[0] + 2).abs().mean()) < 0.25 and float(motion[1].abs().mean()) < 0.25


@pytest.mark.parametrize("deviation", [0.01, 0.03])
def test_a_noisy_sky_is_filled_nearly_as_well_as_a_clean_one(deviation):
    frames, masks, clean = sky(deviation=deviation)
    error = (remove(frames, masks, FlowBackbone()) - clean)[masks.expand_as(clean) > 0]
    assert float(error.square().mean().sqrt()) < 0.035
