"""Training of what corrects painted masks: ways of painting against geometry, losses against closed forms, a run."""

import importlib.util
import pathlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from ciri import cli
from ciri.errors import CheckpointError, TrainingError
from ciri.propagation.snap import Snapper, network_with
from ciri.training import painting, snap_data
from ciri.training.film import Dice
from ciri.training.painting import closed, opened, painted, signed_distance, strokes, wavering
from ciri.training.propagator import banks
from ciri.training.snap import Settings, snap_losses, train_snap
from ciri.training.snap_data import Batch, Pictures

_spec = importlib.util.spec_from_file_location("pack", pathlib.Path(__file__).with_name("test_data.py"))
pack = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pack)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pack.write_pack(tmp_path_factory.mktemp("pack"))


def settings(data, out, **more):
    usual = dict(data=data, out=out, steps=2, batch=2, size=(64, 96), window=(64, 96), pool=8, workers=1, log_every=1)
    return Settings(**{**usual, "look_every": 2, **more})


def square(top=20, left=20, side=24, height=64, width=96):
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_distances_are_those_to_the_nearest_pixel_of_the_other_kind():
    mask = square(height=40, width=44, top=12, left=10, side=9)
    ys, xs = np.mgrid[:40, :44]
    expected = np.empty(mask.shape)
    for y, x in np.ndindex(mask.shape):
        other = mask != mask[y, x]
        expected[y, x] = np.hypot(ys[other] - y, xs[other] - x).min() * (1 if mask[y, x] else -1)
    # a 5 x 5 mask of distances is wrong by up to 2 %
    np.testing.assert_allclose(signed_distance(mask), expected, rtol=0.03)
    for all_alike in (np.zeros((4, 4), bool), np.ones((4, 4), bool)):
        assert (np.abs(signed_distance(all_alike)) >= 8).all() and ((signed_distance(all_alike) > 0) == all_alike).all()


def test_an_edge_moves_by_what_it_is_told():
    mask, rng = square(), np.random.default_rng(0)
    wider, narrower = wavering(mask, rng, 5, 0), wavering(mask, rng, -5, 0)
    assert wider[32, 16] and not wider[32, 14] and wider.sum() > mask.sum() > narrower.sum()
    assert narrower[32, 26] and not narrower[32, 23]
    waved = wavering(mask, rng, 4, 4)
    assert (waved & ~wavering(mask, rng, 16, 0)).sum() == 0
    rows = [np.flatnonzero(waved[:, column])[0] for column in range(24, 40)]
    assert len(set(rows)) > 1


def test_a_lasso_fills_bays_and_haste_forgets_thin_parts():
    notched = square()
    notched[20:34, 30:34] = False  # a bay 4 pixels wide
    assert closed(notched, 4)[26, 32] and not closed(notched, 1)[26, 32]
    assert not (notched & ~closed(notched, 4)).any()
    limb = square()
    limb[30:33, 44:60] = True  # 3 pixels thin
    assert not opened(limb, 3)[31, 54] and opened(limb, 1)[31, 54]
    assert not (opened(limb, 3) & ~limb).any()


def test_a_brush_covers_all_and_reaches_no_further_than_its_radius():
    mask = square()
    dabbed = strokes(mask, np.random.default_rng(3), 6)
    assert not (mask & ~dabbed).any()
    assert not (dabbed & ~(signed_distance(mask) > -7)).any() and (dabbed & ~mask).any()


def test_people_paint_in_all_ways_and_never_lose_the_target():
    mask = square(side=30)
    ways = [painted(mask, np.random.default_rng(seed), 1.0) for seed in range(80)]
    shares = np.array([(way & mask).sum() / mask.sum() for way in ways])
    extra = np.array([(way & ~mask).sum() / mask.sum() for way in ways])
    assert shares.min() >= painting.LEAST and shares.min() < 0.95
    assert (extra > 0.5).any() and 4 < sum((way == mask).all() for way in ways) < 30


