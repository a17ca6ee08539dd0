"""Tuning a propagator's weights: a copy's, never the given ones; and the gradient that it goes by."""

import pytest
import torch

from ciri.errors import OutOfMemoryError
from ciri.propagation.engine import MemoryPropagator
from ciri.propagation.lite import LiteNetwork, build_lite
from ciri.refinement import paper, weight_space
from ciri.refinement.decoder_inputs import Annotated, own_copy, record
from ciri.refinement.objective import Scene as Material
from ciri.refinement.objective import frame_losses, to_logits
from ciri.refinement.refine import refine
from ciri.refinement.settings import RefinementSettings
from ciri.refinement.watch import Watch
from ciri.residue.base import Removal
from ciri.residue.crops import boxes_of_clip
from tests.ciri.refinement.scenes import Answers, Constant, Knows, Oracle, Scene
from tests.parity.seeded_weights import seeded_state_dict


def propagator(dtype=torch.float32):
    network = LiteNetwork()
    network.load_state_dict(seeded_state_dict(network.state_dict(), 5, 1.0))
    return MemoryPropagator(network.eval().to(dtype), precision="fp32")


def content(given):
    return [t.detach().clone() for t in given.network.state_dict().values()]


def same(given, before):
    return all(torch.equal(a, b) for a, b in zip(content(given), before, strict=True))


def settings(**options):
    return RefinementSettings(**{"grow": 2, "feather": 2, "mode": "weights", **options})


def run(scene, masks, given, detector=None, **options):
    return refine(
        scene.frames,
        scene.true[0],
        masks,
        scene.removal(masks),
        backbone=Knows(scene),
        detector=detector or Oracle(scene),
        propagator=given,
        **{"settings": settings(), **options},
    )


def material(scene, masks):
    """The scene as the descent gets it: frames 2 and 3, whose masks miss a part."""
    at = [2, 3]
    watch = Watch(
        Oracle(scene),
        None,
        boxes_of_clip(masks, scene.true[0]),
        Removal(scene.frames, masks, scene.clean),
        Oracle.threshold,
    )
    quiet = torch.ones(2, 1, *masks.shape[2:], dtype=torch.bool)
    return watch, Material(at, scene.removal(masks)[at], scene.clean[at], masks[at], scene.true[at], quiet)


def test_the_gradient_reaches_the_missed_part_and_pulls_it_in():
    scene = Scene()
    masks = scene.cut()
    watch, found = material(scene, masks)
    logits = to_logits(found.old).requires_grad_()
    frame_losses(watch, found, logits, to_logits(found.old), slice(None), 2).sum().backward()
    # what the mask misses, without the rim that the fill hides
    missed = (scene.true[[2, 3]] - masks[[2, 3]]) > 0
    missed &= torch.cat([torch.zeros_like(missed[..., :3]), missed[..., :-3]], -1)
    pull = -logits.grad
    assert (pull[missed] > 0).float().mean() > 0.95
    elsewhere = pull[scene.true[[2, 3]] == 0].abs()
    assert elsewhere.mean() < 0.05 * pull[missed].mean()


def test_the_gradient_reaches_the_decoder_unless_the_mask_is_binarised():
    scene = Scene()
    masks = scene.cut()
    watch, found = material(scene, masks)
    twin = own_copy(propagator())
    inputs = record(twin, Annotated(scene.frames, scene.true[0], 0), found.at)
    weights = [p.requires_grad_() for p in twin.network.decoder.parameters()]
    for binarised in (False, True):
        change = inputs.logits(twin.network, found.at)
        logits = to_logits(found.old) + change - change.detach()
        if binarised:
            logits = torch.where(logits > 0, 4.0, -4.0)
        loss = frame_losses(watch, found, logits, to_logits(found.old), slice(None), 2).sum()
        if binarised:
            assert not loss.requires_grad
        else:
            loss.backward()
            assert sum(float(w.grad.abs().sum()) for w in weights if w.grad is not None) > 0


def test_kept_inputs_decode_to_what_the_propagator_says():
    scene = Scene()
    given = propagator()
    expected = given.propagate(scene.frames, scene.true[:1], [0]).probs
    inputs = record(own_copy(given), Annotated(scene.frames, scene.true[0], 0), [1, 4])
    with torch.no_grad():
        got = torch.sigmoid(2 * inputs.logits(given.network, [1, 4]))
    shown = expected[[1, 4]] > 0  # a lost target's mask is emptied, and crops are 0 outside
    assert torch.allclose(got[shown], expected[[1, 4]][shown], atol=2e-3)


