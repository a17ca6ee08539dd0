"""The engine around a network that follows colours exactly: directions, objects, loss, odd clips, manners."""

import copy

import pytest
import torch
import torch.nn.functional as F

from ciri.errors import CiriError, MaskError
from ciri.propagation.base import LOST_BELOW, Propagator
from ciri.propagation.engine import Annotation, MemoryPropagator
from ciri.propagation.tracking import aggregate
from tests.ciri.propagation.toy_network import ColourNetwork, engine, moving_square, overlap


def test_it_is_a_propagator():
    assert isinstance(engine(), Propagator)
    assert engine().name == "colour"
    assert len(list(engine().parameters_to_refine())) == 1


# -------------------------------------------------------------------------------------------- following


@pytest.mark.parametrize("start", [0, 7, 15])
def test_a_target_is_followed_both_ways_from_any_frame(start):
    frames, masks = moving_square(16)
    track = engine().propagate(frames, masks[start : start + 1], [start])
    assert overlap(track.probs, masks).min() == 1
    assert track.probs.shape == (16, 1, 48, 64)
    assert track.probs.min() >= 0 and track.probs.max() <= 1
    assert track.confidence[start] == 1
    assert (track.confidence > 0.8).all() and (track.confidence <= 1).all()
    assert track.lost_frames() == [] == track.notes


def test_only_the_asked_direction_is_followed():
    frames, masks = moving_square(9)
    forward = engine(directions=["forward"]).propagate(frames, masks[4:5], [4])
    assert not forward.probs[:4].any() and not forward.confidence[:4].any()
    assert overlap(forward.probs[4:], masks[4:]).min() == 1


@pytest.mark.parametrize("size", [(37, 53), (4, 4), (33, 20), (48, 64)])
def test_any_size(size):
    # the square begins at the left edge, 16 pixels from the top
    frames, masks = (x[..., 14:, :][..., : size[0], : size[1]] for x in moving_square(5, 64, 64))
    track = engine().propagate(frames, masks[:1], [0])
    assert track.probs.shape == (5, 1, *size)
    torch.testing.assert_close(track.probs[:1], masks[:1], rtol=0, atol=0)


def test_one_frame():
    frames, masks = moving_square(1)
    track = engine().propagate(frames, masks, [0])
    torch.testing.assert_close(track.probs, masks, rtol=0, atol=0)
    assert track.confidence.tolist() == [1]


def test_a_target_over_half_the_frame_and_one_of_a_few_pixels():
    frames, masks = moving_square(6, side=36, width=48)
    assert masks[0].mean() > 0.5
    assert overlap(engine().propagate(frames, masks[:1], [0]).probs, masks).min() == 1
    frames, masks = moving_square(6, side=4)
    assert overlap(engine().propagate(frames, masks[:1], [0]).probs, masks).min() == 1
    # two pixels of a frame that is worked on at a fifth of its size
    frames, masks = moving_square(4, 240, 320)
    tiny = torch.zeros_like(masks[:1])
    tiny[..., 100, 100:102] = 1
    network = ColourNetwork()
    seen = []
    network.encode_value = lambda frame, features, given, others: seen.append(given.max()) or given[..., ::4, ::4]
    propagator = MemoryPropagator(network, precision="fp32", short_side=48)
    propagator._ready = lambda: (network, 0, torch.device("cpu"))
    propagator.propagate(frames, tiny, [0])
    assert seen[0] > 0.5


def test_large_frames_are_worked_on_smaller():
    frames, masks = (F.interpolate(x, scale_factor=2) for x in moving_square(4))
    propagator = engine(short_side=48, crop_decoding=False)
    track = propagator.propagate(frames, masks[:1], [0])
    assert set(propagator.network.decoded) == {(12, 16)}
    assert track.probs.shape == masks.shape
    assert overlap(track.probs, masks).min() > 0.85


# --------------------------------------------------------------------------------------- several annotations


def test_annotated_frames_are_returned_as_they_were_painted():
    frames, masks = moving_square(12)
    wrong = torch.roll(masks[6:7], 8, 2) * 0.8
    track = engine().propagate(frames, torch.cat([masks[:1], wrong]), [0, 6])
    torch.testing.assert_close(track.probs[6:7], wrong, rtol=0, atol=0)
    torch.testing.assert_close(track.probs[:1], masks[:1], rtol=0, atol=0)
    assert track.confidence[[0, 6]].tolist() == [1, 1]


def test_a_correction_brings_back_a_target_that_changed():
    frames, masks = moving_square(12)
    green, _ = moving_square(12, colour=(0.1, 0.9, 0.1))
    frames[6:] = green[6:]
    first_only = engine().propagate(frames, masks[:1], [0])
    assert first_only.lost_frames() == [6, 7, 8, 9, 10, 11]
    corrected = engine().propagate(frames, masks[[0, 9]], [0, 9])
    assert overlap(corrected.probs, masks).min() == 1
    assert corrected.lost_frames() == []


