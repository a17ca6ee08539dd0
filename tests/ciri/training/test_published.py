"""The recipe for published backbones on generated clips and seeded weights of the smallest size."""

import copy
import dataclasses
import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ciri.checkpoints import write_safetensors
from ciri.errors import CheckpointError, TrainingError
from ciri.frames import grow_mask
from ciri.inactivation.features import learned_beta
from ciri.inpainting.dstt import DSTT
from ciri.inpainting.e2fgvi import E2FGVIHQ
from ciri.inpainting.load import NETWORKS, load_backbone
from ciri.training import published_trainer
from ciri.training.curves import Curves
from ciri.training.distributed import Team
from ciri.training.published import Settings, train_published
from ciri.training.published_data import Numbers, Windows, WindowSamples, choose_frames, load_windows
from ciri.training.published_trainer import FUSION_RATE, PublishedTrainer, candidate_maps
from tests.ciri.training.tiny_network import Tiny, write_tiny
from tests.parity.seeded_weights import seeded_state_dict

_spec = importlib.util.spec_from_file_location("pack", pathlib.Path(__file__).with_name("test_data.py"))
pack = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pack)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pack.write_vos(tmp_path_factory.mktemp("vos"), clips=3, size=(60, 108))


def seeded(network, file):
    own = network.state_dict()
    drawn = seeded_state_dict(own, seed=1)
    drawn.update({name: value for name, value in own.items() if name.endswith((".mean", ".std"))})
    for name in ("sc.embedding.weight", "vec2patch.embedding.weight"):
        if name in drawn:
            drawn[name] *= 0.05
    write_safetensors(file, drawn)
    return file


@pytest.fixture(scope="module")
def hq(tmp_path_factory):
    return seeded(E2FGVIHQ(), tmp_path_factory.mktemp("hq") / "e2fgvi_hq.safetensors")


@pytest.fixture(scope="module")
def dstt(tmp_path_factory):
    return seeded(DSTT(), tmp_path_factory.mktemp("dstt") / "dstt.safetensors")


def settings(model, init, data, out, **more):
    small = dict(batch=1, local=2, references=1, length=6, height=60, width=108, held_back=1, log_every=1)
    return Settings(model=model, init=init, data=data, out=out, **{**small, **more})


def test_two_steps_of_e2fgvi_hq_leave_a_file_that_gates(hq, data, tmp_path):
    weights = train_published(settings("e2fgvi_hq", hq, data, tmp_path, epochs=2, steps=2, look_every=2))
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    assert metadata["trained_for"] == "inactivation" and json.loads(metadata["gate_points"]) == ["out"]
    assert metadata["steps"] == "2" and "non-commercial" in metadata["licence"]
    backbone = load_backbone(weights, expected=("e2fgvi_hq",), precision="fp32")
    assert backbone.resolved_mode() == "gate" and backbone.network.gate_points == ("out",)
    assert learned_beta(backbone) == pytest.approx(float(metadata["beta"]), abs=1e-6)
    before, after = load_backbone(hq, precision="fp32").network, backbone.network
    for part in ("encoder", "transformer", "decoder", "update_spynet", "feat_prop_module", "sc"):
        pairs = zip(getattr(before, part).parameters(), getattr(after, part).parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs), part
    frames, mask = torch.rand(2, 3, 60, 108), torch.zeros(2, 1, 60, 108)
    mask[:, :, 20:40, 30:60] = 1
    filled = backbone.inpaint(frames, mask)
    assert filled.shape == frames.shape and torch.isfinite(filled).all()
    series = Curves(tmp_path / "curves.csv").read()
    assert {"l1", "flow", "critic", "adversarial", "beta", "held back psnr"} <= set(series)
    assert [step for step, _ in series["l1"]] == [1, 2] and (tmp_path / "samples/0000002.png").exists()
    shutil.rmtree(tmp_path / "checkpoints")  # half a gigabyte


