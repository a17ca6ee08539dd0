"""ciri.crop_track: the window holds the target, stays in the frame, and moves smoothly."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ciri.crop_track import follow_target, target_boxes
from ciri.errors import MaskError


def follow(masks, **options):
    return follow_target(target_boxes(masks), tuple(masks.shape[2:]), **options)


def test_height_and_width_may_need_different_multiples():
    masks = torch.zeros(3, 1, 240, 432)
    masks[:, :, 100:150, 100:150] = 1
    assert follow(masks, margin=1.0, multiple=(60, 108)).size == (180, 216)


@st.composite
def wandering_boxes(draw):
    h, w, t = draw(st.integers(20, 300)), draw(st.integers(20, 300)), draw(st.integers(1, 12))
    masks = torch.zeros(t, 1, h, w)
    for frame in range(t):
        if draw(st.booleans()) or frame == 0:
            y, x = draw(st.integers(0, h - 2)), draw(st.integers(0, w - 2))
            bh, bw = draw(st.integers(1, h - y)), draw(st.integers(1, w - x))
            masks[frame, 0, y : y + bh, x : x + bw] = 1
    return masks


@given(masks=wandering_boxes())
def test_crop_contains_the_target_and_stays_inside(masks):
    track = follow(masks)
    (h, w), (frame_h, frame_w) = track.size, masks.shape[2:]
    boxes = target_boxes(masks)
    for (top, left), (y0, x0, y1, x1) in zip(track.corners.tolist(), boxes.tolist(), strict=True):
        assert 0 <= top <= frame_h - h and 0 <= left <= frame_w - w
        if y0 >= 0:
            assert top <= y0 and left <= x0 and y1 <= top + h and x1 <= left + w
            assert h >= min(1.5 * (y1 - y0), frame_h) and w >= min(1.5 * (x1 - x0), frame_w)


def test_crop_follows_a_steady_target_without_jitter():
    masks = torch.zeros(40, 1, 200, 400)
    jitter = np.random.RandomState(0).randint(-3, 4, 40)
    for t in range(40):
        x = 40 + 5 * t + int(jitter[t])
        masks[t, 0, 80:120, x : x + 30] = 1
    left = follow(masks).corners[8:-8, 1].float()
    assert left.diff().min() >= 0  # the jitter of the mask never makes the window go back
    assert left.diff().max() <= 8


def test_crop_without_any_target_is_refused():
    with pytest.raises(MaskError, match="No frame shows a target"):
        follow(torch.zeros(3, 1, 20, 20))


@given(masks=wandering_boxes())
def test_cut_and_put_are_inverse(masks):
    track = follow(masks)
    source = torch.rand(masks.shape[0], 3, *masks.shape[2:])
    copy = source.clone()
    track.put(copy, track.cut(source))
    assert torch.equal(copy, source)


def test_the_window_of_one_frame_is_that_of_the_clip_there():
    masks = torch.zeros(5, 1, 200, 400)
    for t in range(5):
        masks[t, 0, 80:120, 40 * t : 40 * t + 30] = 1
    track, source = follow(masks), torch.rand(5, 3, 200, 400)
    alone = [track.at(t).cut(source[t : t + 1])[0] for t in range(5)]
    assert torch.equal(torch.stack(alone), track.cut(source))
