"""Several objects: each is followed by itself, and what is joined is theirs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ciri.errors import MaskError
from ciri.propagation.base import MaskTrack
from ciri.propagation.objects import MOST_OBJECTS, check_objects, follow, grouped


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
    assert track.notes == ["held"]


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
