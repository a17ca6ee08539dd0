"""Masks that lose a part, or everything, for a few frames, and get it back from the frames around them."""

from math import inf

import pytest
import torch

from ciri.metrics.segmentation import segmentation_score
from ciri.progress import ignore
from ciri.propagation.flow import FlowPropagator
from ciri.refinement.bridging import bridge, bridged_masks
from ciri.refinement.dropouts import dropouts
from ciri.refinement.refine import refine
from ciri.refinement.settings import RefinementSettings
from tests.ciri.refinement.scenes import Answers, Knows, Oracle, Scene, numbers

LENGTH = 12


class Blind(Oracle):
    """Sees nothing, ever."""

    def detect(self, template, frames, boxes, removal=None):
        return torch.full((len(frames), 1, 60, 60), -6.0) + 0 * frames.mean()


def scene(**options):
    return Scene(count=LENGTH, **options)


def test_frames_are_asked_about_once_and_with_masks_from_both_sides():
    clip = scene()

    def asked(*missing):
        answers = Answers(clip, clip.true)
        found = bridge(clip.frames, clip.cut(at=missing), set(missing), answers, ignore)
        assert set(found) == (set(missing) if answers.asked else set())
        return answers.asked

    assert asked(2, 9) == [([1, 2, 3], [1, 3]), ([8, 9, 10], [8, 10])]
    assert asked(2, 4, 5) == [([1, 2, 3, 4, 5, 6], [1, 3, 6])]
    assert asked(0, 11) == [([0, 1], [1]), ([10, 11], [10])]
    assert asked(*range(LENGTH)) == []


def test_nothing_is_carried_from_one_shot_into_another():
    clip = scene()
    frames, masks = clip.frames.clone(), clip.true.clone()
    # what was filmed in between shows other things, and nothing of the target
    frames[4:7] = Scene(seed=7).clean[0].flip(0, 1)
    masks[4:7] = 0
    answers = Answers(clip, clip.true)
    assert bridge(frames, masks, {4, 5, 6}, answers, ignore) == {} and answers.asked == []
    masks[8] = 0
    assert set(bridge(frames, masks, {4, 5, 6, 8}, answers, ignore)) == {8} and answers.asked == [([7, 8, 9], [7, 9])]


def test_of_a_long_run_the_frame_that_lacks_most_is_asked_about_first():
    clip = scene()
    given = clip.cut(at=(3, 4, 5))
    given[4, :, :, 52:] = 0
    one, all_of_them = ([2, 4, 6], [2, 6]), ([2, 3, 4, 5, 6], [2, 6])
    vain = Answers(clip, given)
    assert bridge(clip.frames, given, {3, 4, 5}, vain, ignore) == {} and vain.asked == [one]
    found = Answers(clip, clip.true)
    assert set(bridge(clip.frames, given, {3, 4, 5}, found, ignore)) == {3, 4, 5} and found.asked == [one, all_of_them]


def test_masks_are_carried_through_their_neighbourhood_and_come_back_in_place():
    clip = scene()
    answers = Answers(clip, clip.true)
    found = bridge(clip.frames, clip.cut(at=(9,)), {9}, answers, ignore)
    # the target of frame 8 begins at column 52
    assert answers.parts == [(slice(0, 64), slice(52 - 24, 96))]
    assert torch.equal(found[9], clip.true[9])


@pytest.mark.parametrize(("confidence", "trusted"), [(0.4, False), (0.6, True)])
def test_a_propagator_that_is_not_confident_bridges_nothing(confidence, trusted):
    clip = scene()
    answers = Answers(clip, clip.true)
    answers.confidence = confidence
    assert bool(bridge(clip.frames, clip.cut(at=(5,)), {5}, answers, ignore)) == trusted


def test_masks_that_cover_everything_are_nothing_to_carry():
    clip = scene()
    given = torch.ones_like(clip.true)
    given[5] = clip.true[5]
    assert dropouts(given) == [5]
    masks, said = bridged_masks(clip.frames, given, FlowPropagator())
    assert torch.equal(masks, given) and said == []


def test_only_what_is_more_than_a_rim_and_belongs_to_the_target_is_added():
    clip = scene()
    given = clip.cut(at=(4, 5, 6, 7))
    answer = clip.true.clone()
    answer[4, :, 50:60, 85:95] = 1  # something else, far off
    answer[5] = given[5]
    answer[5, :, 15:16] = given[5, :, 16:17]  # a rim
    answer[6] = 1  # everything
    answer[7, :, 16:46, 48 + 6 :] *= 0.8  # not for certain
    found = bridge(clip.frames, given, {4, 5, 6, 7}, Answers(clip, answer), ignore)
    assert set(found) == {4, 7}
    assert torch.equal(found[4] > 0.5, clip.true[4] > 0.5)
    assert torch.equal(torch.maximum(given[7], answer[7]), found[7])
    for t, mask in found.items():
        assert (mask >= given[t]).all() and mask.max() <= 1


