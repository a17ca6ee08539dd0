"""What refinement goes by: where masks may grow, what has to come of it, and what is shown of it."""

import numpy as np
import pytest
import torch

from ciri.errors import OutOfMemoryError
from ciri.frames import grow_mask
from ciri.inpainting.remove import remove, soft_edges
from ciri.refinement import acceptance, growth
from ciri.refinement.looks import Looks
from ciri.refinement.product import repaint, shown_under, spans
from ciri.refinement.report import FrameReport, RefinementReport, area_ratios
from ciri.refinement.settings import RefinementSettings
from ciri.refinement.watch import LEAST_THRESHOLD, suspects, threshold_of
from ciri.residue.base import Box
from ciri.residue.crops import target_box
from ciri.residue.detect import Residue, in_batches
from tests.allocations import Allocations
from tests.ciri.refinement.scenes import HEIGHT, WIDTH, Knows, Oracle, Scene

SETTINGS = RefinementSettings(grow=2, feather=2)


def box_of(mask):
    return target_box(mask)


def grow(scene, masks, response, t=2, most=1e9, threshold=0.3):
    everywhere = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    looks = Looks(scene.frames[0], scene.true[0]).score(scene.frames[t], masks[t], everywhere)
    hidden = growth.shown_by(masks[t : t + 1], 2)[0]
    return growth.grow_over_residue(
        scene.frames[t], masks[t], response, hidden, looks, box_of(scene.true[t]), threshold=threshold, most_area=most
    )


def test_a_mask_grows_over_what_was_missed_to_the_pictures_edge():
    scene = Scene()
    masks = scene.cut()
    # the answer of a blurred detector: five pixels wider than the missed part
    response = 0.9 * grow_mask((scene.true[2:3] - masks[2:3]).clamp(min=0), 5)[0]
    result = grow(scene, masks, response)
    added = (result.mask > 0.5) & (masks[2] <= 0.5)
    missed = (scene.true[2] - masks[2]) > 0
    assert result.reason == "" and (added & missed).sum() > 0.9 * missed.sum()
    assert (added & ~missed).sum() < 0.1 * missed.sum()
    assert (result.mask >= masks[2]).all()


def test_what_does_not_look_like_the_target_is_left_alone():
    scene = Scene()
    response = torch.zeros(1, HEIGHT, WIDTH)
    response[:, 20:40, 60:75] = 0.9
    result = grow(scene, scene.true, response)
    assert result.mask is scene.true[2] or torch.equal(result.mask, scene.true[2])
    assert result.reason


def test_what_is_not_connected_is_left_alone():
    scene = Scene()
    scene.frames[2, :, 4:14, 2:12] = scene.frames[2, :, 20:30, 32:42]
    response = torch.zeros(1, HEIGHT, WIDTH)
    response[:, 4:14, 2:12] = 0.9
    assert "not connected" in grow(scene, scene.true, response).reason


def test_a_mask_never_covers_more_than_it_may():
    scene = Scene()
    masks = scene.cut()
    response = 0.9 * grow_mask((scene.true[2:3] - masks[2:3]).clamp(min=0), 5)[0]
    for most in (700, 650, 630):
        covered = int((grow(scene, masks, response, most=most).mask > 0.5).sum())
        assert 630 <= covered <= most


@pytest.mark.parametrize(("reach", "found"), [(2, False), (8, True)])
def test_parts_connect_within_reach_by_brute_force(reach, found):
    mask, part = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    mask[10:20, 5:10], part[10:20, 15:20] = True, True
    assert growth.touching(part, mask, reach).any() == found
    if found:
        assert (growth.touching(part, mask, reach) == part).all()


def test_the_usual_area_and_its_bound():
    masks = torch.zeros(4, 1, 20, 20)
    masks[0, :, :10, :10], masks[1, :, :10, :10], masks[2, :, :5, :10] = 1, 1, 1
    assert growth.usual_area(masks, masks[0]) == 100
    box = Box(0, 0, 10, 10)
    assert growth.most_area(100, 100, box) == pytest.approx(137)
    assert growth.most_area(60, 100, box) == pytest.approx(137)
    assert growth.most_area(10, 100, box) == pytest.approx(20 * 1.35 + 2)
    assert growth.most_area(100, 100, box, 0.5) < growth.most_area(100, 100, box)