def test_pictures_are_drawn_reproducibly_enlarged_and_painted_anew(data):
    bank, _ = banks(data, (64, 96), workers=1)
    draws = []
    for _ in range(2):
        pool, dice = Pictures(bank, seed=4, capacity=8, reuse=2), Dice(9, "cpu")
        pool.fill(6)
        draws.append([pool.draw(3, (64, 96), (1.2, 2.0), dice) for _ in range(3)])
    for one, other in zip(*draws, strict=True):
        assert torch.equal(one.frames, other.frames) and torch.equal(one.painted, other.painted)
        assert one.frames.shape == (3, 3, 64, 96) and one.painted.shape == one.truth.shape == (3, 1, 64, 96)
        assert set(one.truth.unique().tolist()) <= {0.0, 1.0} and one.truth.flatten(1).any(1).all()
    # each draw paints in another way
    assert len({tuple(batch.painted.flatten().tolist()) for batch in draws[0]}) == 3
    assert pool.made >= pool.drawn / 2


def test_material_without_a_usable_target_is_told(data):
    bank, _ = banks(data, (64, 96), workers=1)
    pool = Pictures(bank, seed=4, recipe=replace(snap_data.PICTURES, annotated=0.0))
    bank.sprites[:, 3] = 0
    with pytest.raises(TrainingError, match="show no target"):
        pool.fill(1)


def test_losses_are_closed_forms():
    truth, paint = torch.zeros(1, 1, 96, 96), torch.zeros(1, 1, 96, 96)
    truth[..., 40:56, 40:56] = 1
    paint[..., 36:60, 36:60] = 1
    batch = Batch(torch.zeros(1, 3, 96, 96), paint, truth)
    losses = snap_losses(torch.zeros(1, 1, 96, 96), batch)
    # all odds even: the entropy is log 2 whatever the weights, and half of everything near is found
    near = (24 + 40) ** 2
    assert float(losses["entropy"]) == pytest.approx(np.log(2))
    dice = 1 - (2 * 0.5 * 256 + 100) / (0.5 * near + 256 + 100)
    assert float(losses["dice"]) == pytest.approx(0.5 * dice, rel=1e-4)
    right = snap_losses((truth * 2 - 1) * 50, batch)
    assert float(right["entropy"]) < 1e-6 and float(right["dice"]) == pytest.approx(0, abs=1e-6)
    # far from what was painted nothing counts
    stray = (truth * 2 - 1) * 50
    stray[..., :10, :10] = 50
    assert float(snap_losses(stray, batch)["entropy"]) < 1e-6


def test_a_run_goes_on_where_it_was_and_its_weights_load(data, tmp_path):
    target = train_snap(settings(data, tmp_path / "run"))
    first = network_with(target).decoder.state_dict()
    assert (tmp_path / "run" / "samples" / "000002.jpg").exists()
    train_snap(settings(data, tmp_path / "run", steps=4))
    rows = (tmp_path / "run" / "curves.csv").read_text().splitlines()
    assert {int(row.split(",")[0]) for row in rows[1:]} == {1, 2, 3, 4}
    assert any("held back J" in row for row in rows)
    second = network_with(target)
    assert any(not torch.equal(first[name], value) for name, value in second.decoder.state_dict().items())
    frame, mask = torch.rand(3, 64, 96), torch.from_numpy(square()).float()[None, None]
    assert Snapper(second).snap(frame, mask).shape == mask.shape
    other = train_snap(settings(data, tmp_path / "other", steps=1, go_on_from=target, rate=1e-9))
    began = network_with(other).decoder.state_dict()
    assert all(torch.allclose(began[n], v, atol=1e-3) for n, v in second.decoder.state_dict().items())


def test_impossible_settings_are_refused_before_any_work(data, tmp_path, monkeypatch):
    monkeypatch.setattr(snap_data, "synthesise", lambda *a: pytest.fail("worked before"))
    with pytest.raises(TrainingError, match="--batch 0"):
        train_snap(settings(data, tmp_path / "run", batch=0))
    with pytest.raises(TrainingError, match="divisible by 16"):
        train_snap(settings(data, tmp_path / "run", window=(60, 96)))
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        train_snap(settings(data, tmp_path / "run", go_on_from=tmp_path / "nothing.safetensors"))


def test_the_command_trains(data, tmp_path, capsys):
    options = ["--steps", "1", "--batch", "1", "--pool", "4", "--workers", "1", "--look-every", "1"]
    assert cli.main(["train", "snap", "--data", str(data), "--out", str(tmp_path / "run"), *options]) == 0
    assert "benchmarks/painted_masks.py" in capsys.readouterr().err
    assert (tmp_path / "run" / "snap_lite.safetensors").exists()
