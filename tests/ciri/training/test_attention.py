"""Training of the attention network: losses and figures against closed forms, and a run that goes on."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
import torch

from ciri.errors import CheckpointError, TrainingError
from ciri.inactivation.attention_network import SHIPPED, AttentionConfig, AttentionNetwork, load_attention
from ciri.training import attention as training
from ciri.training.attention import Bank, Batch, Settings, attention_losses, train_attention
from ciri.training.attention_data import Example, fill_folder, load, unpack, worsened
from ciri.training.attention_report import validate
from ciri.training.masks import wrong_masks

_spec = importlib.util.spec_from_file_location("pack", pathlib.Path(__file__).with_name("test_data.py"))
pack = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pack)

SMALL = AttentionConfig(8, 8, 8, 8, 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pack.write_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def samples(data, tmp_path_factory):
    """Examples of three scenes to train on and of two that are held back."""
    folder = tmp_path_factory.mktemp("examples")
    for held_back, scenes in ((True, 2), (False, 3)):
        fill_folder(folder, data, seed=1, held_back=held_back, scenes=scenes, size=(64, 96), length=6)
    return folder


def settings(data, out, samples, **more):
    usual = dict(data=data, out=out, keep=samples, steps=4, batch=2, scenes=3, held=2, workers=0, look_every=2)
    return Settings(**{**usual, **dict(log_every=1, window=(48, 64), size=(64, 96), length=6, config=SMALL), **more})


def example(predicted, target, shadow, region=None):
    """One example (h, w) of given maps, and grey pictures."""
    h, w = target.shape
    evidence = np.full((17, h, w), 128, np.uint8)
    evidence[9:13] = 0
    evidence[15] = predicted * 255
    evidence[16] = 255 if region is None else region * 255
    return Example(evidence, np.stack([target, shadow]).astype(np.uint8) * 255)


def test_examples_can_be_made_again_and_hold_what_was_seen(data, samples, tmp_path):
    files = sorted(samples.glob("train_1_*.npz"))
    assert len(files) == 3
    fill_folder(tmp_path, data, seed=1, held_back=False, scenes=3, part=(1, 3), size=(64, 96), length=6)
    assert [f.name for f in tmp_path.iterdir()] == ["train_1_00001.npz"]
    for one, other in zip(load(files[1]), load(tmp_path / "train_1_00001.npz"), strict=True):
        assert (one.evidence == other.evidence).all() and (one.answer == other.answer).all()
    every = [e for f in files for e in load(f)]
    assert every
    for e in every:
        seen = unpack(torch.from_numpy(e.evidence[None]))
        assert seen.frame.shape[1] == 3 and set(np.unique(e.evidence[16])) <= {0, 255}
        outside = (seen.region == 0).expand(-1, 3, -1, -1)
        assert not seen.before[outside].any() and not seen.after[outside].any()


def test_errors_are_put_where_they_are_and_nowhere_else():
    predicted = torch.zeros(6, 1, 40, 60)
    predicted[:, :, 10:30, 20:40] = 0.8
    changed = worsened(predicted, 2, np.random.default_rng(4))
    assert torch.equal(changed[2], predicted[2])
    assert changed.min() >= 0 and changed.max() <= 1 and not torch.equal(changed, predicted)
    wrong = torch.from_numpy(wrong_masks((predicted[:, 0] > 0.5).numpy(), np.random.default_rng(4)))[:, None]
    apart = (wrong != (predicted > 0.5)).float()
    apart[2] = 0
    near = torch.nn.functional.max_pool2d(apart, 9, 1, 4) > 0
    assert torch.equal(changed[~near], predicted[~near])
    solid = -torch.nn.functional.max_pool2d(-apart, 9, 1, 4) > 0
    assert torch.allclose(changed[solid], wrong.float()[solid], atol=1e-4)


def test_losses_of_a_network_that_says_nothing_are_those_of_the_prediction():
    torch.manual_seed(0)
    target = torch.zeros(2, 1, 32, 32)
    target[:, :, 8:24, 8:24] = 1
    values = torch.rand(2, 17, 32, 32)
    values[:, 15:16] = 0.8 * target + 0.1
    values[:, 16] = 1
    batch = Batch(unpack(values * 255), target, torch.zeros_like(target))
    losses = attention_losses(AttentionNetwork(SMALL), batch)
    weight = 1 + 0.5 * target
    entropy = -torch.log(torch.where(target > 0, values[:, 15:16], 1 - values[:, 15:16]))
    assert torch.allclose(losses["target"], (entropy * weight).sum() / weight.sum(), atol=1e-4)
    assert torch.allclose(losses["shadow"], torch.nn.functional.softplus(torch.tensor(-4.0)), atol=1e-4)
    assert torch.allclose(losses["fused"], 0.3 * entropy.mean(), atol=1e-4)


def test_validation_counts_what_changed():
    """A network that moves everything down one step: what was half sure goes, what was quite sure stays."""
    network = AttentionNetwork(SMALL)
    with torch.no_grad():
        network.out.bias[:4] = -2.0
    target, predicted = np.zeros((32, 32)), np.zeros((32, 32))
    target[8:24, 8:24] = 1
    predicted[8:24, 8:20] = 1  # a quarter missed
    predicted[8:24, 24:28] = 0.6  # and as much in vain
    got = validate(network, [example(predicted, target, np.zeros((32, 32)))])
    assert got["predicted IoU"] == pytest.approx(192 / 320) and got["attended IoU"] == pytest.approx(192 / 256)
    assert got["recovered"] == 0 and got["withdrawn"] == 1 and got["spoilt"] == 0 and got["false shadow"] == 0


def test_training_learns_and_a_run_goes_on_where_it_was(data, samples, tmp_path):
    target = train_attention(settings(data, tmp_path / "run", samples, steps=2))
    assert load_attention(target).config == SMALL
    train_attention(settings(data, tmp_path / "run", samples))
    rows = (tmp_path / "run" / "curves.csv").read_text().splitlines()
    steps = [int(row.split(",")[0]) for row in rows[1:] if ",target," in row]
    assert steps == [1, 2, 3, 4]
    assert list((tmp_path / "run" / "samples").glob("*.jpg"))
    with pytest.raises(TrainingError, match="holds another run"):
        train_attention(settings(data, tmp_path / "run", samples, seed=2))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["what"] == "attention_lite"


def test_steps_lower_the_loss(data, samples, tmp_path):
    trainer = training.Trainer(settings(data, tmp_path, samples, rate=3e-3))
    bank = Bank(settings(data, tmp_path, samples), held_back=False)
    bank.refresh(3)
    batch = bank.draw(4, np.random.default_rng(0))

    def loss():
        with torch.no_grad():
            return float(sum(attention_losses(trainer.network, batch).values()))

    before = loss()
    for done in range(30):
        trainer.step(batch, 200 + done, 0.6)
    assert loss() < 0.8 * before


def test_the_curriculum_goes_from_true_to_predicted_masks(data, samples, tmp_path):
    shown = []

    class Spy(AttentionNetwork):
        def forward(self, evidence):
            shown.append(evidence.predicted.clone())
            return super().forward(evidence)

    trainer = training.Trainer(settings(data, tmp_path, samples))
    trainer.network.__class__ = Spy
    bank = Bank(settings(data, tmp_path, samples), held_back=False)
    bank.refresh(3)
    middle = (training.CURRICULUM.start + training.CURRICULUM.end) / 2 / training.EPOCHS
    for progress, alpha in ((0.0, 1.0), (middle, 0.5), (1.0, 0.0)):
        batch = bank.draw(2, np.random.default_rng(1))
        predicted, target = batch.evidence.predicted.clone(), batch.target
        trainer.step(batch, 0, progress)
        assert torch.allclose(shown.pop(), alpha * target + (1 - alpha) * predicted, atol=1e-6)


def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="does not exist"):
        train_attention(settings(tmp_path / "none", tmp_path / "run", tmp_path))


@pytest.mark.parametrize("left", [0, 30, 1000])
def test_a_torn_copy_of_kept_examples_is_named(samples, tmp_path, left):
    whole = next(file for file in sorted(samples.iterdir()) if load(file))
    torn = tmp_path / whole.name
    torn.write_bytes(whole.read_bytes()[:left])
    with pytest.raises(TrainingError, match=f"{whole.name} is damaged; delete it"):
        load(torn)


def test_weights_of_other_sizes_are_refused(data, samples, tmp_path):
    with pytest.raises(CheckpointError, match="does not hold the weights of attention_lite in these sizes.*of another"):
        training.Trainer(settings(data, tmp_path, samples, init=SHIPPED))