@pytest.fixture(scope="module")
def trainer(dstt, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return PublishedTrainer(settings("dstt", dstt, data, out, height=48, width=72, epochs=30, batch=2))


@pytest.fixture(scope="module")
def samples(data):
    return WindowSamples(data, (48, 72), 6, 2, 1, seed=3)


def batch(samples, *numbers):
    parts = [samples[number] for number in numbers]
    return Windows.of({name: torch.stack([part[name] for part in parts]) for name in parts[0]}, "cpu")


def test_the_curriculum_shows_true_masks_then_predictions_and_attention(trainer, samples):
    windows = batch(samples, 0, 1)
    grown = grow_mask(windows.true.flatten(0, 1), 4).view_as(windows.true)
    beta = trainer.fusion.beta.detach()
    with torch.no_grad():
        output, first, flows = trainer.fill(windows, 5 / 30)
        last = trainer.fill(windows, 1.0)[1]
        frames = torch.cat([windows.frames.flatten(0, 1), windows.painted.flatten(0, 1)]) * 2 - 1
        features = trainer.network.encode(frames)["out"]
        predicted, attention = candidate_maps(windows, features, 1.0)
        between = candidate_maps(windows, features, 10 / 30)
    assert output.shape == (2, 3, 3, 48, 72) and flows is None
    assert torch.allclose(first, grown)
    assert torch.equal(predicted, windows.predicted)
    fused = beta * predicted + (1 - beta) * attention
    assert torch.allclose(last, grow_mask(fused.flatten(0, 1), 4).view_as(last))
    # half way of the first branch (5 to 15), two thirds of the second (5 to 20)
    assert torch.allclose(between[0], (windows.true + windows.predicted) / 2)
    assert torch.allclose(between[1], torch.lerp(attention, windows.true, 2 / 3), atol=1e-6)


def test_where_everything_is_inactivated_the_frames_do_not_matter(trainer, samples):
    windows = batch(samples, 0)
    for name in ("true", "predicted", "painted_mask"):
        setattr(windows, name, torch.ones_like(getattr(windows, name)))
    with torch.no_grad():
        one = trainer.fill(windows, 0.0)[0]
        windows.frames = 1 - windows.frames
        assert torch.equal(one, trainer.fill(windows, 0.0)[0])


def test_the_learning_rate_falls_to_a_tenth_after_20_epochs(trainer):
    assert [trainer.rate(epoch / 30) for epoch in (0, 19.9, 20.1, 30)] == pytest.approx([2e-5, 2e-5, 2e-6, 2e-6])
    assert {group["pace"] for group in trainer.optimiser.param_groups} == {1.0, FUSION_RATE}


def test_the_losses_are_equations_4_to_6(trainer, samples):
    windows = batch(samples, 2, 3)
    target = windows.clean * 2 - 1
    critic = copy.deepcopy(trainer.critic)
    with torch.no_grad():
        output = trainer.fill(windows, 0.5)[0]
        l1 = (output - target).abs().mean()
        # in the form with logarithms: log D(x) + log(1 - D(z)), maximised
        real, fake = critic(target).sigmoid(), critic(output).sigmoid()
        judged = -real.log().mean() - (1 - fake).log().mean()
    beta, weight = trainer.fusion.beta.item(), trainer.network.decoder[0].conv.weight.clone()
    logged = trainer.step(windows, 0.5)
    assert float(logged["l1"]) == pytest.approx(float(l1), rel=1e-4)
    assert float(logged["critic"]) == pytest.approx(float(judged), rel=1e-4)
    with torch.no_grad():
        fooled = -trainer.critic.eval()(output).sigmoid().log().mean()
        trainer.critic.train()
    assert float(logged["adversarial"]) == pytest.approx(float(fooled), rel=0.05)
    assert trainer.fusion.beta.item() != beta and not torch.equal(weight, trainer.network.decoder[0].conv.weight)


def test_flow_of_a_clean_clip_is_what_the_weights_knew(hq, data, tmp_path):
    trainer = PublishedTrainer(settings("e2fgvi_hq", hq, data, tmp_path, adversarial=0.0))
    samples = WindowSamples(data, (60, 108), 6, 2, 1, seed=3)
    windows = batch(samples, 0)
    windows.frames, windows.painted_mask = windows.clean, torch.ones_like(windows.painted_mask)
    windows.true = windows.predicted = torch.zeros_like(windows.true)
    with torch.no_grad():
        _, inactivation, flows = trainer.fill(windows, 0.0)
        assert inactivation.max() == 0 and flows.shape == (1, 1, 2, 2, 15, 27)
        assert float(trainer._flow_loss(flows, windows.clean * 2 - 1)) < 1e-5
        assert float(trainer._flow_loss(flows + 0.25, windows.clean * 2 - 1)) == pytest.approx(0.5, rel=1e-3)
        for parameter in trainer.network.update_spynet.parameters():
            parameter.zero_()
        assert float(trainer._flow_loss(flows, windows.clean * 2 - 1)) < 1e-5  # it is the first flow that counts
        assert float(next(trainer.network.update_spynet.parameters()).abs().sum()) == 0


def test_windows_are_local_frames_and_others(samples):
    for seed in range(20):
        chosen = choose_frames(9, 4, 3, np.random.default_rng(seed))
        near, far = chosen[:4], chosen[4:]
        assert near == list(range(near[0], near[0] + 4)) and far == sorted(far)
        assert len(set(chosen)) == 7 and 0 <= min(chosen) and max(chosen) < 9
    windows = batch(samples, 5)
    assert windows.frames.shape == (1, 3, 3, 48, 72) and windows.painted.shape == (1, 1, 3, 48, 72)
    assert windows.painted_mask.sum() > 0 and set(windows.predicted.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(batch(samples, 5).predicted, windows.predicted)


def test_a_team_shares_the_batches_of_one_process(samples):
    alone = list(Numbers(3, 6, 4, Team(0, 1, "cpu")))
    shared = [list(Numbers(3, 6, 2, Team(rank, 2, "cpu"))) for rank in (0, 1)]
    assert [a + b for a, b in zip(*shared, strict=True)] == alone
    (loaded,) = load_windows(samples, Numbers(1, 2, 2, Team(1, 2, "cpu")), 0)
    assert torch.equal(loaded["frames"][1], samples[7]["frames"])


def test_worker_processes_make_the_same_windows_in_the_same_order(samples):
    numbers = Numbers(2, 5, 1, Team(0, 1, "cpu"))
    own, theirs = (list(load_windows(samples, numbers, workers)) for workers in (0, 2))
    assert len(own) == len(theirs) == 3
    for a, b in zip(own, theirs, strict=True):
        assert set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_bad_settings_are_refused(hq, dstt, data, tmp_path):
    def run(model, init, **more):
        train_published(settings(model, init, data, tmp_path / "run", **more))

    with pytest.raises(TrainingError, match="choose one of e2fgvi"):
        run("magic", hq)
    with pytest.raises(CheckpointError, match="holds DSTT weights; expected E2FGVI-HQ"):
        run("e2fgvi_hq", dstt)
    with pytest.raises(TrainingError, match="no gate point x7; it has half, x0, out"):
        run("dstt", dstt, gate_points=("x7",))
    with pytest.raises(Exception, match="multiples of"):
        run("dstt", dstt, height=50)
    with pytest.raises(TrainingError, match="do not fit into composites of 6"):
        run("dstt", dstt, local=5, references=3)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setitem(NETWORKS, "tiny", Tiny)
    return write_tiny(tmp_path / "tiny.safetensors")


def test_a_run_in_two_parts_is_the_run_in_one(tiny, data, tmp_path):
    def run(name, steps, **more):
        return train_published(settings("tiny", tiny, data, tmp_path / name, epochs=4, steps=steps, **more))

    def losses(name):
        return Curves(tmp_path / name / "curves.csv").read()

    whole = run("whole", 4)
    run("halved", 2)
    halved = run("halved", 4)
    for name in ("l1", "critic", "adversarial", "gradient norm", "beta"):
        assert losses("whole")[name] == losses("halved")[name] and len(losses("whole")[name]) == 4
    one, two = (load_backbone(file, expected=("tiny",), precision="fp32").network for file in (whole, halved))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    with pytest.raises(TrainingError, match="holds another run: 'seed' is 1 there and 2 here"):
        run("whole", 4, seed=2)


def test_a_run_whose_newest_checkpoint_is_torn_goes_on_from_the_one_before(tiny, data, tmp_path):
    said = []

    def run(name, steps):
        train_published(settings("tiny", tiny, data, tmp_path / name, epochs=4, steps=steps), say=said.append)
        return Curves(tmp_path / name / "curves.csv").read()["l1"]

    whole = run("whole", 4)
    run("torn", 1)
    run("torn", 2)
    newest = tmp_path / "torn/checkpoints/step_00000002.pt"
    newest.write_bytes(newest.read_bytes()[:200])
    assert run("torn", 4) == whole and len(whole) == 4
    assert any("step_00000002.pt is not readable" in note for note in said)


def test_what_was_trained_here_can_be_trained_on(tiny, data, tmp_path):
    first = train_published(settings("tiny", tiny, data, tmp_path / "first", steps=2))
    trainer = PublishedTrainer(settings("tiny", first, data, tmp_path))
    assert trainer.fusion.beta.item() == pytest.approx(learned_beta(load_backbone(first, expected=("tiny",))))
    assert len(trainer.optimiser.param_groups[1]["params"]) == 1


def test_a_loss_that_is_no_number_stops_the_run(tiny, data, tmp_path, monkeypatch):
    run = settings("tiny", tiny, data, tmp_path / "run", epochs=9)
    train_published(dataclasses.replace(run, steps=1))
    monkeypatch.setattr(published_trainer, "adversarial_loss", lambda scores: scores.sum() * float("nan"))
    with pytest.raises(TrainingError, match="became nan before step 2.*last good state is step 1 in"):
        train_published(run)


def test_a_beta_that_is_none_is_refused(dstt, tmp_path):
    state = load_backbone(dstt, precision="fp32").network.state_dict()
    for beta in ("1.5", "much"):
        write_safetensors(tmp_path / "odd.safetensors", state, {"beta": beta})
        with pytest.raises(CheckpointError, match="expected a share between 0 and 1"):
            load_backbone(tmp_path / "odd.safetensors")


def test_the_command_asks_for_the_papers_numbers(monkeypatch, data, tmp_path):
    from ciri import cli
    from ciri.training import published

    asked = []
    monkeypatch.setattr(published, "train_published", lambda settings, **more: asked.append(settings) or tmp_path)
    common = [
        "train",
        "backbone",
        "--data",
        str(data),
        "--out",
        str(tmp_path),
        "--model",
        "e2fgvi_hq",
        "--device",
        "cpu",
    ]
    assert cli.main([*common, "--init", "E2FGVI-HQ-CVPR22.pth", "--gate-points", "x0,out", "--epochs", "2"]) in (
        0,
        None,
    )
    (made,) = asked
    assert (made.rate, made.adversarial, made.decay_epochs, made.epochs) == (2e-5, 0.01, 20, 2.0)
    assert (made.batch, made.local, made.references, made.height, made.width) == (8, 5, 3, 240, 432)
    assert made.gate_points == ("x0", "out") and made.steps is None
    assert cli.main(common) == 2  # no --init


def test_clips_that_are_shorter_than_a_window_are_played_forth_and_back(data):
    samples = WindowSamples(data, (48, 72), 15, 8, 4, seed=3)  # the clips have 6 frames
    windows = batch(samples, 0)
    assert windows.frames.shape == (1, 12, 3, 48, 72) and windows.true.sum() > 0


def test_a_single_scene_is_trained_on_where_nothing_is_held_back(tiny, tmp_path):
    data = pack.write_vos(tmp_path / "vos", clips=1, size=(60, 108))
    with pytest.raises(TrainingError, match="a single scene"):
        train_published(settings("tiny", tiny, data, tmp_path / "run", steps=1))
    assert train_published(settings("tiny", tiny, data, tmp_path / "run", steps=1, held_back=0)).is_file()