def test_an_interrupt_does_not_wait_for_the_guide():
    class Guide(Answers):
        seen = 0

        def propagate(self, frames, key_masks, key_frames, *, on_step):
            for self.seen in range(1, len(frames) + 1):
                on_step(self.seen, len(frames))

    def interrupt(done, total):
        raise Stop

    scene = Scene()
    guide = Guide(scene, scene.true)
    with pytest.raises(Stop):
        record(build_lite(guide=guide), Annotated(scene.frames, scene.true[0], 0), [1, 4], interrupt)
    assert guide.seen == 1


def test_a_copy_shares_nothing_and_holds_float32():
    given = propagator(torch.bfloat16)
    before = content(given)
    twin = own_copy(given)
    for parameter in twin.network.parameters():
        assert parameter.dtype == torch.float32
        parameter.detach().add_(1)
    assert same(given, before)


def test_a_step_of_a_millionth_changes_the_weights_of_the_copy(monkeypatch):
    scene = Scene()
    given = propagator(torch.bfloat16)
    before = content(given)
    kept = []
    monkeypatch.setattr(weight_space, "own_copy", lambda p: kept.append(own_copy(p)) or kept[-1])
    monkeypatch.setattr(weight_space, "LEAST_GAIN", -1.0)
    # the best state is the last one here, whatever it is worth
    judged = iter(range(1000, 0, -1))
    monkeypatch.setattr(weight_space._Descent, "_judge", lambda self: float(next(judged)))
    run(scene, scene.cut(), given, settings=settings(epochs=1))
    tuned = {id(p) for p in kept[0].parameters_to_refine()}
    changes = []
    for new, old in zip(kept[0].network.parameters(), given.network.parameters(), strict=True):
        change = (new.detach() - old.detach().float()).abs()
        if id(new) in tuned:
            changes.append(float(change.max()))
        else:
            assert not change.any()
    assert 0.5e-6 < max(changes) < 2e-6
    assert same(given, before)


def test_tuning_corrects_masks_and_hands_back_the_tuned_copy(monkeypatch):
    # eight steps have to do what takes many at the usual rate
    monkeypatch.setattr(weight_space, "RATE", 3e-4)
    # for too long to be bridged
    scene = Scene(count=7)
    masks = scene.cut(at=range(1, 7))
    given = build_lite(precision="fp32", guide=Answers(scene, masks))
    before = content(given)
    result = run(scene, masks, given, settings=settings(epochs=20))
    assert same(given, before)
    assert result.report.mode == "weights" and result.report.steps > 0
    assert result.report.accepted, result.report.text()
    assert result.propagator is not given and not same(result.propagator, before)
    for t in result.report.accepted:
        missed = (scene.true[t] - masks[t]) > 0
        assert (result.masks[t] > 0.5)[missed].float().mean() > 0.3
    assert ((result.masks > 0.5) & (scene.true == 0)).sum() < 0.02 * scene.true.sum()


def test_what_is_decoded_at_once_does_not_grow_with_the_frames(monkeypatch):
    scene = Scene(count=12)
    given, sizes = propagator(), []
    monkeypatch.setattr(
        LiteNetwork, "decode", lambda *a, decode=LiteNetwork.decode: sizes.append(len(a[1])) or decode(*a)
    )
    result = run(scene, scene.cut(at=range(2, 12), columns=6), given, settings=settings(epochs=1))
    assert result.report.steps == 3 and max(sizes) <= weight_space.GROUP


def test_a_refusal_hands_back_the_given_propagator():
    scene = Scene()
    given = propagator()
    before = content(given)
    for masks, detector in ((scene.true, Oracle(scene)), (scene.cut(), Constant())):
        result = run(scene, masks, given, detector)
        assert result.propagator is given and result.masks is masks and same(given, before)


def test_what_was_bridged_stays_bridged_and_makes_no_tuned_copy_of_use(monkeypatch):
    class Bridges(MemoryPropagator):
        def propagate(self, *arguments, **options):
            return answers.propagate(*arguments, **options)

    scene = Scene(count=12)
    masks = scene.cut(at=(4, 5, 8))
    answer = scene.true.clone()
    answer[8] = masks[8]
    answers, given = Answers(scene, answer), Bridges(propagator().network, precision="fp32")
    recorded = []
    monkeypatch.setattr(weight_space, "record", lambda *a: recorded.append(a[2]) or record(*a))
    # frame 8 is tuned for, by too little to matter
    result = run(scene, masks, given, settings=settings(epochs=1))
    assert result.report.steps > 0
    assert result.report.accepted == [4, 5] and torch.equal(result.masks[4:6], scene.true[4:6])
    assert result.propagator is given and torch.equal(result.masks[8], masks[8])
    # what it holds on to is far from all of them
    assert recorded == [[8, 1, 11]]