def square(left=10, top=10, side=20):
    mask = torch.zeros(1, 48, 64)
    mask[:, top : top + side, left : left + side] = 1
    return mask


def test_masks_with_a_fault_are_refused():
    old, box = square(), Box(10, 10, 20, 20)
    larger = torch.maximum(old, square(left=14))
    assert acceptance.mask_fault(larger, old, box, 600) == ""
    assert "too far" in acceptance.mask_fault(larger, old, box, 450)
    assert "lose" in acceptance.mask_fault(square(left=16), old, box, 600)
    apart = old.clone()
    apart[:, 20:24, 50:54] = 1
    assert "not connected" in acceptance.mask_fault(apart, old, box, 600)
    assert "empty" in acceptance.mask_fault(0 * old, old, box, 600)
    assert "empty" in acceptance.mask_fault(old, 0 * old, box, 600)
    assert acceptance.mask_fault(old, 0 * old, box, 600, bridged=True) == ""
    assert acceptance.mask_fault(apart, old, box, 600, bridged=True) == ""


def test_parts_that_were_painted_in_vain_are_taken_back():
    old = square()
    new, before, after = (old.clone() for _ in range(3))
    new[:, 12:18, 30:36] = 1  # helps
    new[:, 24:30, 30:36] = 1  # does not
    before[:] = after[:] = 0
    before[:, 12:18, 30:36] = before[:, 24:30, 30:36] = 0.9
    after[:, 24:30, 30:36] = 0.9
    kept = acceptance.useful_growth(new, old, before, after, 0.3)
    assert (kept[:, 12:18, 30:36] == 1).all() and (kept[:, 24:30, 30:36] == 0).all()
    assert torch.equal(kept[:, 10:30, 10:30], old[:, 10:30, 10:30])


def test_a_score_has_to_fall_by_a_share_and_by_an_amount():
    assert acceptance.falls_enough(0.1, 0.05, 0.3)
    assert not acceptance.falls_enough(0.1, 0.09, 0.3)
    assert not acceptance.falls_enough(0.004, 0.0, 0.3)


def test_spans_cover_the_changed_frames_and_their_neighbours_once():
    for changed, count, reach in (([3], 10, 2), ([0, 9], 10, 2), ([2, 5, 20], 30, 4), (range(12), 12, 3)):
        got = [t for stretch in spans(list(changed), count, reach) for t in stretch]
        wanted = [t for t in range(count) if any(abs(t - c) <= reach for c in changed)]
        assert got == wanted


def test_a_picture_is_shown_only_under_the_narrow_mask():
    scene = Scene()
    wide, narrow = scene.true, scene.cut()
    painted = remove(scene.frames, wide, Knows(scene), grow=2, feather=2)
    _, alpha = soft_edges(narrow, 2, 2)
    every = range(len(wide))
    got = shown_under(scene.frames, painted, wide, narrow, every, SETTINGS)
    nowhere, whole = (a.expand_as(got) for a in (alpha == 0, alpha == 1))
    assert torch.equal(got[nowhere], scene.frames[nowhere]) and torch.equal(got[whole], painted[whole])
    low, high = torch.minimum(scene.frames, painted) - 1e-6, torch.maximum(scene.frames, painted) + 1e-6
    assert ((got >= low) & (got <= high)).all()
    assert torch.equal(shown_under(scene.frames, painted, wide, wide, every, SETTINGS), painted)
    assert torch.equal(shown_under(scene.frames, painted, wide, narrow, [3, 1], SETTINGS), got[[3, 1]])


