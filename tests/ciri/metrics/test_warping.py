"""E_warp: zero for what moves with the scene, the variance for what flickers, nothing where pixels are hidden."""

import numpy as np
import pytest
import torch

from ciri.metrics.warping import motion_from_flows, motion_of, warping_error


def moving_texture(count=4, step=2):
    rng = np.random.default_rng(0)
    wide = torch.from_numpy(rng.random((3, 48, 64 + step * count), np.float32))
    return torch.stack([wide[..., step * t : step * t + 64] for t in range(count)])


def constant_flow(x, count=3):
    flow = torch.zeros(count, 2, 48, 64)
    flow[:, 0] = x
    return flow


def test_what_moves_with_the_scene_does_not_flicker():
    motion = motion_from_flows(constant_flow(-2), constant_flow(2))
    assert not motion.occluded.any()
    # what leaves the frame at its left border has no match
    masks = torch.zeros(4, 1, 48, 64)
    masks[..., 10:-10] = 1
    assert warping_error(moving_texture(), motion, masks).max() < 1e-10


def test_flicker_costs_its_square():
    still = torch.full((4, 3, 48, 64), 0.5)
    still[1::2] += 0.1
    errors = warping_error(still, motion_from_flows(constant_flow(0), constant_flow(0)))
    assert errors.tolist() == pytest.approx([0.01] * 3, rel=1e-5)


def test_only_pixels_that_were_inpainted_in_either_frame_count_where_asked():
    still, masks = torch.full((3, 3, 48, 64), 0.5), torch.zeros(3, 1, 48, 64)
    still[1, :, :10] += 0.2
    masks[1, :, :10] = 1
    motion = motion_from_flows(constant_flow(0, 2), constant_flow(0, 2))
    assert warping_error(still, motion, masks).tolist() == pytest.approx([0.04, 0.04], rel=1e-5)
    assert warping_error(still, motion, masks * 0).isnan().all()


def test_disagreeing_flows_are_occluded():
    motion = motion_from_flows(constant_flow(3), constant_flow(3))
    assert motion.occluded.all() and warping_error(moving_texture(), motion).isnan().all()


def test_motion_is_found():
    rng = np.random.default_rng(1)
    import cv2

    wide = torch.from_numpy(cv2.GaussianBlur(rng.random((96, 160, 3)).astype(np.float32), (0, 0), 2)).permute(2, 0, 1)
    wide = (wide - wide.min()) / (wide.max() - wide.min())
    clip = torch.stack([wide[..., 2 * t : 2 * t + 128] for t in range(3)])
    motion = motion_of(clip)
    assert motion.forward[:, 0, 20:-20, 20:-20].median() == pytest.approx(-2, abs=0.2)
    assert not motion.occluded[..., 20:-20, 20:-20].float().mean() > 0.1


def test_one_frame_has_no_pair():
    clip = moving_texture(1)
    assert warping_error(clip, motion_of(clip)).shape == (0,)
