"""ciri.pipeline with stages whose answer is known."""

import pytest
import torch

from ciri import pipeline
from ciri.errors import CiriError, ClipError, MaskError
from ciri.frames import grow_mask
from ciri.inactivation.learned import inactivation_map, shipped
from ciri.inpainting.base import BackboneFacts
from ciri.pipeline import given_masks, propagate, remove_object
from ciri.propagation.base import MaskTrack

COUNT, HEIGHT, WIDTH = 5, 40, 56


class Shifts:
    """A propagator that moves each key mask by one pixel a frame to the right, and loses it after ``until``."""

    name = "shifts"

    def __init__(self, until=COUNT):
        self.until, self.calls = until, []

    def propagate(self, frames, key_masks, key_frames, *, on_step=None):
        self.calls.append((key_masks.clone(), list(key_frames)))
        probs = torch.zeros(len(frames), 1, *frames.shape[2:])
        confidence = torch.zeros(len(frames))
        for t in range(min(len(frames), self.until)):
            probs[t] = torch.roll(key_masks[0], t - key_frames[0], -1)
            confidence[t] = 1
            on_step(t + 1, len(frames))
        on_step(len(frames), len(frames))
        return MaskTrack(probs, confidence)

    def parameters_to_refine(self):
        return []


class Paints:
    """A backbone that paints everything in one colour."""

    name, facts = "paints", BackboneFacts()

    def inpaint(self, frames, inactivation, *, on_step=None):
        for step in range(3):
            on_step(step + 1, 3)
        return torch.full_like(frames, 0.25)


def clip(channels=3):
    return torch.rand(COUNT, channels, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))


def painted():
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[10:20, 8:18] = 1
    return mask


def test_what_is_to_stay_is_not_taken_by_attention_either(monkeypatch):
    monkeypatch.setattr(pipeline, "inactivation_map", lambda frames, *_, **__: torch.ones_like(frames[:, :1]))
    stays = torch.zeros(HEIGHT, WIDTH)
    stays[10:20, 14:24] = 1
    options = {"propagator": Shifts(), "backbone": Paints(), "attention": object(), "grow": 0, "feather": 0}
    removal = remove_object(clip(), painted(), keep=stays, **options)
    assert torch.equal(removal.frames[0, :, 10:20, 18:24], clip()[0, :, 10:20, 18:24])
    assert (removal.masks.probs[:, :, :8] == 1).all(), "elsewhere attention has its way"
    for t in range(COUNT):
        kept = torch.roll(stays * (1 - painted()), t, -1) > 0
        assert torch.equal(removal.masks.kept[t, 0] > 0.5, kept) and not removal.masks.probs[t, 0][kept].any()


def test_removes_where_the_object_is_and_nowhere_else():
    frames = clip()
    removal = remove_object(frames, painted(), propagator=Shifts(), backbone=Paints(), grow=2, feather=2)
    for t in range(COUNT):
        mask = torch.roll(painted(), t, -1)[None, None]
        assert torch.equal(removal.masks.probs[t : t + 1], mask)
        inside = (mask > 0).expand(1, 3, -1, -1)[0]
        assert torch.equal(removal.frames[t][inside], torch.full_like(removal.frames[t][inside], 0.25))
        far = (grow_mask(mask, 5) == 0).expand(1, 3, -1, -1)[0]
        assert torch.equal(removal.frames[t][far], frames[t][far])
    assert set(removal.timings) == {"propagation", "inpainting", "grain"} and removal.notes == []


@pytest.mark.parametrize("shadows", [True, False])
def test_attention_corrects_the_masks_between_following_and_filling(shadows):
    frames, network = clip(), shipped()
    masks = torch.stack([painted(), torch.roll(painted(), 3, -1)])
    removal = remove_object(
        frames,
        masks,
        key_frames=[0, 3],
        propagator=Shifts(),
        backbone=Paints(),
        attention=network,
        shadows=shadows,
    )
    predicted = torch.stack([torch.roll(painted(), t, -1) for t in range(COUNT)])[:, None]
    expected = inactivation_map(
        frames, masks[:1, None], predicted, network, first_index=0, known=[0, 3], shadow=shadows
    )
    assert torch.equal(removal.masks.probs, expected)
    if not shadows:
        assert torch.allclose(expected[3], predicted[3], atol=1e-6)  # it was painted
    assert set(removal.timings) == {"propagation", "attention", "inpainting", "grain"}
    untouched = (grow_mask(expected, 4 + 3 + 2) == 0).expand(-1, 3, -1, -1)
    assert torch.equal(removal.frames[untouched], frames[untouched])


