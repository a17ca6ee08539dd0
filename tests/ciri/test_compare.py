"""Overlays and comparisons, checked pixel by pixel."""

import pytest
import torch
import torch.nn.functional as F

from ciri.compare import GAP, MODES, compare, overlay
from ciri.errors import CiriError, ClipError
from tests.allocations import Allocations


def clip(frames=4, height=12, width=20, seed=0):
    return torch.rand((frames, 3, height, width), generator=torch.Generator().manual_seed(seed))


def test_overlay_is_the_blend_of_its_definition():
    frames, masks = clip(), torch.rand((4, 1, 12, 20), generator=torch.Generator().manual_seed(1))
    masks[:, :, :, 10:] = 0
    got = overlay(frames, masks, colour=(0.1, 0.5, 0.9), opacity=0.6, outline=0)
    alpha, paint = 0.6 * masks, torch.tensor([0.1, 0.5, 0.9])[:, None, None]
    assert torch.allclose(got, (1 - alpha) * frames + alpha * paint, atol=1e-6)
    assert torch.equal(got[..., 10:], frames[..., 10:])


def test_outline_runs_just_outside_the_mask():
    frames, masks = torch.zeros(1, 3, 9, 9), torch.zeros(1, 1, 9, 9)
    masks[0, 0, 4, 4] = 1
    got = overlay(frames, masks, colour=(1, 1, 1), opacity=0.0, outline=1)
    cross = torch.tensor([[3, 4], [5, 4], [4, 3], [4, 5]])
    expected = torch.zeros(9, 9)
    expected[cross[:, 0], cross[:, 1]] = 1
    assert torch.equal(got[0, 0], expected)


def test_side_by_side_and_stacked_hold_both_clips():
    first, second = clip(), clip(seed=1)
    beside, above = compare(first, second), compare(first, second, "stacked")
    assert torch.equal(beside[..., :20], first) and torch.equal(beside[..., 20 + GAP :], second)
    assert torch.equal(above[:, :, :12], first) and torch.equal(above[:, :, 12 + GAP :], second)


@pytest.mark.parametrize("wipe", [0.0, 0.25, 0.5, 1.0])
def test_wipe_divides_at_the_line(wipe):
    first, second = clip(), clip(seed=1)
    edge = round(20 * wipe)
    got = compare(first, second, "wipe", wipe=wipe)
    # a line of two pixels stands on the border
    assert torch.equal(got[..., : max(edge - 1, 0)], first[..., : max(edge - 1, 0)])
    assert torch.equal(got[..., edge + 1 :], second[..., edge + 1 :])
    assert (got[..., max(edge - 1, 0) : edge + 1] == 1).all()


def test_sweep_crosses_the_whole_picture_and_returns():
    shown = compare(torch.full((16, 3, 8, 40), 0.25), torch.full((16, 3, 8, 40), 0.75), "sweep")
    edges = [int((frame[0, 0] == 0.25).sum()) for frame in shown]
    assert edges[0] == max(edges) >= 39 and edges[8] == min(edges) == 0
    assert edges[:9] == sorted(edges[:9], reverse=True) and edges[8:] == sorted(edges[8:])


def test_difference_is_amplified_and_clamped():
    first, second = clip(), clip(seed=1)
    got = compare(first, second, "difference", gain=3, labels=("a", "b"))
    assert torch.allclose(got, ((first - second).abs() * 3).clamp(max=1))


def test_labels_change_only_their_corner():
    first, second = torch.full((2, 3, 240, 320), 0.5), torch.full((2, 3, 240, 320), 0.5)
    got = compare(first, second, labels=("before", ""))
    changed = (got[0, :, :, :320] != 0.5).any(0).nonzero()
    assert len(changed) and changed[:, 0].max() < 40 and changed[:, 1].max() < 120
    assert (got[:, :, :, 320 + GAP :] == 0.5).all()
    assert got[0, :, :40, :120].max() > 0.95  # the ink
    right = compare(first, second, "wipe", labels=("", "after"))
    changed = (right[0, :, :, 170:] != 0.5).any(0).nonzero()
    assert len(changed) and changed[:, 1].max() == 149


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(37, 53), (1, 1), (2, 3), (12, 20)])
def test_sizes_are_even(mode, size):
    shown = compare(clip(1, *size), clip(1, *size, seed=1), mode, labels=("before", "a rather long label"))
    assert shown.shape[2] % 2 == 0 and shown.shape[3] % 2 == 0
    assert 0 <= shown.min() and shown.max() <= 1


def test_a_still_is_held_and_another_size_is_resized():
    first, second = clip(4), clip(1, 24, 40, seed=1)
    got = compare(first, second)
    assert got.shape == (4, 3, 12, 40 + GAP) and torch.equal(got[0, ..., -20:], got[3, ..., -20:])


def test_what_cannot_be_compared_is_an_error():
    with pytest.raises(ClipError, match="4 and 3 frames"):
        compare(clip(4), clip(3))
    with pytest.raises(ClipError, match="20x12 and 20x20"):
        compare(clip(), clip(4, 20, 20))
    with pytest.raises(CiriError, match="'slide'; expected one of side by side"):
        compare(clip(), clip(), "slide")


def test_inputs_are_not_changed():
    first, second = clip(), clip(seed=1)
    kept = first.clone(), second.clone()
    for mode in MODES:
        compare(first, second, mode, labels=("a", "b"))
    overlay(first, torch.ones(4, 1, 12, 20))
    assert torch.equal(first, kept[0]) and torch.equal(second, kept[1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("second", [(32, 12, 20), (1, 12, 20), (32, 18, 30)], ids=["clip", "still", "of another size"])
def test_no_clip_is_copied_but_into_the_result_which_is_a_picture_as_it_is(mode, second):
    images = torch.rand(32, 12, 20, 3), torch.rand(*second, 3)
    frame = 4 * images[0][0].numel()
    # a few frames at a time, and not as many as half a clip
    with Allocations(at_least=16 * frame) as taken:
        shown = compare(images[0].movedim(-1, 1), images[1].movedim(-1, 1), mode, labels=("a", "b"))
    assert taken.found == [4 * shown.numel()]
    assert shown.movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("mode", ["side by side", "stacked"])
def test_both_with_labels_are_the_parts_put_together(mode):
    first, second = clip(3, 90, 160), clip(3, 90, 160, seed=1)
    axis = 3 if mode == "side by side" else 2
    alone = [compare(x, x, "stacked", labels=(name, ""))[:, :, :90] for x, name in ((first, "one"), (second, "two"))]
    gap = torch.ones(3, 3, *((90, GAP) if axis == 3 else (GAP, 160)))
    assert torch.equal(compare(first, second, mode, labels=("one", "two")), torch.cat([alone[0], gap, alone[1]], axis))


def test_a_clip_of_another_size_is_resized_as_a_whole_clip_is():
    first, second = clip(4), clip(4, 24, 40, seed=1)
    whole = F.interpolate(second, (12, 20), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
    assert torch.equal(compare(first, second, "stacked"), compare(first, whole, "stacked"))


@pytest.mark.parametrize("show", [overlay, compare])
def test_it_can_be_stopped_after_every_frame(show):
    clip = torch.rand(3, 3, 8, 10)
    other = clip if show is compare else clip[:, :1]
    seen = []
    show(clip, other, on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        show(clip, other, on_step=stop)
