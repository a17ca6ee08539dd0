"""The margin's gauge against mixtures whose shares are known, and what the clip's search makes of its verdict."""

import cv2
import numpy as np
import pytest
import torch

from ciri.flow.margin import FEWEST, FREE_BELOW, RINGS, MarginGauge, outer_rings
from ciri.flow.propagate import propagate_pixels
from ciri.frames import grow_mask

H, W = 120, 160


def smooth_noise(seed, sigma=3.0):
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random((H, W, 3)).astype(np.float32), (0, 0), sigma)
    return np.ascontiguousarray(((noise - noise.min()) / (noise.max() - noise.min())).transpose(2, 0, 1))


def blob(x, y=60, radius=26):
    yy, xx = np.mgrid[:H, :W]
    return (xx - x) ** 2 + (yy - y) ** 2 <= radius**2


def depth_of(covered):
    """Brute force: distance to the nearest pixel that is not covered."""
    ys, xs = np.nonzero(~covered)
    yy, xx = np.mgrid[:H, :W]
    squared = np.full((H, W), np.inf)
    for y, x in zip(ys, xs, strict=True):
        np.minimum(squared, (yy - y) ** 2 + (xx - x) ** 2, out=squared)
    return np.sqrt(squared)


def gauge(shares, *, error=0.0, frames=6):
    """What the gauge measures where ring k holds ``shares[k]`` of the target; ``error`` spoils what others show."""
    meter = MarginGauge()
    colour = np.array([0.85, 0.15, 0.1], np.float32)[:, None, None]
    for t in range(frames):
        background, covered = smooth_noise(t) * 0.6, blob(50 + 8 * t)
        depth = cv2.distanceTransform(covered.astype(np.uint8), cv2.DIST_L2, 5)
        share = covered.astype(np.float32)
        for ring, value in enumerate(shares):
            share[(depth > ring) & (depth <= ring + 1)] = value
        frame = background + share * (colour - background)
        wrong = error * (smooth_noise(100 + t) - 0.5)
        meter.look(frame, background + wrong.astype(np.float32), covered, covered)
    return meter


@pytest.mark.parametrize("shares", [(0, 0, 0, 0), (0, 0, 0, 0.3), (0.05, 0.1, 0.4, 0.9)])
def test_the_shares_are_measured_exactly_where_the_background_is_known(shares):
    np.testing.assert_allclose(gauge(shares).shares(), shares, atol=1e-4)


@pytest.mark.parametrize("shares", [(0, 0, 0, 0), (0, 0, 0.1, 0.5)])
def test_errors_in_what_other_frames_show_do_not_look_like_the_target(shares):
    np.testing.assert_allclose(gauge(shares, error=0.4, frames=12).shares(), shares, atol=0.04)


def test_one_ring_with_the_target_in_it_is_enough_to_say_no():
    assert gauge((0, 0, 0, 0)).is_free()
    for ring in range(RINGS):
        shares = np.zeros(RINGS)
        shares[ring] = 3 * FREE_BELOW
        assert not gauge(shares).is_free()


def test_what_cannot_be_judged_is_not_free():
    assert not MarginGauge().is_free()
    meter, covered = MarginGauge(), blob(80)
    nothing = np.zeros((H, W), bool)
    image = smooth_noise(0)
    meter.look(image, image, nothing, covered)  # no other frame shows what is behind
    meter.look(image, image, covered, nothing)  # nothing is covered
    meter.look(image, image, nothing | True, nothing | True)  # everything is
    meter.look(image, image, covered, blob(80, radius=3))  # too thin to say what the target looks like
    assert not meter.is_free() and np.isnan(meter.shares()).all()
    few = gauge((0, 0, 0, 0), frames=1)  # a ring of one frame has some 150 pixels
    assert blob(50).sum() > FEWEST and not few.is_free()


def test_two_halves_of_a_clip_are_one_clip():
    left, right = gauge((0, 0.1, 0.2, 0.3), frames=4), gauge((0, 0.3, 0.2, 0.1), frames=4)
    np.testing.assert_allclose((left + right).shares(), (0, 0.2, 0.2, 0.2), atol=1e-3)


def test_outer_rings_are_the_pixels_near_the_edge():
    covered = blob(30) | blob(140, 10, 18)  # across the picture's border
    depth = depth_of(covered)
    # OpenCV's distance is right within a few per cent
    sure = np.abs(depth - RINGS) > 0.2
    np.testing.assert_array_equal(outer_rings(covered)[sure], (covered & (depth <= RINGS))[sure])
    assert not outer_rings(np.zeros_like(covered)).any()


def moving_blob(spread):
    """A blob crossing a plane, drawn ``spread`` pixels larger than its mask: frames and masks grown by RINGS."""
    clean = torch.from_numpy(smooth_noise(1, 2.0))
    masks = np.stack([blob(36 + 11 * t, radius=16) for t in range(9)])
    seen = np.stack([blob(36 + 11 * t, radius=16 + spread) for t in range(9)])
    target = torch.tensor([0.95, 0.1, 0.1])[None, :, None, None]
    frames = torch.where(torch.from_numpy(seen)[:, None], target, clean[None])
    return frames, grow_mask(torch.from_numpy(masks)[:, None].float(), RINGS)


def test_a_clip_may_copy_from_a_margin_that_is_free():
    frames, grown = moving_blob(spread=0)
    found = propagate_pixels(frames, grown)
    rings = torch.from_numpy(np.stack([outer_rings(m[0].numpy() > 0) for m in grown]))
    assert torch.equal(found.visible, (grown[:, 0] == 0) | rings)


@pytest.mark.parametrize("spread", [2, 4])
def test_a_clip_does_not_copy_from_a_margin_that_shows_the_target(spread):
    frames, grown = moving_blob(spread)
    assert torch.equal(propagate_pixels(frames, grown).visible, grown[:, 0] == 0)
    # nor from one that nothing is known of
    assert torch.equal(propagate_pixels(frames, grown, passes=1).visible, grown[:, 0] == 0)