@pytest.mark.parametrize(
    ("size", "inner"),
    [((240, 432), (360, 648)), ((150, 200), (300, 400)), ((360, 640), (360, 640)), ((1080, 1920), (360, 640))],
)
def test_small_frames_are_enlarged_where_that_is_asked_for(size, inner):
    from ciri.propagation.clip import Geometry

    geometry = Geometry(*size, 16, 360, enlarge=2.0)
    assert geometry.inner == inner
    mask = torch.zeros(1, 1, *size)
    mask[..., 40:90, 30:120] = 1
    back = geometry.masks_out(geometry.masks_in(mask))
    assert float(((back > 0.5) != (mask > 0.5)).float().mean()) < 0.003
    assert Geometry(*size, 16, 360).inner[0] <= size[0]


def test_blending_weighs_by_distance_and_confidence():
    from ciri.propagation.clip import Geometry
    from ciri.propagation.engine import _Blend
    from ciri.propagation.tracking import Prediction

    blend = _Blend(5, 1, (4, 4), torch.device("cpu"), {})
    geometry = Geometry(4, 4, 4, None)
    ones = torch.ones(1, 1, 4, 4)
    blend.add(Prediction(1, [0], ones, torch.tensor([0.9]), [1]), geometry)
    blend.add(Prediction(1, [0], 0 * ones, torch.tensor([0.6]), [3]), geometry)
    weights = (0.9 / 1, 0.6 / 3)
    assert blend.probs[1].mean().item() == pytest.approx(weights[0] / sum(weights))
    assert blend.confidence[1].item() == pytest.approx((0.9 * weights[0] + 0.6 * weights[1]) / sum(weights))


def test_objects_are_told_apart_and_their_order_does_not_matter():
    frames, red = moving_square(8)
    frames[:, :, :12, :12] = torch.tensor([0.1, 0.9, 0.1])[:, None, None]
    green = torch.zeros_like(red)
    green[..., :12, :12] = 1
    one = engine().propagate_objects(frames, [Annotation(0, 0, red[0]), Annotation(0, 1, green[0])])
    other = engine().propagate_objects(frames, [Annotation(0, 1, red[0]), Annotation(0, 0, green[0])])
    assert overlap(one.probs[:, :1], red).min() == 1
    assert overlap(one.probs[:, 1:], green).min() == 1
    torch.testing.assert_close(one.probs, other.probs.flip(1))
    assert (one.probs.sum(1) <= 1 + 1e-6).all()


def test_an_object_that_is_annotated_later_has_no_past_going_forward():
    frames, red = moving_square(8)
    frames[:, :, :12, :12] = torch.tensor([0.1, 0.9, 0.1])[:, None, None]
    green = torch.zeros_like(red)
    green[..., :12, :12] = 1
    annotations = [Annotation(0, 0, red[0]), Annotation(5, 1, green[5])]
    forward = engine(directions=["forward"]).propagate_objects(frames, annotations)
    assert not forward.probs[:5, 1].any()
    assert overlap(forward.probs[5:, 1:], green[5:]).min() == 1
    assert overlap(forward.probs[:, :1], red).min() == 1
    both = engine().propagate_objects(frames, annotations)
    assert overlap(both.probs[:, 1:], green).min() == 1


def test_objects_must_be_numbered_without_gaps():
    frames, red = moving_square(3)
    for annotations in ([], [Annotation(0, 1, red[0])]):
        with pytest.raises(MaskError, match="numbered"):
            engine().propagate_objects(frames, annotations)


