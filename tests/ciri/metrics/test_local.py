"""Local numbers: boxes, regions, and how local and global ones belong together."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ciri.errors import MaskError
from ciri.metrics.local import LEAST_SIDE, bounding_box, local_scores, target_crops
from ciri.metrics.similarity import psnr


@given(st.tuples(st.integers(1, 30), st.integers(1, 30)).flatmap(lambda shape: arrays(bool, shape)))
def test_the_box_is_the_smallest_that_is_large_enough(mask):
    box = bounding_box(mask)
    if not mask.any():
        assert box is None
        return
    inside = np.zeros_like(mask)
    inside[box.slices] = True
    assert not (mask & ~inside).any()
    ys, xs = np.nonzero(mask)
    for side, seen, limit in ((box.height, np.ptp(ys) + 1, mask.shape[0]), (box.width, np.ptp(xs) + 1, mask.shape[1])):
        assert side == max(seen, min(LEAST_SIDE, limit))
    assert 0 <= box.y <= mask.shape[0] - box.height and 0 <= box.x <= mask.shape[1] - box.width


def scene(error=0.1):
    """A clip that is wrong by a constant inside a square only; no target in the last frame."""
    clean = torch.full((3, 3, 60, 80), 0.5)
    masks = torch.zeros(3, 1, 60, 80)
    masks[:2, :, 20:40, 30:50] = 1
    return clean + error * masks, clean, masks


def test_a_constant_error_inside_the_target_has_the_closed_form():
    result, clean, masks = scene()
    scores = local_scores(result, clean, masks)
    grey = round(0.6 * 255) - round(0.5 * 255)
    expected = 20 * math.log10(255 / grey)
    assert scores.psnr_mask[:2].tolist() == pytest.approx([expected] * 2)
    assert scores.psnr_box[:2].tolist() == pytest.approx([expected] * 2)
    assert (scores.psnr_outside == 100).all()
    # nothing is wrong elsewhere: global minus local is the share of the frame that the box covers
    assert (psnr(result, clean) - scores.psnr_box)[0] == pytest.approx(-10 * math.log10(400 / 4800))
    assert scores.share_box[0] == pytest.approx(400 / 4800)


def test_frames_without_target_are_not_scored():
    scores = local_scores(*scene())
    assert math.isnan(scores.psnr_box[2]) and math.isnan(scores.ssim_box[2]) and math.isnan(scores.share_mask[2])
    assert not scores.psnr_outside.isnan().any()


def test_outside_begins_eight_pixels_away():
    result, clean, masks = scene(0)
    for margin, expected in ((8, 100.0), (9, None)):
        damaged = result.clone()
        damaged[0, :, 20 - margin, 35] += 0.3
        outside = local_scores(damaged, clean, masks).psnr_outside[0]
        assert outside == expected if expected else outside < 60


def test_crops_show_the_target():
    result, _, masks = scene(0.25)
    crops = target_crops(result, masks)
    assert crops.shape == (2, 3, 224, 224) and torch.allclose(crops, torch.tensor(0.75))
    assert target_crops(result, masks * 0).shape == (0, 3, 224, 224)


def test_masks_of_another_clip_are_refused():
    result, clean, masks = scene()
    with pytest.raises(MaskError, match="one per frame"):
        local_scores(result, clean, masks[:1])
