"""Training of the residue detector: labels, pool and figures against closed forms; and a run that goes on."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
import torch

from ciri.errors import TrainingError
from ciri.residue.lite import ResidueNetwork, cell_indices, load_lite, traces_of
from ciri.training import residue as training
from ciri.training.composites import Composite
from ciri.training.residue import Settings, residue_loss_of_sample, train_residue
from ciri.training.residue_bank import Bank, respond
from ciri.training.residue_data import (
    CROP,
    LABEL,
    Pool,
    complete_masks,
    incomplete_masks,
    removed_by_blending,
    removed_classically,
    residue_label,
    with_lookalike,
)
from ciri.training.residue_material import Material, fill_folder
from ciri.training.residue_report import answers, area_under_curve, average_precision, matching, measure, trained

_spec = importlib.util.spec_from_file_location("pack", pathlib.Path(__file__).with_name("test_data.py"))
pack = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pack)

SMALL = {"size": (48, 64), "length": 4, "each": 2}


def parts(opacity: float = 1.0) -> tuple[torch.Tensor, ...]:
    """A white square on black of which the right half is left, with some opacity; nothing was filled there."""
    clean = torch.zeros(1, 3, 32, 32)
    filmed, mask, cover = clean.clone(), torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
    filmed[..., 8:24, 8:24], mask[..., 8:24, 8:24] = 1, 1
    left = clean.clone()
    left[..., 8:24, 16:24] = opacity
    cover[..., 4:28, 4:16] = 1
    return left, clean, filmed, mask, cover


@pytest.mark.parametrize("opacity", [1.0, 0.5])
def test_the_label_is_how_much_of_the_target_is_left(opacity: float) -> None:
    label, sure = residue_label(*parts(opacity))
    # away from the rim of the 3 x 3 windows that the share is measured in
    torch.testing.assert_close(label[..., 9:23, 18:22], torch.full((1, 1, 14, 4), opacity), atol=1e-3, rtol=0)
    assert not label[..., :16].any() and not label[..., 27:].any()
    assert sure.all()


def test_what_cannot_be_seen_is_no_residue() -> None:
    assert not residue_label(*parts(5 / 255))[0].any()


def test_a_wrong_fill_is_not_the_target_but_not_sure_either() -> None:
    _, clean, filmed, mask, _ = parts()
    everywhere, inside = torch.ones_like(mask), mask.bool()
    fill = clean + mask * torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    label, sure = residue_label(fill, clean, filmed, mask, everywhere)
    assert not label.any() and sure[inside].mean() < 0.1
    label, sure = residue_label(clean, clean, filmed, mask, everywhere)
    assert not label.any() and sure.all()
    # what was not filled, and differs in the other direction, is not the target either
    assert not residue_label(clean - 0.5 * mask, clean, filmed, mask, 0 * mask)[0].any()


def composite() -> Composite:
    rng = np.random.default_rng(0)
    clean = np.repeat(rng.integers(0, 90, (1, 60, 80, 3), dtype=np.uint8), 5, 0)
    frames, mask = clean.copy(), np.zeros((5, 60, 80), bool)
    for t in range(5):
        mask[t, 15:45, 20 + 2 * t : 50 + 2 * t] = True
    frames[mask] = 220
    return Composite(frames, clean, mask)


def test_removals_leave_what_the_mask_misses_and_nothing_else() -> None:
    c = composite()
    half = c.mask[2].copy()
    half[30:] = False
    for seed in range(12):
        rng = np.random.default_rng(seed)
        whole, cover = removed_by_blending(c, 2, c.mask[2], rng)
        assert whole.shape == (60, 80, 3) and not cover.any()
        np.testing.assert_allclose(whole[c.mask[2]], c.clean[2][c.mask[2]], atol=0.01)
        image, cover = removed_classically(c, 2, half, rng)
        assert (cover[half] == 1).all()
        np.testing.assert_allclose(image[42:45, 30:50], 220, atol=1)


def test_incomplete_masks_miss_something_and_keep_the_painted_frame() -> None:
    true = composite().mask
    missed = []
    for seed in range(20):
        wrong = incomplete_masks(true, np.random.default_rng(seed))
        assert wrong.shape == true.shape and (wrong[0] == true[0]).all()
        missed.append((true & ~wrong).any())
    assert np.mean(missed) > 0.7


def test_complete_masks_miss_nothing_and_mostly_cover_more() -> None:
    true = composite().mask
    made = [complete_masks(true, np.random.default_rng(seed)) for seed in range(20)]
    assert all((true <= mask).all() for mask in made)
    assert 0.4 < np.mean([(mask & ~true).any() for mask in made]) < 0.95


def test_a_lookalike_is_a_part_of_the_scene() -> None:
    c = composite()
    changed = with_lookalike(c, np.random.default_rng(3))
    outside = ~c.mask
    np.testing.assert_array_equal(changed.frames[outside], changed.clean[outside])
    np.testing.assert_array_equal(changed.frames[c.mask], c.frames[c.mask])
    assert (changed.clean != c.clean).any()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return pack.write_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def pool(data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("pool")
    return fill_folder(folder, Material(data, **SMALL), seed=1, held_back=False, files=1)[0]


def test_a_pool_is_a_function_of_its_seed(pool: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    again = fill_folder(tmp_path, Material(data, **SMALL), seed=1, held_back=False, files=1)[0]
    one, two = Pool.load(pool), Pool.load(again)
    assert one.search.shape[1:] == (3, CROP, CROP) and one.label.shape[1:] == (1, LABEL, LABEL)
    assert len(one) == len(one.target) == len(one.kind) == len(one.size) and int(one.target.max()) == 1
    for name in Pool.__dataclass_fields__:
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert not one.label[one.complete].any() and not one.size[one.complete].any()
    assert [p.name for p in tmp_path.iterdir()] == [again.name]
    assert fill_folder(tmp_path, Material(data, **SMALL), seed=2, held_back=False, files=1, go_on=lambda: False) == []


def test_a_bank_gives_what_the_detector_computes(pool: pathlib.Path) -> None:
    torch.manual_seed(0)
    network, samples = ResidueNetwork().eval(), Pool.load(pool)
    bank = Bank(network, keep_pictures=True)
    bank.add(pool)
    batch = bank.batch([0, len(bank) - 1])
    hidden_index = [cell_indices(mask) for mask in samples.hidden[[0, -1]].float() / 255]
    with torch.no_grad():
        direct = network.respond(
            network.encode(samples.search[[0, -1]].float() / 255),
            network.remember(network.encode(samples.reference[[0, 1]].float() / 255), batch.index),
            [own for own, _ in network.remember(network.encode(samples.filmed[[0, -1]].float() / 255), hidden_index)],
            traces_of(*(getattr(samples, name)[[0, -1]].float() / 255 for name in ("hidden", "filmed", "search"))),
        )
        torch.testing.assert_close(respond(network, batch), direct, atol=0.03, rtol=0.03)  # maps in half precision
    assert torch.equal(bank.pictures(0)[0], samples.search[0])
    found = answers(bank, trained(network))
    figures = measure(bank, found)
    assert 0 < figures["threshold"] < 1 and figures["clean false area"] <= 0.011
    assert matching(batch).shape == direct.shape


def test_a_bank_can_hold_back_and_twist_what_was_covered(pool: pathlib.Path) -> None:
    torch.manual_seed(0)
    network, bank = ResidueNetwork().eval(), Bank(ResidueNetwork().eval())
    bank.add(pool)
    batch = bank.batch(range(len(bank)))
    left = next(i for i in range(len(bank)) if batch.label[i].max() >= 0.5)
    with torch.no_grad():
        told = respond(network, batch)
        for how in ("ignorant", "deceived"):
            answer = respond(network, batch, **{how: [left]})
            others = [i for i in range(len(bank)) if i != left]
            torch.testing.assert_close(answer[others], told[others])
            assert not torch.allclose(answer[left], told[left])
        # without a mask the detector answers as if it had never been told
        batch.hidden[left], batch.traces[left] = 0, 0
        batch.hidden_index[left] = cell_indices(batch.hidden[left])
        torch.testing.assert_close(respond(network, batch)[left], respond(network, batch, ignorant=[left])[left])


def test_the_area_under_the_curve_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 6, 40), rng.integers(0, 5, 30)
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert area_under_curve(positive, negative) == pytest.approx(np.mean(pairs))
    assert np.isnan(area_under_curve(positive, negative[:0]))


def test_average_precision_is_the_mean_precision_at_the_hits() -> None:
    response, positive = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 0, 1, 1, 0], bool)
    assert average_precision(response, positive) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert np.isnan(average_precision(response, np.zeros(5, bool)))


def test_the_loss_falls_towards_the_label_and_skips_what_is_not_sure() -> None:
    label = torch.zeros(2, 1, 12, 12)
    label[0, :, 3:9, 3:9] = 1
    sure = torch.ones_like(label)
    good = residue_loss_of_sample(12 * (2 * label - 1), label, sure)
    bad = residue_loss_of_sample(-12 * (2 * label - 1), label, sure)
    assert all(float(good[name]) < 0.03 for name in good)
    assert all(float(bad[name]) > 0.9 for name in bad)
    logits = torch.randn(2, 1, 12, 12, requires_grad=True)
    sure[:, :, :6] = 0
    sum(residue_loss_of_sample(logits, label, sure).values()).backward()
    assert not logits.grad[:, :, :6].any() and logits.grad[:, :, 6:].any()


def test_a_run_goes_on_and_exports_what_can_be_loaded(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "pretrained", lambda init: ResidueNetwork())
    options = {"data": data, "out": tmp_path, "init": data, "files": 1, "first": 1, "held": 1, "workers": 0, "batch": 4}
    told: list[str] = []
    train_residue(Settings(**options, **SMALL, steps=2, log_every=1), say=told.append)
    weights = train_residue(Settings(**options, **SMALL, steps=3, log_every=1), say=told.append)
    network, threshold = load_lite(weights)
    assert 0 < threshold < 1 and not network.training
    rows = (tmp_path / "curves.csv").read_text().splitlines()
    assert [r.split(",")[0] for r in rows if ",focal," in r] == ["1", "2", "3"]
    assert any("without training" in line for line in told)
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 1
    assert (tmp_path / "samples/000003.jpg").stat().st_size < 300_000
    with pytest.raises(TrainingError, match="another run"):
        train_residue(Settings(**options, **SMALL, seed=2))
