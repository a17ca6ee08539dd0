import importlib.util
import pathlib

import pytest
import torch
from safetensors import SafetensorError, safe_open

from ciri.errors import CheckpointError, TrainingError
from ciri.inpainting.lite import SHIPPED, load_lite
from ciri.inpainting.lite_network import LiteConfig
from ciri.training.backbone import BackboneTrainer, Settings, candidate_maps, train_backbone
from ciri.training.sample_sources import SampleFiles, SamplePool, SampleStream
from ciri.training.samples import Batch, random_part
from tests.pretended_gpu import pretended_gpu

_spec = importlib.util.spec_from_file_location("pack", pathlib.Path(__file__).with_name("test_data.py"))
pack = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pack)

SMALL = LiteConfig(half=8, quarter=8, eighth=16, sixteenth=16, deep=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pack.write_pack(tmp_path_factory.mktemp("pack"))


def settings(data, out, **more):
    return Settings(
        **{
            **dict(data=data, out=out, steps=2, batch=2, window=3, height=32, width=48, length=4, pool=4),
            **dict(crop=(32, 32)),
            **dict(config=SMALL, held_back=2, look_every=2, log_every=1),
            **more,
        }
    )


@pytest.mark.parametrize("variant", ["ciri", "no-curriculum", "hard-mask"])
def test_a_smoke_run_leaves_weights_curves_and_samples(data, tmp_path, variant):
    weights = train_backbone(settings(data, tmp_path, variant=variant))
    assert load_lite(weights).network.config.gate == (variant != "hard-mask")
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
        assert all(file.get_tensor(name).dtype == torch.float16 for name in file.keys())
    assert metadata["steps"] == "2" and metadata["variant"] == variant
    assert (tmp_path / "samples/0000002.png").exists() and (tmp_path / "curves.png").exists()
    series = read_curves(tmp_path)
    assert {"l1", "psnr", "held back true filled", "held back predicted gain"} <= set(series)


def test_a_run_on_a_graphics_card(data, tmp_path):
    with pretended_gpu() as device:
        assert train_backbone(settings(data, tmp_path, device=str(device))).is_file()


def read_curves(path):
    from ciri.training.curves import Curves

    return Curves(path / "curves.csv").read()


def test_a_run_in_two_parts_sees_new_samples_and_goes_on(data, tmp_path):
    train_backbone(settings(data, tmp_path, steps=2))
    train_backbone(settings(data, tmp_path, steps=4))
    assert [step for step, _ in read_curves(tmp_path)["l1"]] == [1, 2, 3, 4]


def test_a_seed_fixes_the_losses(data, tmp_path):
    losses = []
    for name in "ab":
        train_backbone(settings(data, tmp_path / name, steps=3))
        losses.append(read_curves(tmp_path / name)["l1"])
    assert losses[0] == losses[1]


def test_the_loss_falls_on_one_batch(data, tmp_path):
    trainer = BackboneTrainer(settings(data, tmp_path, rate=3e-3))
    pool = SamplePool(SampleStream(data, (32, 48), 4, seed=1), workers=0, capacity=4, device="cpu")
    pool.wait(4)
    batch = pool.draw(4, 3, (32, 48), torch.Generator().manual_seed(0), 0.0)
    losses = [float(trainer.step(batch, 0.0, 300 + n)["l1"]) for n in range(30)]
    assert min(losses[-5:]) < 0.9 * losses[0]


@pytest.mark.parametrize("half", [False, True], ids=["full", "half"])
def test_the_adversarial_polish_trains_both(data, tmp_path, monkeypatch, half):
    if half:  # as on a GPU
        monkeypatch.setattr(BackboneTrainer, "autocast", lambda self: torch.autocast("cpu", torch.bfloat16))
    trainer = BackboneTrainer(settings(data, tmp_path, adversarial_from=0.5))
    before = trainer.critic.layers[0].parametrizations.weight.original.clone()
    pool = SamplePool(SampleStream(data, (64, 64), 4, seed=1), workers=0, capacity=4, device="cpu")
    values = trainer.step(pool.draw(2, 3, (64, 64), torch.Generator().manual_seed(0), 0.0), 0.9, 300)
    assert {"critic", "adversarial"} <= set(values) and all(torch.isfinite(torch.as_tensor(v)) for v in values.values())
    assert not torch.equal(before, trainer.critic.layers[0].parametrizations.weight.original)


def test_the_curriculum_moves_from_true_to_predicted_masks(data):
    stream = SampleStream(data, (32, 48), 4, seed=2, wrong=1.0)
    batch = Batch.of([stream.sample(stream.maker(), 3)])
    features = torch.rand(4, 5, 4, 6)
    first = candidate_maps(batch, features, 0.0)
    assert torch.equal(first[0], batch.true) and torch.equal(first[1], batch.true)
    last = candidate_maps(batch, features, 1.0)
    assert torch.equal(last[0], batch.predicted) and not torch.equal(last[1], batch.true)
    half = candidate_maps(batch, features, 10 / 30)[0]
    assert torch.allclose(half, 0.5 * batch.true + 0.5 * batch.predicted)


def test_wrong_copies_appear_with_the_curriculum_only(data, tmp_path):
    shares = [BackboneTrainer(settings(data, tmp_path)).wrong_share(p) for p in (0.0, 0.35, 0.6, 1.0)]
    assert shares[:2] == [0, 0] and 0 < shares[2] <= shares[3] == 0.7
    assert BackboneTrainer(settings(data, tmp_path, variant="no-curriculum")).wrong_share(1.0) == 0


def test_a_part_is_cut_out_of_everything_alike(data):
    stream = SampleStream(data, (32, 48), 4, seed=2)
    sample = stream.sample(stream.maker(), 1)
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        part = random_part(sample.masks, 2, (16, 24), random)
        cut = sample.part(part)
        assert cut.images.shape == (2, 15, 16, 24) and cut.cues.shape == (2, 4, 16, 24)
        assert part.frames == sorted(set(part.frames))
        whole = sample.images[part.frames, :, part.rows, part.columns]
        assert torch.equal(cut.images, whole.flip(-1) if part.flip else whole)
        if sample.masks[part.frames, 0].any():
            assert sample.masks[:, 0, part.rows, part.columns].any()
    everything = random_part(sample.masks, 9, (99, 99), random)
    assert sample.part(everything).images.shape == sample.images.shape


def test_kept_samples_are_those_of_the_stream_and_are_made_once(data, tmp_path):
    stream = SampleStream(data, (32, 48), 4, seed=3, wrong=0.5)
    kept = SampleFiles(stream, tmp_path, 4)
    written = {f.name: f.stat().st_mtime_ns for f in tmp_path.iterdir()}
    assert len(written) == 4
    maker = stream.maker()
    there = {tuple(stream.sample(maker, n).images.flatten().tolist()) for n in range(4)}
    random = torch.Generator().manual_seed(0)
    batch = kept.draw(8, 4, (32, 48), random, 0.5)
    assert batch.frames.shape == (8, 4, 3, 32, 48)
    images = [batch.frames, batch.clean, batch.guide.base, batch.guide.before, batch.guide.after]
    drawn = (torch.cat(images, 2) * 255).round().byte()
    assert all({tuple(x.flatten().tolist()), tuple(x.flip(-1).flatten().tolist())} & there for x in drawn)
    # a longer run makes only what is missing, another stream its own
    SampleFiles(stream, tmp_path, 5)
    SampleFiles(SampleStream(data, (32, 48), 4, seed=4, wrong=0.5), tmp_path, 1)
    now = {f.name: f.stat().st_mtime_ns for f in tmp_path.iterdir()}
    assert len(now) == 6 and written.items() <= now.items()


def test_a_run_on_kept_samples_goes_on(data, tmp_path):
    for steps in (1, 2):
        train_backbone(settings(data, tmp_path / "run", steps=steps, keep=tmp_path / "kept"))
    assert len(list((tmp_path / "kept").iterdir())) == 4
    assert [step for step, _ in read_curves(tmp_path / "run")["l1"]] == [1, 2]


def test_a_torn_copy_of_kept_samples_is_named(data, tmp_path):
    stream = SampleStream(data, (32, 48), 4, seed=1)
    file = SampleFiles(stream, tmp_path, 1).file(0)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(TrainingError, match=f"{file.name} is damaged; delete it"):
        SampleFiles(stream, tmp_path, 1)


def test_an_unknown_variant_is_refused(data, tmp_path):
    with pytest.raises(TrainingError, match="no-curriculum"):
        train_backbone(settings(data, tmp_path / "run", variant="magic"))
    # nor does it become the folder's: the same command, typed correctly, would be refused
    assert not (tmp_path / "run").exists()


def test_weights_of_other_sizes_are_refused(data, tmp_path):
    with pytest.raises(CheckpointError, match="does not hold the weights of backbone_lite in these sizes.*of another"):
        train_backbone(settings(data, tmp_path / "run", init=SHIPPED))
    assert not (tmp_path / "run").exists()


def test_a_full_pool_waits_until_its_samples_were_used(data):
    """Two held, each to be drawn three times: a third is only taken in after six draws."""
    stream = SampleStream(data, (32, 48), 4, seed=1)
    pool = SamplePool(stream, workers=1, capacity=2, device="cpu", reuse=3)
    try:
        pool.wait(2)
        random = torch.Generator().manual_seed(0)
        for _ in range(2):
            pool.draw(2, 4, (32, 48), random, 0.5)
            assert pool.made == 2
        pool.draw(2, 4, (32, 48), random, 0.5)
        pool.wait(3)
        assert len(pool.samples) == 2
    finally:
        pool.close()


def test_a_full_disk_does_not_end_a_training(data, tmp_path, monkeypatch):
    weights = train_backbone(settings(data, tmp_path, steps=1, look_every=1))
    whole, said = weights.read_bytes(), []

    def full(*anything, **more):
        raise OSError(28, "No space left on device")

    def stop(done, total):
        if done == 2:
            # space again, before the weights are exported for good
            monkeypatch.undo()

    monkeypatch.setattr("ciri.checkpoints.save_file", full)
    monkeypatch.setattr(torch, "save", full)
    train_backbone(settings(data, tmp_path, steps=2, look_every=1), say=said.append, on_step=stop)
    assert any("The weights of step 2 could not be written" in note and "went on" in note for note in said)
    assert weights.read_bytes() != whole and load_lite(weights)
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["step_00000001.pt", "step_00000002.pt"]


def test_weights_that_cannot_be_written_at_the_end_are_named(data, tmp_path, monkeypatch):
    from ciri import checkpoints

    written = checkpoints.save_file

    def full(*anything, **more):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(CheckpointError, match="trained weights could not be written .*No space left.*Make room"):
        train_backbone(settings(data, tmp_path, steps=2, look_every=1))
    monkeypatch.setattr(checkpoints, "save_file", written)
    # the same command again: nothing is left to be trained, the weights are written
    assert load_lite(train_backbone(settings(data, tmp_path, steps=2, look_every=1)))
    assert [step for step, _ in read_curves(tmp_path)["l1"]] == [1, 2]


def test_predictions_are_a_part_of_the_wrong_masks(data):
    plain, mixed = (SampleStream(data, (48, 64), 4, seed=4, wrong=1.0, predictions=name) for name in ("", "flow"))
    maker, other = plain.maker(), 0
    for number in range(8):
        a, b = plain.sample(maker, number), mixed.sample(maker, number)
        assert torch.equal(a.images[:, :6], b.images[:, :6]) and torch.equal(a.masks[:, 0], b.masks[:, 0])
        other += not torch.equal(a.masks[:, 1], b.masks[:, 1])
        assert torch.equal(b.masks, mixed.sample(maker, number).masks)
    assert other >= 2


def test_clips_that_are_shorter_than_the_window_are_played_forth_and_back(data, tmp_path):
    # the clips have 6 frames
    assert train_backbone(settings(data, tmp_path, steps=1, window=9, length=12)).exists()
