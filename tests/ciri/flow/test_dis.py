"""Optical flow against known motion, its consistency against a brute-force twin, warping against shifts."""

import cv2
import numpy as np
import pytest
import torch

from ciri.flow.dis import consistency, grey, grey_flow, neighbour_flow, warp


def texture(h, w, seed=0):
    """A smooth random RGB texture (3, h, w) in [0, 1]."""
    noise = np.random.default_rng(seed).random((h, w, 3)).astype(np.float32)
    image = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return torch.from_numpy((image - image.min()) / (image.max() - image.min())).permute(2, 0, 1)


def test_flow_finds_a_known_shift_in_both_directions():
    wide = texture(96, 128)
    frames = torch.stack([wide[:, 8:88, 10 + 3 * t : 110 + 3 * t] for t in range(3)])  # content moves 3 px left
    forward, backward = neighbour_flow(frames)
    inner = (slice(None), slice(None), slice(12, -12), slice(12, -12))
    expected = torch.tensor([-3.0, 0.0])[None, :, None, None]
    assert (forward[inner] - expected).abs().mean() < 0.1
    assert (backward[inner] + expected).abs().mean() < 0.1


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (12, 70), (37, 53)])
def test_flow_of_any_size_is_finite_and_of_that_size(size):
    forward, backward = neighbour_flow(torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1)))
    assert forward.shape == backward.shape == (2, 2, *size)
    assert torch.isfinite(forward).all() and torch.isfinite(backward).all()


def test_one_frame_has_no_flow():
    forward, backward = neighbour_flow(torch.rand(1, 3, 40, 50))
    assert forward.shape == backward.shape == (0, 2, 40, 50)


def test_the_callback_stops_the_work():
    seen = []

    def stop(done, total):
        seen.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        neighbour_flow(torch.rand(5, 3, 40, 40), on_step=stop)
    assert seen == [(1, 4)]


def pan(step, count=2, h=96, w=128, ripple=0.0):
    """A camera that pans to the right by ``step`` pixels a frame over fine texture; with a ripple added to the flow.

    Returns frames (count, 3, h, w) and the true flow between neighbours (2, h, w).
    """
    noise = np.random.default_rng(4).random((h + 10, w + 90, 3)).astype(np.float32)
    # coarse shapes, which a fast camera is followed by, and fine ones
    picture = cv2.GaussianBlur(noise, (0, 0), 1.0) + 12 * cv2.GaussianBlur(noise, (0, 0), 12.0)
    picture = (picture - picture.min()) / (picture.max() - picture.min())
    y, x = np.mgrid[:h, :w].astype(np.float32)
    wave = ripple * np.sin(y * (2 * np.pi / 16))  # along x, by y: a row's flow is the same wherever it moves to
    shown = [cv2.remap(picture, x + 5 + t * (step + wave), y + 5, cv2.INTER_CUBIC) for t in range(count)]
    flow = torch.from_numpy(np.stack([-step - wave, np.zeros_like(wave)]))
    return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).clamp(0, 1), flow


PART = (slice(24, 72), slice(50, 98))


def errors_of(frames, truth):
    """Mean error of the flow in pixels within the part: as the preset leaves it, and looked at closely."""
    greys, shape = [grey(frame) for frame in frames], (len(frames), *frames.shape[2:])
    flows = [grey_flow(greys, shape, closely=closely)[0] for closely in ((), [PART])]
    outside = torch.ones(shape[1:], dtype=torch.bool)
    outside[PART] = False
    torch.testing.assert_close(flows[1][0][:, outside], flows[0][0][:, outside], rtol=0, atol=0)
    return [float((flow[0] - truth).norm(dim=0)[PART].mean()) for flow in flows]


def test_a_closer_look_sees_finer_motion():
    plain, close = errors_of(*pan(1.0, ripple=1.2))
    assert close < 0.8 * plain


def test_a_closer_look_follows_a_fast_camera():
    plain, close = errors_of(*pan(20.3))
    assert plain < 0.2 and close < 0.2


def test_without_a_part_nothing_is_looked_at_closely():
    frames, _ = pan(1.3, count=3)
    greys = [grey(frame) for frame in frames]
    expected = grey_flow(greys, (3, 96, 128))
    for found, wanted in zip(grey_flow(greys, (3, 96, 128), closely=[None, None]), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_warp_by_whole_pixels_is_a_shift():
    image = torch.rand(1, 3, 11, 13)
    flow = torch.zeros(1, 2, 11, 13)
    flow[:, 0], flow[:, 1] = 2, -1
    warped = warp(image, flow)
    torch.testing.assert_close(warped[..., 1:, :-2], image[..., :-1, 2:])
    torch.testing.assert_close(warped[..., 0, :-2], image[..., 0, 2:])  # beyond the border: the border


def test_consistency_is_one_for_inverse_shifts_and_zero_where_the_frame_is_left():
    forward = torch.zeros(1, 2, 20, 30)
    forward[:, 0] = 4
    trust = consistency(forward, -forward)
    assert (trust[..., :26] == 1).all()
    assert (trust[..., 26:] == 0).all()


def test_consistency_drops_where_two_motions_disagree():
    forward, backward = torch.zeros(1, 2, 20, 30), torch.zeros(1, 2, 20, 30)
    forward[..., 5:10, 5:10] = 3  # moves, and nothing moves back
    trust = consistency(forward, backward)
    assert (trust[..., 5:10, 5:10] == 0).all()
    assert (trust[..., 12:, 12:] == 1).all()
