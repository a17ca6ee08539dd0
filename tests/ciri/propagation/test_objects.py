"""Several objects: each is followed by itself, and what is joined is theirs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ciri.errors import MaskError
from ciri.propagation.base import MaskTrack
from ciri.propagation.engine import MemoryPropagator, ObjectTracks
from ciri.propagation.lite import LiteNetwork, build_lite
from ciri.propagation.objects import MOST_OBJECTS, check_objects, follow, grouped
from tests.ciri.refinement.scenes import noise


class Hold:
    """Holds the first mask it is given; as sure as that mask is large."""

    name = "hold"

    def __init__(self):
        self.asked = []

    def propagate(self, frames, key_masks, key_frames, *, on_step):
        assert len(set(key_frames)) == len(key_frames) == len(key_masks)
        self.asked.append((key_masks, list(key_frames)))
        on_step(1, 1)
        sure = key_masks[0].mean().expand(len(frames))
        return MaskTrack(key_masks[:1].expand(len(frames), -1, -1, -1), sure, ["held"])

    def parameters_to_refine(self):
        return []


def boxes(*lefts):
    masks = torch.zeros(len(lefts), 1, 8, 16)
    for mask, left in zip(masks, lefts, strict=True):
        mask[:, 2:6, left : left + 4] = 1
    return masks


FRAMES = torch.zeros(5, 3, 8, 16)


def test_one_object_is_the_propagators_own_answer():
    hold, masks = Hold(), boxes(0, 4)
    track = follow(hold, FRAMES, masks, [3, 1])
    assert [numbers for _, numbers in hold.asked] == [[3, 1]]
    assert torch.equal(track.probs, hold.propagate(FRAMES, masks, [3, 1], on_step=lambda *_: None).probs)
    assert track.notes == ["held"] and track.kept is None


def test_of_several_objects_each_is_followed_with_its_own_corrections_and_all_are_shown():
    hold, masks = Hold(), boxes(0, 8, 2)
    masks[1, :, 0] = 0.5
    track = follow(hold, FRAMES, masks, [0, 0, 4])
    assert [numbers for _, numbers in hold.asked] == [[0, 4], [0]]
    assert torch.equal(hold.asked[0][0], masks[[0, 2]]) and torch.equal(hold.asked[1][0], masks[[1]])
    assert torch.equal(track.probs, masks[:2].amax(0, keepdim=True).expand_as(track.probs))
    torch.testing.assert_close(track.confidence, torch.full((5,), float(masks[0].mean())))
    assert "2 objects" in track.notes[0] and track.notes[1:] == ["Object 1: held", "Object 2: held"]


def test_progress_runs_once_over_all_objects():
    steps = []
    follow(Hold(), FRAMES, boxes(0, 4, 8), [0, 0, 0], on_step=lambda done, total: steps.append(done / total))
    assert steps == pytest.approx([1 / 3, 2 / 3, 1], abs=0.01)


def test_what_is_to_stay_claims_what_is_more_likely_its_own():
    masks, keep = 0.6 * boxes(2), 0.9 * boxes(5)
    masks[:, :, :, :4] /= 0.6
    masks[0, 0, 3, 5] = 0.3
    hold = Hold()
    track = follow(hold, FRAMES, masks, [1], keep=keep)
    assert [numbers for _, numbers in hold.asked] == [[1], [1]]
    assert torch.equal(track.probs[1], masks[0]), "what was painted stays"
    # columns 2 to 5 were painted, and 5 to 8 are to stay: where both are, the more likely one has it
    expected = masks[0].clone()
    expected[:, 3, 5] = 0
    assert torch.equal(track.probs[0], expected)
    # and what stays is shown where it won, but never within what was painted
    kept = (keep[0] * (masks[0] <= 0.5)).expand(5, -1, -1, -1).clone()
    kept[1, :, 3, 5] = 0
    assert torch.equal(track.kept, kept)
    assert torch.equal(hold.asked[1][0][0, 0] > 0.5, (keep[0, 0] > 0.5) & ~(masks[0, 0] > 0.5))


def test_a_memory_follows_what_goes_and_what_stays_together():
    class Records(MemoryPropagator):
        def propagate_objects(self, frames, annotations, *, spared=(), on_step):
            self.asked.append(annotations)
            probs = torch.stack([torch.full((8, 16), 0.1 * (1 + o)) for o in range(3)])
            on_step(1, 1)
            notes = ["New shots seem to begin at frames 3.", "Object 0 is gone in frames 4.", "Object 1 is gone too."]
            return ObjectTracks(probs.expand(5, -1, -1, -1), torch.tensor([0.9, 0.2, 0.1]).expand(5, -1), notes)

    records = Records(LiteNetwork())
    records.asked, goes, stays = [], boxes(0, 1, 12), boxes(4, 9)
    track = follow(records, FRAMES, goes[:2], [2, 4], keep=stays)
    assert [(a.frame, a.object) for a in records.asked[0]] == [(2, 0), (4, 0), (2, 1), (2, 2)]
    for annotation, mask in zip(records.asked[0], torch.cat([goes[:2], stays]), strict=True):
        assert torch.equal(annotation.mask, mask)
    assert torch.equal(track.probs[[2, 4]], goes[:2]), "what was painted stays"
    # 0.1 for the target, 0.5 for two that stay, 0.4 for the background: they count half against it
    assert torch.allclose(track.probs[[0, 1, 3]], torch.full((3, 1, 8, 16), 0.1 / (0.1 + 0.5 / 2 + 0.4)))
    assert torch.allclose(track.kept[[0, 1, 3]], torch.full((3, 1, 8, 16), 0.3))
    assert torch.equal(track.kept[2], 0.3 * (1 - goes[0]))
    assert torch.equal(track.confidence, torch.full((5,), 0.9))
    assert track.notes == ["New shots seem to begin at frames 3.", "The target is gone in frames 4."]
    # every further object has to hold its own against what stays
    follow(records, FRAMES, goes[[0, 2]], [2, 2], keep=stays)
    assert [[(a.frame, a.object) for a in asked] for asked in records.asked[1:]] == 2 * [[(2, 0), (2, 1), (2, 2)]]


@pytest.mark.parametrize(("target", "other", "goes"), [(0.38, 0.6, True), (0.2, 0.7, False), (0.45, 0.0, False)])
def test_what_stays_takes_a_pixel_only_where_it_is_clearly_its_own(target, other, goes):
    class Unsure(MemoryPropagator):
        def propagate_objects(self, frames, annotations, *, spared=(), on_step):
            probs = torch.tensor([target, other])[:, None, None].expand(5, -1, 8, 16)
            return ObjectTracks(probs, torch.ones(5, 2), [])

    track = follow(Unsure(LiteNetwork()), FRAMES, boxes(0), [2], keep=boxes(9))
    assert bool((track.probs[0] > 0.5).all()) == goes
    # what attention is told to leave alone is never in the mask
    assert not ((track.probs > 0.5) & (track.kept > 0.5)).any()
    assert bool((track.kept[0] > 0.5).all()) == (other > 0.5 and not goes)


@pytest.mark.parametrize(("left", "size", "words"), [(5, 0, "is empty"), (4, 1, "lies within what is to be removed")])
def test_nothing_to_keep_is_refused(left, size, words):
    with pytest.raises(MaskError, match=words):
        follow(Hold(), FRAMES, boxes(4), [0], keep=size * boxes(left))


def test_a_twin_that_comes_out_from_behind_is_not_taken_along():
    generator = torch.Generator().manual_seed(3)
    background = noise(generator, 3, 96, 160, 8) * torch.tensor([0.3, 0.6, 1.0])[:, None, None]
    coat = 0.4 + 0.6 * noise(generator, 3, 48, 30, 5) * torch.tensor([1.0, 0.3, 0.2])[:, None, None]
    frames, true, twin = background.expand(10, -1, -1, -1).clone(), torch.zeros(10, 1, 96, 160), torch.zeros(1, 96, 160)
    for t in range(10):
        for x, mask in ((62 + 5 * t, twin if t == 0 else torch.zeros(1, 96, 160)), (40, true[t])):
            frames[t, :, 24:72, x : x + 30] = coat
            mask[:, 24:72, x : x + 30] = 1
    propagator = build_lite(precision="fp32")

    def leak(**options):
        masks = follow(propagator, frames, true[:1], [0], **options).probs > 0.5
        missed = (true.bool() & ~masks).sum() / true.sum()
        return float((masks & ~true.bool()).sum() / true.sum()), float(missed)

    alone, apart = leak(), leak(keep=twin[None])
    assert alone[0] > 0.1 and apart[0] < 0.6 * alone[0] and apart[1] < 0.1


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_groups_take_every_mask_once_and_no_object_has_a_frame_twice(numbers):
    objects = grouped(numbers)
    assert sorted(i for own in objects for i in own) == list(range(len(numbers)))
    for own in objects:
        assert len({numbers[i] for i in own}) == len(own)
    assert len(objects) == max(numbers.count(number) for number in numbers)


@pytest.mark.parametrize(
    ("numbers", "objects", "words"),
    [
        ([0, 3, 3], 1, "Frame 3 has 2 masks; each frame can be annotated once only"),
        ([0, 0, 0], 2, "once for each of the 2 objects"),
        ([0] * (MOST_OBJECTS + 1), MOST_OBJECTS + 1, f"at most {MOST_OBJECTS}.*Inactivation inpaint"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(numbers, objects, words):
    with pytest.raises(MaskError, match=words):
        check_objects(numbers, objects)
    check_objects([0, 0, 7, 7, 3], 2)