class Stop(Exception):
    pass


@pytest.mark.parametrize(("mode", "stops"), [("weights", 6), ("paper", 3)])
def test_the_loaded_model_is_the_same_after_any_ending(mode, stops):
    scene = Scene(count=3)
    masks, given = scene.cut(at=(1,)), propagator()
    before = content(given)
    seen = []
    run(scene, masks, given, settings=settings(mode=mode, epochs=1), on_step=lambda *step: seen.append(step))
    assert same(given, before)
    for stop_at in range(0, len(seen), max(1, len(seen) // stops)):
        left = [stop_at]

        def interrupt(done, total, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Stop

        with pytest.raises(Stop):
            run(scene, masks, given, settings=settings(mode=mode, epochs=1), on_step=interrupt)
        assert same(given, before)


def test_an_error_leaves_the_loaded_model_alone():
    class Broken(Oracle):
        def detect(self, template, frames, boxes, removal=None):
            if self.looks > 2:
                raise RuntimeError("broken")
            return super().detect(template, frames, boxes, removal)

    scene = Scene()
    given = propagator()
    before = content(given)
    with pytest.raises(RuntimeError, match="broken"):
        run(scene, scene.cut(), given, Broken(scene))
    assert same(given, before)


@pytest.mark.parametrize("mode", ["weights", "paper"])
def test_a_shortage_of_memory_is_worded_and_leaves_the_loaded_model_alone(mode):
    class Hungry(Oracle):
        """Has no room for a graph."""

        def detect(self, template, frames, boxes, removal=None):
            if frames.requires_grad:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return super().detect(template, frames, boxes, removal)

    scene = Scene(count=3)
    given = propagator()
    before = content(given)
    with pytest.raises(OutOfMemoryError, match=f"mode '{mode}', which tunes"):
        run(scene, scene.cut(at=(1,)), given, Hungry(scene), settings=settings(mode=mode))
    assert same(given, before)


def test_under_inference_mode():
    scene = Scene()
    masks = scene.cut()
    with torch.inference_mode():
        given = propagator()
        result = run(scene, masks, given)
    assert result.report.mode == "weights" and result.report.steps > 0


def test_paper_mode_takes_a_step_for_every_frame_and_every_weight(monkeypatch):
    scene = Scene(count=4)
    given = propagator()
    rates = []
    adam = torch.optim.Adam

    def watched(parameters, lr):
        rates.append((lr, len(list(parameters))))
        return adam(parameters, lr=lr)

    monkeypatch.setattr(paper.torch.optim, "Adam", watched)
    result = run(scene, scene.cut(at=(2,)), given, settings=settings(mode="paper"))
    assert rates == [(1e-6, len(list(given.network.parameters())))]
    assert result.report.steps == 2 * 3 and result.report.mode == "paper"
    assert "contextual loss (Eq. 8) was left out" in result.report.text()
    assert result.propagator is not given


@pytest.mark.parametrize(("fixed", "kept", "told"), [([0], 0, False), ([0, 2], 0, True), ([], 1, True)])
def test_paper_mode_tells_that_it_keeps_to_nothing_but_the_first_mask(fixed, kept, told):
    scene = Scene(count=4)
    options = {"settings": settings(mode="paper", epochs=1), "fixed": fixed, "kept": kept * (1 - scene.true)}
    result = run(scene, scene.cut(at=(2,)), propagator(), **options)
    assert ("first mask alone: frames painted again, and what is to stay, do not count" in result.report.text()) == told


def test_a_time_budget_ends_paper_mode_within_a_step(monkeypatch):
    """A clock that gains a second with every reading; whatever it ends in, nothing was changed."""
    from ciri.refinement import clock

    scene = Scene(count=3)
    masks, given = scene.cut(at=(1,)), propagator()
    before = content(given)
    now = [0.0]

    def tick():
        now[0] += 1
        return now[0]

    monkeypatch.setattr(clock.time, "perf_counter", tick)
    budgets = (0, 3, 6, 9, 12)
    for budget in budgets:
        now[0] = 0
        result = run(scene, masks, given, settings=settings(mode="paper", epochs=1, time_budget=budget))
        assert result.report.outcome == f"The time budget of {budget} s ended before the propagator was tuned."
        assert result.masks is masks and result.propagator is given and same(given, before)
        assert now[0] <= budget + 6
    unlimited = run(scene, masks, given, settings=settings(mode="paper", epochs=1))
    assert now[0] > budgets[-1] and unlimited.report.mode == "paper" and unlimited.propagator is not given