def test_attention_takes_masks_from_elsewhere_too():
    frames = clip()
    masks = torch.stack([torch.roll(painted(), t, -1) for t in range(COUNT)])
    masks[2] = 0
    removal = remove_object(frames, masks=masks, backbone=Paints(), attention=shipped())
    assert not removal.masks.probs[2].any() and torch.equal(removal.frames[2], frames[2])
    assert (removal.masks.probs[0] > 0.5).any()


def test_the_input_is_not_changed():
    frames, mask = clip(), painted()
    before = frames.clone(), mask.clone()
    remove_object(frames, mask, propagator=Shifts(), backbone=Paints())
    assert torch.equal(frames, before[0]) and torch.equal(mask, before[1])


def test_progress_only_moves_forward_and_ends_at_the_total():
    seen = []
    remove_object(clip(), painted(), propagator=Shifts(), backbone=Paints(), on_step=lambda *step: seen.append(step))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1 and seen[-1][0] == seen[-1][1]


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, COUNT + 2])
def test_a_callback_that_raises_ends_the_work(after):
    steps = []

    def on_step(done, total):
        steps.append(done)
        if len(steps) == after:
            raise Stop

    with pytest.raises(Stop):
        remove_object(clip(), painted(), propagator=Shifts(), backbone=Paints(), on_step=on_step)
    assert len(steps) == after


def test_several_key_masks_and_frames_counted_from_the_end():
    propagator = Shifts()
    track = propagate(clip(), torch.stack([painted(), painted()]), propagator, key_frames=(1, -1))
    masks, numbers = propagator.calls[0]
    assert masks.shape == (2, 1, HEIGHT, WIDTH) and numbers == [1, COUNT - 1]
    assert torch.equal(track.probs[1, 0], painted())


def test_two_masks_of_one_frame_are_two_objects_and_both_go():
    shadow = torch.roll(painted(), 14, 1)
    frames, propagator = clip(), Shifts()
    both = torch.stack([painted(), shadow])
    removal = remove_object(
        frames, both, propagator=propagator, backbone=Paints(), key_frames=(0, 0), grow=0, feather=0
    )
    assert [numbers for _, numbers in propagator.calls] == [[0], [0]]
    changed = (removal.frames != frames).any(1)
    for t in range(COUNT):
        assert torch.equal(changed[t], torch.roll(both.amax(0), t, 1) > 0)


def test_given_masks_need_no_propagator():
    masks = torch.zeros(COUNT, HEIGHT, WIDTH)
    masks[1:3, 5:9, 5:9] = 1
    frames = clip()
    removal = remove_object(frames, masks=masks, backbone=Paints(), grow=0, feather=0)
    assert removal.masks.confidence.tolist() == [0, 1, 1, 0, 0]
    untouched = [0, 3, 4]
    assert torch.equal(removal.frames[untouched], frames[untouched])
    changed = removal.frames != frames
    assert torch.equal(changed.any(1).float(), masks)


def test_a_lost_object_is_told_and_its_frames_are_untouched():
    frames = clip()
    removal = remove_object(frames, painted(), propagator=Shifts(until=3), backbone=Paints())
    assert torch.equal(removal.frames[3:], frames[3:])
    assert len(removal.notes) == 1 and "2 of 5" in removal.notes[0] and "frame 3" in removal.notes[0]


def test_a_mask_of_another_size_is_resized_with_a_note():
    half = torch.nn.functional.max_pool2d(painted()[None], 2)[0]
    removal = remove_object(clip(), half, propagator=Shifts(), backbone=Paints())
    assert removal.masks.probs.shape == (COUNT, 1, HEIGHT, WIDTH) and "resized" in removal.notes[0]


