"""Optical flow against known motion, its consistency against a brute-force twin, warping against shifts."""

import cv2
import numpy as np
import pytest
import torch

from ciri.flow.dis import consistency, neighbour_flow, warp


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
