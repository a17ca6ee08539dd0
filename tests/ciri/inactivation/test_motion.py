"""What moves with whom: carried masks follow the motion, and speeds are compared as a closed form says."""

import cv2
import numpy as np
import pytest
import torch

from ciri.flow.propagate import propagate_pixels
from ciri.inactivation.evidence import neighbourhood
from ciri.inactivation.motion import KEPT, Motion, _local_mean, carried
from tests.ciri.inactivation.moving import moving_disc


def test_masks_are_carried_along_the_flow_and_fade():
    """A square that steps three pixels to the right, in a flow that says so, and is missed from some frame on."""
    masks = torch.zeros(6, 1, 20, 40)
    for t in range(6):
        masks[t, :, 5:12, 2 + 3 * t : 9 + 3 * t] = 1
    back, forth = torch.zeros(2, 5, 2, 20, 40)
    back[:, 0], forth[:, 0] = -3, 3
    result = carried(masks, back, forth)
    assert (result[0] == 0.5).all()
    for t in range(1, 6):
        seen = slice(3 * t, -3)  # what comes in at the left was never seen
        assert torch.allclose(result[t, :, :, seen], masks[t, :, :, seen], atol=1e-5)
    gone = masks.clone()
    gone[3:] = 0  # missed from the third step on
    faded = carried(gone, back, forth)
    assert faded[3, 0, 8, 14] == pytest.approx(1)
    assert faded[4, 0, 8, 17] == pytest.approx(KEPT, abs=1e-5)
    assert faded[5, 0, 8, 20] == pytest.approx(KEPT**2, abs=1e-5)


def test_nothing_is_known_where_the_way_there_and_back_disagree():
    masks = torch.ones(2, 1, 8, 8)
    result = carried(masks, torch.full((1, 2, 8, 8), 2.0), torch.full((1, 2, 8, 8), 2.0))
    assert (result == 0.5).all()


def test_the_targets_motion_around_a_pixel_is_what_a_loop_counts():
    rng = np.random.default_rng(2)
    flow = torch.from_numpy(rng.normal(size=(2, 70, 90)).astype(np.float32))
    mask = (rng.random((70, 90)) > 0.9).astype(np.float32)
    mask[:, 50:] = 0
    got = _local_mean(flow, mask)
    for y, x in ((0, 0), (35, 45), (69, 60), (20, 89)):
        window = slice(max(0, y - 30), y + 31), slice(max(0, x - 30), x + 31)
        chosen = mask[window] > 0
        values = flow[:, window[0], window[1]].numpy()[:, chosen] if chosen.any() else flow.numpy()[:, mask > 0]
        assert np.allclose(got[:, y, x], values.mean(1), atol=1e-4)


def test_a_moving_target_is_told_from_the_ground_and_from_itself():
    """A square with a texture of its own goes four pixels a frame over one that stands still."""
    rng = np.random.default_rng(1)
    ground, paint = (cv2.GaussianBlur(rng.random((120, 200, 3)).astype(np.float32), (0, 0), 2) for _ in range(2))
    ground, paint = (np.clip(5 * (x - 0.5) + 0.5, 0, 1) for x in (ground, paint))
    clip, masks = np.stack([ground] * 16), np.zeros((16, 1, 120, 200), np.float32)
    for t in range(16):
        place = slice(35, 85), slice(20 + 4 * t, 70 + 4 * t)
        clip[t][place], masks[t, 0][place] = paint[:50, :50], 1
    frames, masks = torch.from_numpy(clip).permute(0, 3, 1, 2), torch.from_numpy(masks)
    motion = Motion(frames, masks)
    found = propagate_pixels(frames, neighbourhood(masks, 14), passes=1, seen=(motion.forward, motion.backward))
    earlier, later, apart, unlike = motion.at(8, found.forward, found.backward)
    inside = masks[8, 0] > 0
    far = neighbourhood(masks, 20)[8, 0] == 0
    assert apart[inside].median() == pytest.approx(4 / 5, abs=0.02) and apart[far].median() < 0.1
    assert unlike[inside].median() < 0.3 and unlike[far].median() == pytest.approx(4 / 5, abs=0.05)
    assert earlier[inside].mean() > 0.85 and earlier[far].mean() < 0.1
    assert later[inside].mean() > 0.85 and later[far].mean() < 0.1


def test_flow_that_was_measured_already_gives_the_same_answers_and_is_left_as_it_was():
    frames, masks, _ = moving_disc(frames=6)
    motion = Motion(frames, masks)
    kept = motion.forward.clone()
    for passes in (1, 2):
        anew = propagate_pixels(frames, masks, passes=passes)
        reused = propagate_pixels(frames, masks, passes=passes, seen=(motion.forward, motion.backward))
        assert torch.equal(anew.forward, reused.forward) and torch.equal(anew.table.rows, reused.table.rows)
    assert torch.equal(motion.forward, kept)


def test_one_frame_tells_nothing():
    frames, masks, _ = moving_disc(frames=6)
    alone = Motion(frames[:1], masks[:1]).at(0, torch.zeros(0, 2, 96, 160), torch.zeros(0, 2, 96, 160))
    assert (alone[:2] == 0.5).all() and (alone[2:] == 0).all()
    none = Motion(frames, torch.zeros_like(masks))
    assert not none.at(2, none.forward, none.backward)[2:].any()
