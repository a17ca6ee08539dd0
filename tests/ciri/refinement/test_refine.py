"""Refinement of masks, with a detector and a backbone that know the answer, and with such that know nothing."""

from unittest.mock import Mock

import pytest
import torch

from ciri.errors import CiriError, MaskError, OutOfMemoryError
from ciri.frames import grow_mask
from ciri.metrics.segmentation import segmentation_score
from ciri.numbering import counted_from
from ciri.propagation.engine import MemoryPropagator
from ciri.propagation.flow import FlowPropagator
from ciri.propagation.lite import LiteNetwork
from ciri.propagation.tracking import DirectedPass
from ciri.refinement.looks import Looks
from ciri.refinement.refine import refine
from ciri.refinement.settings import RefinementSettings
from tests.allocations import Allocations
from tests.ciri.refinement.scenes import COUNT, HEIGHT, WIDTH, Answers, Constant, Knows, Noise, Oracle, Scene
from tests.parity.seeded_weights import seeded_state_dict


def settings(**options):
    return RefinementSettings(grow=2, feather=2, **options)


def run(scene, masks, detector, inpainted=None, **options):
    inpainted = scene.removal(masks) if inpainted is None else inpainted
    options.setdefault("settings", settings())
    return refine(
        scene.frames, scene.true[0], masks, inpainted, backbone=Knows(scene), detector=detector, **options
    ), inpainted


def j_of(masks, true):
    return segmentation_score(masks, true).region


@pytest.mark.parametrize("mode", ["auto", "mask"])
def test_planted_residue_is_found_and_removed_and_the_rest_stays(mode):
    scene = Scene()
    masks = scene.cut()
    result, given = run(scene, masks, Oracle(scene), settings=settings(mode=mode))
    assert result.report.accepted == [2, 3]
    assert (result.after.scores[[2, 3]] < 0.2 * result.before.scores[[2, 3]]).all()
    before, after = j_of(masks, scene.true), j_of(result.masks, scene.true)
    assert before[[2, 3]].max() < 0.71 and after[[2, 3]].min() > 0.85
    # the frames in which nothing was found: bit for bit
    others = [0, 1, 4, 5]
    assert torch.equal(result.masks[others], masks[others]) and torch.equal(result.inpainted[others], given[others])
    error = (result.inpainted - scene.clean).abs().mean((1, 2, 3))
    assert (error[[2, 3]] < 0.3 * (given - scene.clean).abs().mean((1, 2, 3))[[2, 3]]).all()
    text = result.report.text()
    assert "masks of 2 frames were corrected" in text and "0.1" in text


