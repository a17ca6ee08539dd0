"""Boxes, windows and crops."""

import math
from statistics import median

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ciri.errors import MaskError
from ciri.residue.base import Box
from ciri.residue.crops import (
    KEPT_PER_FRAME,
    LEAST_OF_MEDIAN,
    LEAST_SIDE,
    boxes_of_clip,
    crop,
    paste_map,
    search_window,
    share_of_box,
    target_box,
    template_window,
)


def mask_with(box: tuple[int, int, int, int] | None, size: tuple[int, int] = (60, 80)) -> torch.Tensor:
    mask = torch.zeros(1, *size)
    if box is not None:
        x, y, w, h = box
        mask[:, y : y + h, x : x + w] = 1
    return mask


@given(
    x=st.integers(-40, 70),
    y=st.integers(-40, 50),
    w=st.integers(1, 60),
    h=st.integers(1, 60),
    size=st.integers(4, 33),
)
def test_a_crop_is_the_padded_window_resized(x: int, y: int, w: int, h: int, size: int) -> None:
    image = torch.rand(1, 3, 60, 80, dtype=torch.float64)
    fill = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    padded = fill[:, None, None].expand(3, 260, 280).clone()
    padded[:, 100:160, 100:180] = image[0]
    window = padded[None, :, 100 + y : 100 + y + h, 100 + x : 100 + x + w]
    expected = F.interpolate(window, (size, size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(crop(image, [Box(x, y, w, h)], size, fill), expected)


def test_a_crop_is_differentiable_in_the_pixels_it_shows() -> None:
    image = torch.rand(1, 3, 12, 14, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: crop(x, [Box(-3, 2, 9, 12)], 7, torch.zeros(3)), image)


def test_antialiasing_averages_what_a_pixel_covers() -> None:
    image = torch.rand(1, 3, 64, 64)
    got = crop(image, [Box(0, 0, 64, 64)], 16, torch.zeros(3), antialias=True)
    torch.testing.assert_close(got, F.avg_pool2d(image, 4))


def test_windows_are_square_and_centred() -> None:
    box = Box(10, 20, 30, 12)
    assert search_window(box) == Box(-5, -4, 60, 60)
    assert template_window(box).width == template_window(box).height == round(1.25 * 30)
    assert search_window(box, isotropic=False) == Box(-5, 14, 60, 24)


def test_a_disc_fills_a_quarter_of_pi_of_its_box() -> None:
    y, x = torch.meshgrid(torch.arange(200.0), torch.arange(300.0), indexing="ij")
    disc = ((x - 120) ** 2 + (y - 90) ** 2 <= 80**2).float()[None]
    assert abs(share_of_box(disc) - math.pi / 4) < 0.02
    assert share_of_box(torch.zeros(1, 8, 8)) == 1


def test_the_box_of_a_mask_is_tight() -> None:
    assert target_box(mask_with((7, 9, 20, 5))) == Box(7, 9, 20, 5)
    assert target_box(mask_with(None)) is None


@given(st.integers(0, 2**32 - 1))
def test_a_box_always_contains_its_mask_and_keeps_its_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = [
        None
        if rng.random() < 0.2
        else (int(rng.integers(0, 40)), int(rng.integers(0, 30)), *(int(v) for v in rng.integers(1, 30, 2)))
        for _ in range(7)
    ]
    boxes[3] = (20, 20, 24, 18)
    masks = torch.stack([mask_with(b) for b in boxes])
    found = boxes_of_clip(masks, masks[3], 3)
    assert found[3] == Box(20, 20, 24, 18)
    for t, (box, at) in enumerate(zip(boxes, found, strict=True)):
        assert at is not None
        if box is None:
            assert at == found[t - 1 if t > 3 else t + 1]
        elif t != 3:
            x, y, w, h = box
            assert at.x <= x and at.y <= y and at.x + at.width >= x + w and at.y + at.height >= y + h
            assert at.width >= 16 and at.height >= 16


def plain_side(axis: int, now: Box, seen: Box | None, kept: Box | None, before: list[Box]) -> tuple[int, int]:
    """Start and length of one side of the box around the present one and what is kept of the last."""
    low, high = now[axis], now[axis] + now[2 + axis]
    if seen is not None and kept is not None:
        centre = kept.centre[axis] + now.centre[axis] - seen.centre[axis]
        half = KEPT_PER_FRAME * kept[2 + axis] / 2
        low, high = min(low, math.floor(centre - half + 0.5)), max(high, math.floor(centre + half + 0.5))
    usual = median(box[2 + axis] for box in before) if before else 0
    side = max(high - low, LEAST_SIDE, math.ceil(LEAST_OF_MEDIAN * usual))
    return math.floor(low + (high - low) / 2 - side / 2 + 0.5), side


def plain_boxes(masks: torch.Tensor, first_index: int) -> list[Box | None]:
    """The rule as it is told, with the medians of all frames so far taken anew for every frame."""
    first = target_box(masks[first_index])
    boxes: list[Box | None] = [first] * len(masks)
    for order in (range(first_index + 1, len(masks)), range(first_index - 1, -1, -1)):
        seen = kept = first
        before = [first] if first else []
        for t in order:
            now = target_box(masks[t])
            if now is not None:
                (x, width), (y, height) = (plain_side(axis, now, seen, kept, before) for axis in (0, 1))
                kept, seen = Box(x, y, width, height), now
                before.append(now)
            boxes[t] = kept
    return boxes


@given(st.integers(0, 2**32 - 1))
def test_boxes_are_those_of_a_plain_form(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    index, large = (int(v) for v in rng.integers(count, size=2))
    boxes: list[tuple[int, int, int, int] | None] = []
    for t in range(count):
        # small far from the annotated frame: there the medians decide
        side = (24, 46) if abs(t - index) < large else (1, 9)
        x, y, w, h = (int(v) for v in rng.integers((0, 0, side[0], side[0]), (5, 5, side[1], side[1])))
        boxes.append(None if rng.random() < 0.1 else (x, y, w, h))
    masks = torch.stack([mask_with(box) for box in boxes])
    assert boxes_of_clip(masks, masks[index], index) == plain_boxes(masks, index)


def test_a_lost_limb_stays_in_view_and_a_receding_target_shrinks() -> None:
    whole, cut = (20, 10, 20, 40), (20, 10, 20, 16)
    masks = torch.stack([mask_with(whole)] * 3 + [mask_with(cut)] * 3)
    boxes = boxes_of_clip(masks, masks[0])
    assert all(box is not None and box.height >= 30 for box in boxes)
    shrinking = torch.stack([mask_with((10, 5, 50 - 2 * t, 50 - 2 * t)) for t in range(17)])
    last = boxes_of_clip(shrinking, shrinking[0])[-1]
    assert last is not None and last.width < 45


def test_there_is_no_box_before_a_target_was_seen() -> None:
    masks = torch.stack([mask_with(None), mask_with(None), mask_with((5, 5, 20, 20))])
    assert boxes_of_clip(masks, masks[0]) == [None, None, Box(5, 5, 20, 20)]


def test_a_pasted_map_lies_where_it_was_cut_out() -> None:
    window = Box(-6, 8, 32, 32)
    response = torch.zeros(1, 16, 16)
    response[:, 4:8, 8:12] = 1  # columns -6 + 16 .. -6 + 24, rows 8 + 8 .. 8 + 16
    frame = paste_map(response, window, (60, 80))
    ys, xs = torch.nonzero(frame[0] > 0.5, as_tuple=True)
    assert (int(xs.min()), int(xs.max()), int(ys.min()), int(ys.max())) == (10, 17, 16, 23)
    assert not frame[:, :8].any() and not frame[:, 40:].any() and not frame[:, :, 26:].any()
    assert not paste_map(torch.ones(1, 4, 4), Box(200, 0, 8, 8), (60, 80)).any()


def test_as_many_windows_as_frames() -> None:
    with pytest.raises(MaskError, match="1 windows for 2 frames"):
        crop(torch.zeros(2, 3, 8, 8), [Box(0, 0, 4, 4)], 4, torch.zeros(3))
