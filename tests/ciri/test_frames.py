"""ciri.frames against brute force and stated properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ciri import frames as fr
from ciri.errors import ClipError, MaskError


def clip(t=2, c=3, h=37, w=53):
    return torch.rand(t, c, h, w, generator=torch.Generator().manual_seed(0))


def test_clip_drops_alpha_and_widens_half_precision():
    rgba = clip(c=4).half()
    checked = fr.check_clip(rgba)
    assert checked.shape == (2, 3, 37, 53) and checked.dtype == torch.float32
    assert torch.equal(checked, rgba[:, :3].float())


def test_clip_clamps():
    assert torch.equal(
        fr.check_clip(torch.tensor([-1.0, 0.5, 2.0]).reshape(1, 3, 1, 1)).flatten(), torch.tensor([0, 0.5, 1])
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_clip_names_the_frame_that_is_not_a_number(value):
    bad = clip(t=5)
    bad[3, 1, 2, 2] = value
    with pytest.raises(ClipError, match="Frame 3 "):
        fr.check_clip(bad)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (3, 4, 4), (1, 2, 4, 4), (1, 3, 0, 4)])
def test_clip_refuses_other_shapes(shape):
    with pytest.raises(ClipError, match="shape"):
        fr.check_clip(torch.zeros(shape))


def test_clip_refuses_integers():
    with pytest.raises(ClipError, match="uint8"):
        fr.check_clip(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(37, 53), (1, 37, 53), (1, 1, 37, 53)])
def test_mask_accepts_every_usual_rank(shape):
    masks, notes = fr.check_masks(torch.ones(shape), 37, 53)
    assert masks.shape == (1, 1, 37, 53) and notes == []


def test_mask_of_the_same_aspect_ratio_is_resized_with_a_note():
    mask = torch.zeros(60, 108)
    mask[20:40, 30:60] = 1
    resized, notes = fr.check_masks(mask, 240, 432)
    expected = torch.zeros(240, 432)
    expected[80:160, 120:240] = 1
    assert "108x60" in notes[0] and "432x240" in notes[0]
    # bilinear interpolation may round off the four corners, nothing else
    assert ((resized[0, 0] > 0.5) != (expected > 0.5)).sum() <= 4


def test_the_empty_mask_of_load_image_gets_its_own_message():
    with pytest.raises(MaskError, match="LoadImage.*MaskEditor"):
        fr.check_masks(torch.zeros(1, 64, 64), 240, 432)


def test_mask_of_another_aspect_ratio_is_refused():
    with pytest.raises(MaskError, match="100x100.*432x240"):
        fr.check_masks(torch.ones(100, 100), 240, 432)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 0, 5), (0, 4, 4), (2, 1, 0, 0), (1, 2, 3, 4), (3,)])
def test_masks_of_no_use_are_refused(shape):
    with pytest.raises(MaskError, match="expected .masks, height, width."):
        fr.check_masks(torch.zeros(shape), 10, 10)


def test_mask_that_is_not_a_number_is_refused():
    with pytest.raises(MaskError, match="index 1"):
        fr.check_masks(torch.stack([torch.zeros(8, 8), torch.full((8, 8), torch.nan)]), 8, 8)


@pytest.mark.parametrize(("value", "word"), [(0.0, "empty"), (1.0, "whole frame")])
def test_annotation_without_target_or_background_is_refused(value, word):
    with pytest.raises(MaskError, match=word):
        fr.check_annotation(torch.full((1, 1, 8, 8), value))


def test_key_frames():
    assert fr.check_key_frames([0, -1], 2, 10) == [0, 9]
    for wrong, word in (([0], "2 annotated"), ([0, 10], "outside"), ([3, 3], "once")):
        with pytest.raises(MaskError, match=word):
            fr.check_key_frames(wrong, 2, 10)


@given(h=st.integers(1, 40), w=st.integers(1, 40), multiple=st.sampled_from([1, 4, 8, 16]))
def test_padding_is_undone_exactly(h, w, multiple):
    x = clip(h=h, w=w)
    padded, size = fr.pad_to_multiple(x, multiple)
    assert padded.shape[-2] % multiple == 0 and padded.shape[-1] % multiple == 0
    assert padded.shape[-2] - h < multiple and padded.shape[-1] - w < multiple
    assert torch.equal(fr.unpad(padded, size), x)


def test_mirrored_padding_is_the_flip_appended_and_cropped():
    x = clip(h=61, w=200)
    padded, size = fr.pad_to_multiple(x, fr.Multiple(60, 108, mirrored=True))
    below = torch.cat([x, x.flip(2)], 2)[:, :, :120]
    assert size == (61, 200) and torch.equal(padded, torch.cat([below, below.flip(3)], 3)[..., :216])


@given(h=st.integers(1, 40), w=st.integers(1, 40))
def test_mirrored_padding_of_any_size_has_no_seam(h, w):
    # pixels that are neighbours after padding were neighbours, or one and the same, before
    x = (torch.arange(h)[:, None] * 1000 + torch.arange(w)).float()[None, None]
    padded, size = fr.pad_to_multiple(x, fr.Multiple(24, 36, mirrored=True))
    assert padded.shape[-2] % 24 == 0 and padded.shape[-1] % 36 == 0
    assert torch.equal(fr.unpad(padded, size), x)
    assert padded.diff(dim=-2).abs().unique().tolist() in ([0.0], [0.0, 1000.0], [1000.0])
    assert padded.diff(dim=-1).abs().unique().tolist() in ([0.0], [0.0, 1.0], [1.0])


def test_height_and_width_may_need_different_multiples():
    padded, size = fr.pad_to_multiple(clip(h=61, w=108), (60, 108))
    assert padded.shape[-2:] == (120, 108) and size == (61, 108)


def test_grow_reaches_as_far_as_said_and_back():
    mask = torch.zeros(1, 1, 41, 41)
    mask[0, 0, 20, 20] = 1
    grown = fr.grow_mask(mask, 8)[0, 0]
    ys, xs = torch.nonzero(grown, as_tuple=True)
    distance = ((ys - 20.0) ** 2 + (xs - 20.0) ** 2).sqrt()
    assert grown[20, 28] == 1 and grown[20, 29] == 0
    assert distance.max() <= 8 * 1.2  # an octagon, not a square (which would reach 11.3)
    assert torch.equal(fr.grow_mask(fr.grow_mask(mask, 8), -8), mask)


def test_feather_falls_outward_only():
    mask = torch.zeros(1, 1, 21, 21)
    mask[0, 0, 8:13, 8:13] = 1
    alpha = fr.feather_alpha(mask, 3)[0, 0]
    assert torch.equal(alpha[10, 10:17], torch.tensor([1, 1, 1, 0.75, 0.5, 0.25, 0]))


@given(seed=st.integers(0, 10_000))
def test_paste_leaves_all_other_pixels_bit_identical(seed):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(2, 3, 19, 23, generator=generator)
    frames[0, 0, 0, 0] = -0.0
    filled = torch.full_like(frames, torch.inf)
    alpha = (torch.rand(2, 1, 19, 23, generator=generator) - 0.5).clamp(min=0)
    alpha[0, 0, 0, 0] = 0
    out = fr.paste_back(frames, filled, alpha)
    outside = (alpha == 0).expand_as(frames)
    assert out[outside].numpy().tobytes() == frames[outside].numpy().tobytes()
    assert (out[~outside] == torch.inf).all()


@given(st.integers(0, 2**30), st.integers(0, 9), st.sampled_from([1, 4]))
def test_extent_holds_what_is_true_and_the_margin_and_no_more(seed, margin, multiple):
    generator = torch.Generator().manual_seed(seed)
    hit = torch.zeros(24, 36, dtype=torch.bool)
    y, x = (torch.randint(side, (3,), generator=generator) for side in hit.shape)
    hit[y, x] = True
    for part, places, side in zip(fr.extent(hit, margin, multiple), (y, x), hit.shape, strict=True):
        wanted = {p for p in range(side) if places.min() - margin <= p <= places.max() + margin}
        cells = {p // multiple for p in wanted}
        assert set(range(side)[part]) == {p for p in range(side) if p // multiple in cells}