def test_alpha_and_half_precision():
    removal = remove_object(clip(4).half(), painted(), propagator=Shifts(), backbone=Paints())
    assert removal.frames.shape == (COUNT, 3, HEIGHT, WIDTH) and removal.frames.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"first_mask": torch.zeros(HEIGHT, WIDTH)}, "empty"),
        ({"first_mask": torch.ones(HEIGHT, WIDTH)}, "covers the whole frame"),
        ({"first_mask": torch.zeros(64, 64)}, "64x64"),
        ({"first_mask": painted().T}, "aspect ratios"),
        ({"first_mask": painted(), "key_frames": [COUNT]}, "outside the clip"),
        ({"first_mask": painted(), "key_frames": [0, 1]}, "one number per mask"),
        ({"first_mask": None}, "what to remove"),
        ({"masks": torch.zeros(COUNT, HEIGHT, WIDTH)}, "All masks are empty"),
        ({"masks": torch.ones(COUNT - 1, HEIGHT, WIDTH)}, "4 masks for 5 frames"),
        ({"masks": torch.ones(COUNT, HEIGHT, WIDTH)}, "All masks cover the whole frame"),
        ({"masks": torch.ones(COUNT, WIDTH, HEIGHT)}, "The mask of every frame is"),
        ({"first_mask": painted(), "masks": torch.ones(COUNT, HEIGHT, WIDTH)}, "Both first_mask and masks"),
        ({"masks": torch.ones(COUNT, HEIGHT, WIDTH), "keep": painted()}, "leave keep out"),
        ({"first_mask": painted(), "bridge": True}, "leave bridge out"),
        ({"first_mask": painted(), "feather": -1}, "feather is -1; expected 0 or more"),
    ],
)
def test_bad_masks_are_refused_in_words(arguments, words):
    propagator = Shifts()
    with pytest.raises(MaskError, match=words):
        remove_object(clip(), propagator=propagator, backbone=Paints(), **arguments)
    assert propagator.calls == []


def test_masks_of_which_shrinking_leaves_nothing_are_refused():
    masks = torch.zeros(COUNT, HEIGHT, WIDTH)
    masks[:, 5:9, 5:9] = 1
    assert remove_object(clip(), masks=masks, backbone=Paints(), grow=-1, feather=0).frames.shape[0] == COUNT
    with pytest.raises(MaskError, match="grow of -2 leaves nothing of the masks"):
        remove_object(clip(), masks=masks, backbone=Paints(), grow=-2, feather=0)


def test_a_bad_clip_is_refused():
    with pytest.raises(ClipError):
        remove_object(clip()[:, :2], painted(), propagator=Shifts(), backbone=Paints())


@pytest.mark.parametrize("grain", [0.0, 1.0])
def test_what_is_filled_in_gets_the_grain_of_the_clip_unless_nobody_wants_it(grain):
    clean = torch.linspace(0.4, 0.6, 160).expand(COUNT, 3, 96, 160)
    frames = (clean + 0.03 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))).clamp(0, 1)
    masks = torch.zeros(COUNT, 96, 160)
    masks[:, 20:76, 30:130] = 1
    removal = remove_object(frames, masks=masks, backbone=Paints(), grow=0, feather=0, grain=grain)
    filled = removal.frames[:, :, 20:76, 30:130]
    assert float(filled.std()) == pytest.approx(0.03 * grain, rel=0.25)
    assert any("got the grain" in note for note in removal.notes) == (grain > 0)
    assert torch.equal(removal.frames[..., :20, :], frames[..., :20, :])


@pytest.mark.parametrize("grain", [-1.0, float("nan"), float("inf")])
def test_grain_that_is_no_strength_is_refused(grain):
    with pytest.raises(CiriError, match="expected 0 .none. or more"):
        remove_object(clip(), painted(), propagator=Shifts(), backbone=Paints(), grain=grain)


def test_soft_given_masks_stay_soft():
    masks = painted().expand(COUNT, HEIGHT, WIDTH) * 0.75
    assert torch.equal(given_masks(clip(), masks).probs[:, 0], masks)
