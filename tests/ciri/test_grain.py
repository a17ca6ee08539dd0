"""What is filled in gets the noise of clips whose noise is known."""

import pytest
import torch

from ciri.grain import match_grain
from ciri.noise import to_planes
from tests.ciri.test_noise import COUNT, HEIGHT, WIDTH, noise, ramp
from tests.ciri.test_shots import scene

#: The rectangle that the tests fill in.
HOLE = (slice(32, 96), slice(48, 144))


def filled_with(frames, fill):
    """The clip with a rectangle of another."""
    filled = frames.clone()
    filled[(..., *HOLE)] = fill[(..., *HOLE)]
    return filled


def roughness(clip):
    """The deviation of luma in the filled rectangle, away from its edges, without what is smooth."""
    luma = torch.stack([to_planes(frame)[0] for frame in clip])[(..., *HOLE)][:, 6:-6, 6:-6]
    return float(luma.diff(dim=2).std()) / 2**0.5


@pytest.mark.parametrize("soft", [False, True])
def test_a_smooth_fill_gets_as_much_as_its_surroundings_have(soft):
    clip = ramp()
    noisy = (clip + 6 / 255 * noise(clip, soft=soft)).clamp(0, 1)
    filled = filled_with(noisy, clip)
    matched, grain = match_grain(noisy, filled)
    assert grain is not None and roughness(filled) < 0.001
    assert roughness(matched) == pytest.approx(roughness(noisy), rel=0.1)
    # every frame has its own
    added = (matched - filled)[(..., *HOLE)].flatten(1)
    assert float(torch.corrcoef(added).fill_diagonal_(0).abs().max()) < 0.05


def test_grain_that_came_along_counts():
    clip = ramp()
    noisy, elsewhere = (clip + 6 / 255 * noise(clip, seed) for seed in (0, 1))
    copied, _ = match_grain(noisy, filled_with(noisy, elsewhere))
    assert roughness(copied) == pytest.approx(roughness(noisy), rel=0.1)
    halved, _ = match_grain(noisy, filled_with(noisy, clip + 0.5 * (elsewhere - clip)))
    assert roughness(halved) == pytest.approx(roughness(noisy), rel=0.1)


def test_texture_gets_grain_where_something_smooth_is_near():
    clip = ramp()
    clip[..., 60:64, :] *= 0.5
    noisy = clip + 6 / 255 * noise(clip)
    matched, _ = match_grain(noisy, filled_with(noisy, clip))
    added = (matched - clip)[..., 60:64, 60:130]
    assert float(added.std()) == pytest.approx(6 / 255, rel=0.2)


def test_all_other_pixels_stay_bit_for_bit():
    clip = ramp()
    noisy = clip + 6 / 255 * noise(clip)  # below 0 and above 1 as well
    noisy[..., :4, :] = 1.5
    filled = filled_with(noisy, clip)
    filled[2] = noisy[2]
    before = filled.clone()
    matched, _ = match_grain(noisy, filled)
    outside = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    outside[HOLE] = False
    assert torch.equal(matched[..., outside], noisy[..., outside]) and torch.equal(matched[2], noisy[2])
    assert torch.equal(filled, before) and not torch.equal(matched, filled)
    inside = matched[(..., *HOLE)]
    assert inside.min() >= 0 and inside.max() <= 1


def test_edges_that_were_blended_end_with_the_deviation_of_the_clip():
    """alpha of smooth fill over 1 - alpha of noise: what is added makes the variance whole (closed form)."""
    clip = ramp(0.5, 0.5, 30)
    noisy = clip + 6 / 255 * noise(clip)
    feather = 7
    filled = noisy.clone()
    for depth in range(1, 40):
        at = (..., slice(20 + depth, HEIGHT - 20 - depth), slice(20 + depth, WIDTH - 20 - depth))
        filled[at] = torch.lerp(noisy[at], clip[at], min(1.0, depth / (feather + 1)))
    matched, _ = match_grain(noisy, filled, feather=feather)
    for depth in range(1, feather + 1):
        row = (matched - clip)[:, :, 20 + depth, 60:130]
        assert float(row.std()) == pytest.approx(6 / 255, rel=0.1)


def test_strength():
    clip = ramp()
    noisy = clip + 6 / 255 * noise(clip)
    filled = filled_with(noisy, clip)
    same, none = match_grain(noisy, filled, strength=0)
    assert same is filled and none is None
    once, again = (match_grain(noisy, filled)[0] for _ in range(2))
    assert torch.equal(once, again)
    half, _ = match_grain(noisy, filled, strength=0.5)
    assert torch.allclose(half - filled, (once - filled) / 2, atol=1e-6)


def test_a_clip_in_which_nothing_was_filled_comes_back_as_it_is():
    noisy = ramp() + 6 / 255 * noise(ramp())
    same, found = match_grain(noisy, noisy)
    assert same is noisy and found is None


def test_a_clip_without_noise_comes_back_as_it_is():
    clip = scene(0)
    filled = clip.clone()
    filled[..., 20:60, 40:80] = 0.5
    same, grain = match_grain(clip, filled)
    assert same is filled and grain is None


def test_a_callback_that_raises_ends_the_work():
    clip = ramp() + 6 / 255 * noise(ramp())
    seen = []

    def on_step(done, total):
        seen.append(done / total)
        if len(seen) == COUNT + 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        match_grain(clip, filled_with(clip, ramp()), on_step=on_step)
    assert len(seen) == COUNT + 1 and seen == sorted(seen)