@pytest.mark.parametrize("bridged", [False, True])
def test_no_mask_grows_over_what_is_to_stay(bridged):
    scene = Scene()
    masks = scene.cut()
    options = {"propagator": Answers(scene, scene.true)} if bridged else {}
    kept = torch.zeros_like(masks)
    kept[2] = (scene.true - masks)[2]
    result, _ = run(scene, masks, Oracle(scene), kept=kept, **options)
    assert result.report.accepted == [3]
    assert torch.equal(result.masks[2], masks[2])
    assert [bool(frame.reason) for frame in result.report.frames if frame.frame == 2] in ([True], [])
    # half of what is missing is to stay: the other half is taken
    kept[2, :, : HEIGHT // 2] = 0
    result, _ = run(scene, masks, Oracle(scene), kept=kept, **options)
    added = (result.masks[2] > 0.5) & (masks[2] <= 0.5)
    assert added[:, : HEIGHT // 2].sum() > 50 and not (added & (kept[2] > 0)).any()


def test_gradient_descent_takes_nothing_of_what_is_to_stay():
    scene = Scene()
    masks = scene.cut()
    kept = (scene.true - masks).clamp(min=0)
    kept[:, :, HEIGHT // 2 :] = 0
    result, _ = run(scene, masks, Oracle(scene), kept=kept, settings=settings(mode="mask", epochs=20))
    assert result.report.accepted == [2, 3] and result.report.steps > 0
    stays = kept > 0
    assert (result.masks[stays] <= masks[stays]).all()
    with pytest.raises(MaskError, match="to stay have shape"):
        run(scene, masks, Oracle(scene), kept=kept[0])


def test_a_refined_picture_is_the_given_clip_beyond_both_masks():
    scene = Scene()
    masks = scene.cut()
    result, given = run(scene, masks, Oracle(scene))
    away = (grow_mask(torch.maximum(masks, result.masks), 6) == 0).expand_as(given)
    assert torch.equal(result.inpainted[away], given[away])


@pytest.mark.parametrize("seed", range(4))
def test_never_accepted_with_a_worse_mask(seed):
    for offset in range(5):
        scene = Scene(100 * seed + offset)
        masks = scene.cut(at=(1, 3, 4), columns=3 + 3 * offset)
        mode = ("auto", "mask")[seed % 2]
        result, given = run(scene, masks, Oracle(scene), settings=settings(mode=mode))
        fallen = j_of(masks, scene.true) - j_of(result.masks, scene.true)
        assert fallen.max() <= 0.01
        assert ((result.inpainted - scene.clean).square().mean() <= (given - scene.clean).square().mean() + 1e-8).all()


def test_a_clean_clip_comes_back_itself_after_one_look():
    scene = Scene()
    detector = Oracle(scene)
    inpainted = scene.removal(scene.true)
    backbone = Knows(scene)
    result = refine(
        scene.frames,
        scene.true[0],
        scene.true,
        inpainted,
        backbone=backbone,
        detector=detector,
        settings=settings(),
    )
    assert result.masks is scene.true and result.inpainted is inpainted
    assert backbone.calls == 0 and result.report.steps == 0 and detector.looks == 1
    assert result.report.mode == "off" and "Nothing of the target was found" in result.report.text()


def test_looking_at_a_clip_copies_none_of_its_pictures():
    scene = Scene(count=12)
    inpainted = scene.removal(scene.true)
    with Allocations(at_least=inpainted.nbytes) as taken:
        result, _ = run(scene, scene.true, Oracle(scene), inpainted)
    assert result.inpainted is inpainted and not taken.found


def test_false_alarms_in_the_annotated_frame_raise_the_threshold_without_a_second_look():
    scene = Scene()
    where = torch.zeros(1, HEIGHT, WIDTH)
    where[:, 50:62, 4:34] = 1
    detector = Lookalike(scene, where)
    masks = scene.true
    result, given = run(scene, masks, detector)
    assert detector.looks == 1 and result.masks is masks and result.inpainted is given
    assert result.before.maps[0].max() > 0.7 and result.before.scores.max() < 0.05


def test_without_a_detector_everything_comes_back():
    scene = Scene()
    masks = scene.cut()
    result, given = run(scene, masks, None)
    assert result.masks is masks and result.inpainted is given and "no residue detector" in result.report.outcome


class Lookalike(Oracle):
    """Takes a copy of the target's texture, part of the scene, for the target."""

    def __init__(self, scene, where):
        super().__init__(scene)
        self.where = where

    def detect(self, template, frames, boxes, removal=None):
        from ciri.residue.crops import crop, search_window

        logits = super().detect(template, frames, boxes, removal)
        alike = torch.stack([crop(self.where[None], [search_window(b)], 60, torch.zeros(1))[0] for b in boxes])
        return torch.maximum(logits, torch.logit(0.9 * alike.clamp(0.01, 0.99)))


def test_a_copy_of_the_targets_texture_survives():
    scene = Scene()
    where = torch.zeros(1, HEIGHT, WIDTH)
    where[:, 44:60, 40:70] = 1
    patch = scene.frames[0, :, 18:34, 20:50]
    for clip in (scene.clean, scene.frames):
        seen = scene.true if clip is scene.frames else torch.zeros_like(scene.true)
        clip[:, :, 44:60, 40:70] = torch.where(seen[:, :, 44:60, 40:70] > 0, clip[:, :, 44:60, 40:70], patch)
    masks = scene.cut()
    result, _ = run(scene, masks, Lookalike(scene, where))
    ratios = (result.masks > 0.5).sum((1, 2, 3)) / (scene.true > 0.5).sum((1, 2, 3))
    assert ratios.max() <= 1.35
    kept = ((where > 0) & (scene.true == 0)).expand(COUNT, 3, -1, -1)
    shown = (result.inpainted - scene.clean).abs()[kept]
    assert shown.max() < 1e-5
    copy = (where > 0) & (scene.true == 0)
    assert ((result.masks > 0.5) & copy).sum() < 0.1 * copy.sum()


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("detector", [Constant(), Noise(1, 6), Noise(2, 15), Noise(3, 60)], ids=lambda d: d.name)
def test_a_detector_that_knows_nothing_changes_nothing(detector, complete):
    scene = Scene()
    masks = scene.true if complete else scene.cut()
    result, given = run(scene, masks, detector)
    assert result.report.accepted == []
    assert result.masks is masks and result.inpainted is given


@pytest.mark.parametrize("kind", ["empty", "one frame", "two frames", "leaves", "tiny"])
def test_difficult_clips_pass_through(kind):
    scene = Scene(count={"one frame": 1, "two frames": 2}.get(kind, COUNT), side=10 if kind == "tiny" else 30)
    masks = scene.true.clone()
    if kind == "empty":
        masks[1:] = 0
    elif kind == "leaves":
        masks[3:] = 0
        scene.frames[3:] = scene.clean[3:]
    elif kind == "tiny":
        masks[2, :, :, 31:] = 0
    result, given = run(scene, masks, Oracle(scene) if kind != "leaves" else Constant())
    assert result.masks is masks and result.inpainted is given


def test_two_frames_are_refined_like_any_others():
    scene = Scene(count=2)
    masks = scene.cut(at=(1,))
    result, _ = run(scene, masks, Oracle(scene))
    assert result.report.accepted == [1]


def test_the_same_seed_gives_the_same_result():
    scene = Scene()
    masks = scene.cut()
    results = [run(scene, masks, Oracle(scene))[0] for _ in range(2)]
    assert torch.equal(results[0].masks, results[1].masks)
    assert torch.equal(results[0].inpainted, results[1].inpainted)
    frames = [entry.frame for entry in results[0].report.frames]
    assert frames == sorted(frames)


def test_under_inference_mode_as_comfyui_runs_it():
    scene = Scene()
    masks = scene.cut()
    expected, given = run(scene, masks, Oracle(scene))
    with torch.inference_mode():
        result = refine(
            scene.frames.clone(),
            scene.true[0].clone(),
            masks.clone(),
            given.clone(),
            backbone=Knows(scene),
            detector=Oracle(scene),
            settings=settings(),
        )
    assert torch.equal(result.masks, expected.masks) and torch.equal(result.inpainted, expected.inpainted)


@pytest.mark.parametrize("budget", [0.0, 1e-4])
def test_a_spent_budget_ends_the_work_and_changes_nothing(budget):
    scene = Scene()
    masks = scene.cut()
    result, given = run(scene, masks, Oracle(scene), settings=settings(time_budget=budget))
    assert result.masks is masks and result.inpainted is given
    assert "time budget" in result.report.outcome


def test_the_budget_counts_to_the_step(monkeypatch):
    """A clock that gains a second with every reading: however many there are, the work ends at the first over it."""
    from ciri.refinement import clock

    scene = Scene()
    masks = scene.cut()
    given = scene.removal(masks)
    now = [0.0]

    def tick():
        now[0] += 1
        return now[0]

    monkeypatch.setattr(clock.time, "perf_counter", tick)
    readings = []
    for budget in (5, 10, 20, 40, 80):
        now[0] = 0
        run(scene, masks, Oracle(scene), given, settings=settings(time_budget=budget))
        readings.append(now[0] <= budget + 6)
    assert all(readings)


def test_pictures_are_mixed_one_at_a_time_and_only_where_masks_differ(monkeypatch):
    from ciri.refinement import product
    from ciri.refinement import refine as refining

    scene = Scene(count=11)
    masks = scene.cut(at=range(1, 11))
    mixed = []
    original = product.soft_edges
    monkeypatch.setattr(product, "soft_edges", lambda masks, *how: mixed.append(len(masks)) or original(masks, *how))
    run(scene, masks, Oracle(scene))
    assert not mixed
    monkeypatch.setattr(refining._Job, "_descend", lambda self, watch, painted, grown, *more: 0.9 * grown)
    result, _ = run(scene, masks, Oracle(scene))
    assert result.report.accepted and mixed and set(mixed) == {1}


def test_peak_memory_is_reported():
    scene = Scene()
    result, _ = run(scene, scene.cut(), Oracle(scene))
    assert result.report.peak_bytes > 2**20 and "Peak memory" in result.report.text()


class Stop(Exception):
    pass


def test_an_interrupt_at_any_step_changes_nothing():
    scene = Scene()
    masks = scene.cut()
    given = scene.removal(masks)
    copies = masks.clone(), given.clone(), scene.frames.clone()
    seen = []
    run(scene, masks, Oracle(scene), given, on_step=lambda done, total: seen.append(done / total))
    assert seen == sorted(seen) and seen[-1] == 1
    for stop_at in range(len(seen)):
        left = [stop_at]

        def interrupt(done, total, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Stop

        with pytest.raises(Stop):
            run(scene, masks, Oracle(scene), given, on_step=interrupt)
        assert torch.equal(masks, copies[0]) and torch.equal(given, copies[1])
        assert torch.equal(scene.frames, copies[2])


@pytest.mark.parametrize("mode", ["auto", "mask", "weights"])
def test_an_interrupt_is_heard_between_any_two_frames_or_batches(mode, monkeypatch):
    scene = Scene(count=11)
    masks = scene.cut(at=range(1, 11))
    given, detector, work = scene.removal(masks), Oracle(scene), []

    def counted(function):
        return lambda *args, **options: work.append(function) or function(*args, **options)

    detector.detect = counted(detector.detect)
    monkeypatch.setattr(Looks, "score", counted(Looks.score))
    monkeypatch.setattr(DirectedPass, "_predict", counted(DirectedPass._predict))
    unheard = []

    def heard(done, total):
        unheard.append(len(work))
        work.clear()

    network = LiteNetwork()
    network.load_state_dict(seeded_state_dict(network.state_dict(), 5, 1.0))
    propagator = MemoryPropagator(network.eval(), precision="fp32") if mode == "weights" else None
    run(scene, masks, detector, given, propagator=propagator, settings=settings(mode=mode, epochs=1), on_step=heard)
    # tuned weights are judged on all frames at once, in three groups here
    assert max(unheard) <= 3


class Hungry(Oracle):
    """Runs out of memory with more than so many frames."""

    def __init__(self, scene, most):
        super().__init__(scene)
        self.most = most

    def detect(self, template, frames, boxes, removal=None):
        if len(frames) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return super().detect(template, frames, boxes, removal)


def test_less_memory_gives_the_same_result():
    scene = Scene()
    masks = scene.cut()
    plenty, _ = run(scene, masks, Oracle(scene))
    little, _ = run(scene, masks, Hungry(scene, 1))
    assert torch.allclose(plenty.masks, little.masks) and torch.allclose(plenty.inpainted, little.inpainted)
    with pytest.raises(CiriError, match="Memory ran out"):
        run(scene, masks, Hungry(scene, 0))


@pytest.mark.parametrize("mode", ["auto", "mask"])
def test_a_shortage_beside_the_networks_is_worded_too(mode, monkeypatch):
    scene = Scene()
    monkeypatch.setattr(Looks, "score", Mock(side_effect=MemoryError))
    with pytest.raises(OutOfMemoryError, match=f"'{mode}'.*part of the clip"):
        run(scene, scene.cut(), Oracle(scene), settings=settings(mode=mode))


@pytest.mark.parametrize("mode", ["weights", "paper"])
def test_modes_that_tune_weights_say_what_they_need(mode):
    scene = Scene()
    for propagator in (None, FlowPropagator()):
        with pytest.raises(CiriError, match="mode 'auto'"):
            run(scene, scene.cut(), Oracle(scene), propagator=propagator, settings=settings(mode=mode))


def test_bad_input_is_named():
    scene = Scene()
    masks, given = scene.cut(), scene.clean
    common = {"backbone": Knows(scene), "detector": Oracle(scene)}
    with pytest.raises(MaskError, match="masks have shape"):
        refine(scene.frames, scene.true[0], masks[1:], given, **common)
    with pytest.raises(MaskError, match="inpainted frames have shape"):
        refine(scene.frames, scene.true[0], masks, given[1:], **common)
    with pytest.raises(MaskError, match="first mask"):
        refine(scene.frames, scene.true[0], masks, given, first_index=99, **common)
    with pytest.raises(MaskError, match="empty"):
        refine(scene.frames, 0 * scene.true[0], masks, given, **common)
    for wrong in ({"mode": "fast"}, {"epochs": -1}, {"strength": 0}, {"time_budget": -1}):
        with pytest.raises(CiriError):
            RefinementSettings(**wrong)


class Colours:
    """Features that are the colours themselves, averaged over four pixels."""

    name, fill = "colours", (0.485, 0.456, 0.406)

    def __call__(self, crops):
        return torch.nn.functional.avg_pool2d(crops, 4)


def test_the_contextual_loss_takes_part_where_features_are_given():
    scene = Scene()
    masks = scene.cut(columns=14)
    result, _ = run(scene, masks, Oracle(scene), features=Colours(), settings=settings(epochs=3, mode="mask"))
    assert result.report.accepted == [2, 3]
    assert (j_of(result.masks, scene.true) >= j_of(masks, scene.true)).all()


def test_a_wrong_frame_is_told_by_the_numbers_of_the_whole_clip():
    scene = Scene()
    with counted_from(10), pytest.raises(MaskError, match=r"frame 17; .* frames 10 to 15\."):
        run(scene, scene.true, Oracle(scene), first_index=7)