def test_aggregation_of_one_object_doubles_the_logit():
    p = torch.linspace(0.001, 0.999, 50)[None]
    torch.testing.assert_close(aggregate(p), (2 * p.logit()).sigmoid())
    hard = torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(aggregate(hard), hard, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------- loss


def test_a_target_that_leaves_is_reported_and_found_again():
    frames, masks = moving_square(14)
    background = moving_square(1, side=0)[0]
    frames[5:9], masks[5:9] = background, 0
    track = engine().propagate(frames, masks[:1], [0])
    assert track.lost_frames() == [5, 6, 7, 8]
    assert not track.probs[5:9].any() and not track.confidence[5:9].any()
    assert overlap(track.probs, masks).min() == 1
    assert any("5-8" in note for note in track.notes)


def test_a_faint_answer_is_not_shown_as_a_mask():
    frames, masks = moving_square(6)
    # half red: memory answers with a mixture of target and background
    frames[3:] = moving_square(6, side=0)[0][3:]
    track = engine(crop_decoding=False).propagate(frames, masks[:1], [0])
    assert not track.probs[3:].any()


def test_what_is_unlike_anything_seen_lowers_the_confidence():
    frames, masks = moving_square(6)
    changed = frames.clone()
    changed[3] = (changed[3] + torch.tensor([0.0, 0.4, -0.1])[:, None, None]).clamp(0, 1)
    sure = engine().propagate(frames, masks[:1], [0]).confidence
    unsure = engine().propagate(changed, masks[:1], [0]).confidence
    assert unsure[3] < sure[3] - 0.1


def test_a_new_shot_is_noted():
    frames, masks = moving_square(12)
    first, second = torch.rand(2, *frames.shape[1:], generator=torch.Generator().manual_seed(0))
    frames[:6], frames[6:] = (frames[:6] + first) / 2, second
    assert any("frames 6:" in note for note in engine().propagate(frames, masks[:1], [0]).notes)
    assert engine().propagate(frames[:6], masks[:1], [0]).notes == []


# --------------------------------------------------------------------------------------- being a good guest


def test_progress_counts_frames_and_may_stop_the_work():
    frames, masks = moving_square(9)
    propagator, steps = engine(), []
    whole = propagator.propagate(frames, masks[3:4], [3], on_step=lambda *step: steps.append(step))
    assert steps == [(i, 10) for i in range(1, 11)]

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        propagator.propagate(frames, masks[3:4], [3], on_step=stop)
    again = propagator.propagate(frames, masks[3:4], [3])
    torch.testing.assert_close(again.probs, whole.probs, rtol=0, atol=0)


def test_room_may_be_made_before_a_run():
    frames, masks = moving_square(3, 99, 64)
    propagator, asked = engine(short_side=48), []
    propagator.before_run = lambda height, width: asked.append((height, width, len(propagator.network.encoded)))
    propagator.propagate(frames, masks[:1], [0])
    copy.deepcopy(propagator).propagate(frames, masks[:1], [0])
    assert [size[:2] for size in asked] == [(76, 48)] * 2 and asked[0][2] == 0


def test_nothing_that_was_given_is_changed():
    frames, masks = moving_square(6)
    before, propagator = (frames.clone(), masks.clone()), engine()
    weight = propagator.network.scale.detach().clone()
    propagator.propagate(frames, masks[:1], [0])
    torch.testing.assert_close((frames, masks), before, rtol=0, atol=0)
    assert torch.equal(propagator.network.scale, weight) and propagator.network.scale.requires_grad


def test_called_under_inference_mode_it_can_be_refined_afterwards():
    frames, masks = moving_square(4)
    propagator = engine()
    with torch.inference_mode():
        propagator.propagate(frames.clone(), masks[:1].clone(), [0])
    twin = copy.deepcopy(propagator)
    features = twin.network.encode_key(frames[:1])
    features.key.sum().backward()
    assert twin.network.scale.grad is not None and propagator.network.scale.grad is None
    # frames of the first call come from the cache: what it holds must be usable here
    propagator.propagate(frames, masks[:1], [0])


def test_a_copy_has_its_own_weights_and_an_empty_cache():
    frames, masks = moving_square(4)
    propagator = engine()
    propagator.propagate(frames, masks[:1], [0])
    twin = copy.deepcopy(propagator)
    assert len(propagator._cache) == 4 and len(twin._cache) == 0
    with torch.no_grad():
        twin.network.scale.zero_()
    assert propagator.network.scale == 40


def test_half_precision_gives_the_same_masks_in_float32():
    frames, masks = moving_square(6)
    for precision in ("bf16", "fp16"):
        track = engine(precision=precision).propagate(frames, masks[:1], [0])
        assert track.probs.dtype == torch.float32
        assert overlap(track.probs, masks).min() == 1


def test_an_unknown_precision_is_an_error():
    frames, masks = moving_square(2)
    with pytest.raises(CiriError, match="auto, fp32"):
        engine(precision="int4").propagate(frames, masks[:1], [0])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("method", "wrong"), [("encode_key", "nan"), ("encode_value", "nan"), ("decode", "inf")])
@pytest.mark.parametrize("store_above", [LOST_BELOW, None])
def test_what_is_not_a_number_is_an_error_and_no_lost_target(monkeypatch, method, wrong, precision, store_above):
    original = getattr(ColourNetwork, method)

    def overflows(self, *args):
        answer = original(self, *args)
        (answer.key if method == "encode_key" else answer).fill_(float(wrong))
        return answer

    monkeypatch.setattr(ColourNetwork, method, overflows)
    frames, masks = moving_square(3)
    remedy = {"fp32": "weights are broken", "fp16": "precision fp32"}[precision]
    with pytest.raises(CiriError, match=f"colour .*not numbers.*float{precision[2:]}.*{remedy}"):
        engine(precision=precision, store_above=store_above).propagate(frames, masks[:1], [0])