def test_showing_pictures_takes_no_memory_but_theirs():
    frames, masks = torch.rand(32, 3, 24, 32), torch.zeros(32, 1, 24, 32)
    masks[:, :, 8:16, 8:16] = 1
    painted = frames.clone()
    painted[:, :, 4:20, 4:20] = 0
    wide = grow_mask(masks, 2)
    with Allocations(at_least=frames.nbytes // 4) as taken:
        shown = shown_under(frames, painted, wide, masks, range(32), SETTINGS)
    assert taken.found == [shown.nbytes]


def test_only_stretches_around_changed_frames_are_painted_again():
    scene = Scene()
    given = scene.removal(scene.cut())
    backbone = Knows(scene)
    steps = []
    again = repaint(
        scene.frames, scene.true, given, [2, 3], backbone, SETTINGS, lambda done, total: steps.append(done / total)
    )
    assert backbone.calls == 1 and steps == sorted(steps) and steps[-1] == 1
    assert torch.allclose(again, scene.clean, atol=1e-6)


def test_suspicious_are_clear_frames_and_faint_pairs():
    scores = torch.tensor([0.0, 0.14, 0.0, 0.08, 0.0, 0.08, 0.08, 0.0])
    assert suspects(Residue(torch.zeros(0), scores, [])) == [1, 5, 6]
    # what is faint everywhere is nothing, unless it is less faint in two frames running
    assert suspects(Residue(torch.zeros(0), scores.clamp(max=0.08), [])) == []
    assert suspects(Residue(torch.zeros(0), torch.tensor([0.07, 0.07, 0.0, 0.1, 0.1]), [])) == [0, 1, 3, 4]
    # a detector that counts from 0.5 on gives half as much for the same residue
    assert suspects(Residue(torch.zeros(0), scores / 2, []), 0.5) == [1, 5, 6]
    # and a thin target, a quarter of its box, leaves no more than a quarter of a box
    assert suspects(Residue(torch.zeros(0), scores / 4, []), share=0.25) == [1, 5, 6]


@pytest.mark.parametrize(
    "shortage", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory"), MemoryError()]
)
def test_batches_shrink_until_they_fit(shortage):
    done, most = [], [3]

    def work(part):
        if part.stop - part.start > most[0]:
            raise shortage
        done.extend(range(10)[part])

    in_batches(10, work)
    assert done == list(range(10))
    most[0] = 0
    with pytest.raises(OutOfMemoryError, match="smaller frames"):
        in_batches(10, work)


def test_batches_do_not_shrink_for_another_error():
    def work(part):
        raise RuntimeError(f"shapes of {part} do not match")

    with pytest.raises(RuntimeError, match="do not match"):
        in_batches(10, work)


def test_areas_are_compared_where_there_are_any():
    old = torch.zeros(4, 1, 2, 3)
    old[2:, :, 0] = 1
    new = old.clone()
    new[1, 0, 0, 0] = new[2, 0, 1, 0] = 1
    assert area_ratios(new, old) == pytest.approx([1, float("inf"), 4 / 3, 1])


def test_the_report_counts_and_explains():
    frames = [
        FrameReport(3, 0.1, 0.02, 1.2, True),
        FrameReport(7, 0.05, 0.05, 1.0, False, "the mask is empty"),
        FrameReport(8, 0.05, 0.05, 1.0, False, "the mask is empty"),
    ]
    report = RefinementReport(frames, "One mask.", "mask", 2, [2, 3], {"judging": 1.5, "masks": 0.5}, 2**30)
    text = report.text()
    assert report.accepted == [3] and report.total_seconds == 2
    for words in ("One mask.", "0.200 -> 0.120", "x 1.20", "2: the mask is empty (frames 7-8)", "1024 MiB", "2.0 ("):
        assert words in text


def test_what_answers_beside_a_true_mask_raises_the_threshold():
    maps = torch.zeros(2, 1, HEIGHT, WIDTH)
    hidden = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    hidden[:, 16:46, 20:50] = True
    residue = Residue(maps, torch.zeros(2), [Box(20, 16, 30, 30)] * 2)
    detector = Oracle(Scene())
    detector.threshold = 0.5
    maps[0, 0, 20:40, 25:45] = 0.99  # under the fill
    assert threshold_of(detector, residue, 0, hidden) == detector.threshold
    maps[0, 0, 50, 60:64] = 0.8  # four pixels are chance
    assert threshold_of(detector, residue, 0, hidden) == detector.threshold
    maps[0, 0, 50:55, 60:64] = 0.8
    assert threshold_of(detector, residue, 0, hidden) == pytest.approx(0.8)
    assert threshold_of(detector, residue, 1, hidden) == detector.threshold
    # a faint response is shown, but moves no mask
    detector.threshold = 0.1
    assert threshold_of(detector, residue, 1, hidden) == LEAST_THRESHOLD