def test_a_part_that_is_not_connected_comes_back_where_it_was_before():
    clip = scene()
    whole = clip.true.clone()
    for t in range(LENGTH):
        whole[t, :, 4:16, 4 + t : 16 + t] = 1
    given = whole.clone()
    given[5] = clip.true[5]
    assert dropouts(given) == [5]
    assert torch.equal(bridge(clip.frames, given, {5}, Answers(clip, whole), ignore)[5], whole[5])


def removed(clip, masks, propagator, detector=None, **options):
    return refine(
        clip.frames,
        clip.true[0],
        masks,
        clip.removal(masks),
        backbone=Knows(clip),
        detector=detector or Blind(clip),
        propagator=propagator,
        settings=RefinementSettings(grow=2, feather=2, **options),
    )


@pytest.mark.parametrize("columns", [9, 30])
def test_what_no_detector_sees_is_bridged(columns):
    clip = scene()
    masks = clip.cut(at=(4, 5), columns=columns)
    given = clip.removal(masks)
    result = removed(clip, masks, FlowPropagator())
    assert result.report.accepted == [4, 5]
    assert segmentation_score(masks, clip.true).region[[4, 5]].max() < 0.71
    assert segmentation_score(result.masks, clip.true).region[[4, 5]].min() > 0.9
    others = [t for t in range(LENGTH) if t not in (4, 5)]
    assert torch.equal(result.masks[others], masks[others])
    before, after = ((x - clip.clean).square().mean((1, 2, 3))[[4, 5]] for x in (given, result.inpainted))
    assert (after < 0.2 * before).all()
    assert "dropped out in frames 4-5: flow bridged" in result.report.text()
    # of a mask that was not there nobody can say how many times as large it is
    ratios = [frame.area_ratio for frame in result.report.frames]
    assert ratios == ([inf, inf] if columns == 30 else pytest.approx([30 / 21] * 2, rel=0.05))
    assert ("was empty" in result.report.text()) == (columns == 30)


def test_what_was_bridged_in_vain_is_not_told(monkeypatch):
    from ciri.refinement import refine as refining
    from ciri.refinement.clock import TimeUpError

    def late(*args):
        raise TimeUpError

    clip = scene()
    masks = clip.cut(at=(4, 5))
    monkeypatch.setattr(refining, "repaint", late)
    result = removed(clip, masks, FlowPropagator(), time_budget=600)
    assert result.masks is masks
    assert "budget" in result.report.text() and "bridged" not in result.report.text()


def test_a_detector_may_object():
    clip = scene()
    masks = clip.cut(at=(4, 5))

    class Objects(Blind):
        """Calls suspicious whatever is painted at the right of the target."""

        def detect(self, template, frames, boxes, removal=None):
            logits = super().detect(template, frames, boxes, removal)
            for i, (t, frame) in enumerate(zip(numbers(frames), frames, strict=True)):
                if t == 4 and (frame - clip.frames[t])[:, 16:46, 60:64].abs().mean() > 0.1:
                    logits[i] = 6.0
            return logits

    result = removed(clip, masks, FlowPropagator(), Objects(clip))
    assert result.report.accepted == [5]
    assert torch.equal(result.masks[4], masks[4])
    assert "Not changed, 1: the finished picture looks suspicious to the detector (frames 4)" in result.report.text()


def test_without_a_propagator_it_is_only_said():
    clip = scene()
    masks = clip.cut(at=(4, 5))
    result = removed(clip, masks, None)
    assert result.masks is masks
    assert "drop out in frames 4-5: with a propagator" in result.report.text()


def test_a_true_mask_that_is_smaller_is_not_touched():
    # the target hides behind a wall of the background's colours in two frames
    clip = scene()
    for t in (5, 6):
        clip.frames[t, :, :, 52:] = clip.clean[t, :, :, 52:]
        clip.true[t, :, :, 52:] = 0
    assert dropouts(clip.true) == [5, 6]
    result = removed(clip, clip.true, FlowPropagator())
    assert result.masks is clip.true


def test_a_person_s_mask_stays():
    clip = scene()
    masks = clip.cut(at=(3, 8))
    result = refine(
        clip.frames,
        clip.true[0],
        masks,
        clip.removal(masks),
        backbone=Knows(clip),
        detector=Blind(clip),
        propagator=FlowPropagator(),
        settings=RefinementSettings(grow=2, feather=2),
        fixed=[3],
    )
    assert result.report.accepted == [8] and torch.equal(result.masks[3], masks[3])
