import cv2
import numpy as np
import pytest
import torch

from ciri.errors import CiriError, MaskError, TrainingError
from ciri.propagation.base import MaskTrack
from ciri.training.composites import Composite
from ciri.training.masks import wrong_masks
from ciri.training.predictions import AS_GOOD_AS_TRUE, WrongMasks, overlap, predict


def composite(first=0, frames=6):
    """A red square that crosses noise, seen from the given frame on."""
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 120, (1, 64, 96, 3), np.uint8).repeat(frames, 0)
    mask = np.zeros((frames, 64, 96), bool)
    for t in range(first, frames):
        mask[t, 20:44, 10 + 6 * t : 34 + 6 * t] = True
    made = clean.copy()
    made[mask] = (230, 40, 30)
    return Composite(made, clean, mask)


class Recorder:
    """A propagator that answers with a shifted first mask and remembers what it was asked."""

    name = "recorder"

    def propagate(self, frames, key_masks, key_frames, *, on_step=None):
        self.asked = frames, key_masks, key_frames
        probs = torch.roll(key_masks, 3, 3).repeat(len(frames), 1, 1, 1) * 0.9
        probs[key_frames[0]] = key_masks[0]
        return MaskTrack(probs, torch.ones(len(frames)))


def test_the_propagator_sees_the_composite_and_one_true_mask():
    made, recorder = composite(first=2), Recorder()
    made.mask[1, 30, 30] = True  # one pixel: nobody would paint that
    found = predict(recorder, made)
    frames, masks, keys = recorder.asked
    assert keys == [2] and (frames.permute(0, 2, 3, 1) * 255).round().byte().numpy().tolist() == made.frames.tolist()
    assert (masks[0, 0].numpy() == made.mask[2]).all()
    assert (found[2] == made.mask[2]).all() and (found[0] == np.roll(made.mask[2], 3, 1)).all()


def texture(seed, low):
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 12, 3)).astype(np.float32)
    return np.clip(low + cv2.resize(coarse, (96, 64), interpolation=cv2.INTER_CUBIC) * 0.63, 0, 255).astype(np.uint8)


def test_the_flow_propagator_is_near_the_truth_but_not_it():
    made, picture = composite(), texture(2, 20)[20:44, 20:44]
    made.frames[:] = texture(1, 0)
    for t in range(6):
        made.frames[t, 20:44, 10 + 6 * t : 34 + 6 * t] = np.roll(picture, 2 * t, 1)  # it moves, and changes
    propagator = WrongMasks("flow").propagator
    found = predict(propagator, made)
    assert (found[0] == made.mask[0]).all() and (found == predict(propagator, made)).all()
    assert 0.5 < overlap(found, made.mask) < 0.97


def test_a_share_of_the_masks_is_predicted_and_the_seed_decides_which():
    makes = WrongMasks("flow", share=0.5)
    makes.propagator = Recorder()
    made, predicted = composite(), 0
    shifted = predict(Recorder(), made)
    for seed in range(40):
        found = makes(made, np.random.default_rng(seed))
        again = makes(made, np.random.default_rng(seed))
        assert (found == again).all()
        predicted += (found == shifted).all()
    assert 10 <= predicted <= 30


def test_masks_without_predictions_are_as_they_were():
    made = composite()
    assert (WrongMasks()(made, np.random.default_rng(4)) == wrong_masks(made.mask, np.random.default_rng(4))).all()


def test_a_perfect_prediction_and_a_refusal_give_made_up_masks():
    made, makes = composite(), WrongMasks("flow", share=1.0)

    class Perfect(Recorder):
        def propagate(self, frames, key_masks, key_frames, **more):
            return MaskTrack(torch.from_numpy(made.mask)[:, None].float(), torch.ones(len(frames)))

    class Refuses(Recorder):
        def propagate(self, *anything, **more):
            raise MaskError("no")

    for stub in (Perfect(), Refuses()):
        makes.propagator = stub
        assert overlap(makes(made, np.random.default_rng(1)), made.mask) < AS_GOOD_AS_TRUE
    empty = Composite(made.frames, made.clean, np.zeros_like(made.mask))
    assert predict(Recorder(), empty) is None


def test_a_propagator_that_needs_a_file_is_refused():
    # the registry's advice, --propagator-weights, is an option that training has not
    with pytest.raises(TrainingError, match="^--predictions stcn: it needs a weight file of its own; .* none: flow"):
        WrongMasks("stcn")


def test_an_unknown_propagator_is_refused():
    with pytest.raises(CiriError, match="psychic"):
        WrongMasks("psychic")
