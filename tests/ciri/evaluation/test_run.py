"""Running methods on cases: numbers, resuming, results from elsewhere, failures that stop nothing else."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from ciri.checkpoints import write_safetensors
from ciri.errors import CiriError
from ciri.evaluation.cases import find_cases, load
from ciri.evaluation.degrade import KINDS
from ciri.evaluation.methods import SHIPPED, TRUE_MASKS, Method, Models, choose
from ciri.evaluation.pictures import picture_case
from ciri.evaluation.run import Runner, Settings
from ciri.evaluation.tolerance import tolerance_curves
from ciri.inactivation.learned import inactivation_map, shipped
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.lite_network import LiteConfig, LiteNetwork
from ciri.media import read_clip
from ciri.propagation.base import MaskTrack
from ciri.training.backbone import save_network
from tests.ciri.evaluation.conftest import COUNT

I3D_MARK = {"Conv3d_1a_7x7.conv3d.weight": torch.zeros(64, 3, 7, 7, 7)}
GREY = Method("still", "grey")
PERFECT = Method(TRUE_MASKS, "grey")


class Grey:
    """Fills with grey; counts how often."""

    name, facts = "grey", BackboneFacts()
    calls = 0
    value = 0.5

    def inpaint(self, frames, inactivation, *, on_step=None):
        self.calls += 1
        return torch.full_like(frames, self.value)


class Still:
    """Takes the painted mask for all frames."""

    name = "still"
    calls = 0

    def propagate(self, frames, key_masks, key_frames, *, on_step=None):
        self.calls += 1
        return MaskTrack(key_masks.expand(len(frames), -1, -1, -1).clone(), torch.ones(len(frames)), ["stood still"])

    def parameters_to_refine(self):
        return ()


class FakeModels(Models):
    """Models of this test."""

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.grey, self.still = Grey(), Still()

    def propagator(self, name):
        return self.still

    def backbone(self, name, mode="auto"):
        return self.grey


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path / "out", FakeModels(), Settings(grow=0, feather=0))


def test_scores_are_those_of_the_pictures_on_disk(cases, runner):
    records, failures = runner.run(find_cases(cases), [GREY, PERFECT])
    assert not failures and [(r.case, r.method) for r in records] == [
        (case, method) for case in ("alpha", "beta") for method in (GREY, PERFECT)
    ]
    record = records[1]
    for t in range(COUNT):
        made = cv2.imread(str(runner.out / "results/true_masks-grey/alpha" / f"{t:05d}.png")).astype(float)
        clean = cv2.imread(str(cases / "alpha/clean" / f"{t:05d}.png")).astype(float)
        box = (slice(16, 30), slice(6 + 4 * t, 20 + 4 * t))
        assert (made[box] == 128).all()
        assert record.scores["psnr"][t] == pytest.approx(10 * np.log10(255**2 / np.mean((made - clean) ** 2)))
        expected = 10 * np.log10(255**2 / np.mean((made - clean)[box] ** 2))
        assert record.scores["psnr_box"][t] == pytest.approx(expected)
    assert set(record.scores["psnr_outside"]) == {100.0} and record.timing.keys() == {"inpainting"}
    # the square moves by 4 of its 14 pixels a frame and the masks stand still
    assert records[0].scores["J"][1] == pytest.approx(10 / 18) and records[0].notes == ["stood still"]
    assert np.isnan([records[0].scores["J"][t] for t in (0, COUNT - 1)]).all()
    assert records[0].timing.keys() == {"propagation", "inpainting"} and records[0].seconds() >= 0


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_case_without_masks_is_named_and_the_others_go_on(cases, runner, left):
    shutil.rmtree(cases / "alpha/masks")
    if left == "an empty folder":
        (cases / "alpha/masks").mkdir()
    records, failures = runner.run(find_cases(cases), [GREY, PERFECT])
    assert [(r.case, r.method) for r in records] == [("beta", GREY), ("beta", PERFECT)]
    assert len(failures) == 1 and "alpha" in failures[0]
    assert ("has no masks" if left == "nothing" else "holds no image") in failures[0]
    curves, failures = tolerance_curves(runner, find_cases(cases), [GREY])
    assert set(curves) == {"grey"} and len(failures) == 1 and "alpha was left out" in failures[0]


def test_attended_masks_are_the_propagator_s_corrected(cases, runner):
    attended = Method("still+attention", "grey")
    records, failures = runner.run(find_cases(cases), [GREY, attended])
    assert not failures and set(records[1].timing) == {"propagation", "attention", "inpainting"}
    case = find_cases(cases)[0]
    material = load(case)
    folder = runner.out / "masks" / "still" / case.name
    predicted = read_clip(folder, count=COUNT).frames[:, :1]
    first = material.masks[material.first : material.first + 1]
    expected = inactivation_map(material.frames, first, predicted, shipped(), first_index=material.first, shadow=False)
    written = read_clip(runner.out / "masks" / "still+attention" / case.name, count=COUNT).frames[:, :1]
    assert (written - expected).abs().max() <= 0.5 / 255 + 1e-6
    # the propagator was not asked again
    assert runner.models.still.calls == len(find_cases(cases))


def test_an_interrupted_run_goes_on_where_it_was(cases, runner):
    found, models = find_cases(cases), runner.models

    def interrupt(done, total):
        if models.grey.calls == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(found, [GREY, PERFECT], interrupt)
    assert models.grey.calls == 3
    records, _ = runner.run(found, [GREY, PERFECT])
    assert len(records) == 4 and models.still.calls == 2 and models.grey.calls in (4, 5)
    calls = models.grey.calls
    again, _ = runner.run(found, [GREY, PERFECT])
    assert models.grey.calls == calls and [r.timing for r in again] == [r.timing for r in records]
    assert [r.scores["psnr"] for r in again] == [r.scores["psnr"] for r in records]


@pytest.mark.parametrize("damage", ["truncate", "input", "settings", "fresh", "weights", "shipped weights", "picture"])
def test_old_results_that_no_longer_count_are_made_again(cases, runner, damage, tmp_path, monkeypatch):
    monkeypatch.setattr("ciri.evaluation.methods.SHIPPED", tmp_path)
    found = find_cases(cases)[:1]
    runner.run(found, [PERFECT])
    if damage == "weights":
        runner.models.weights["grey"] = cases / "alpha/frames/00000.png"
    if damage == "shipped weights":
        (tmp_path / "backbone_grey.safetensors").write_bytes(b"new")
    scores = runner.out / "results/true_masks-grey/alpha/scores.json"
    if damage == "truncate":
        scores.write_text(scores.read_text()[:50])
    if damage == "picture":
        (scores.parent / "00002.png").unlink()
    if damage == "input":
        shutil.copy(cases / "beta/clean/00001.png", cases / "alpha/clean/00001.png")
    if damage == "settings":
        runner.settings = Settings(grow=2, feather=0)
    runner.fresh = damage == "fresh"
    runner.run(found, [PERFECT])
    assert runner.models.grey.calls == 2
    assert json.loads(scores.read_text())["frames"] == COUNT


def test_masks_that_were_deleted_are_made_again_for_the_report(cases, runner):
    found = find_cases(cases)[:1]
    first, _ = runner.run(found, [GREY])
    shutil.rmtree(runner.out / "masks")
    again, _ = runner.run(found, [GREY])
    assert runner.models.still.calls == 2 and again[0].scores["J"][1] == first[0].scores["J"][1]
    assert len(picture_case(runner, found[0], again).strips) == 4
    (runner.out / "masks/still/alpha/00001.png").unlink()
    runner.run(found, [GREY])
    assert runner.models.still.calls == 3


def test_no_frames_of_an_earlier_run_are_left(cases, runner):
    found = find_cases(cases)[:1]
    runner.run(found, [GREY])
    runner.settings = Settings(limit=3, grow=0, feather=0)
    runner.run(found, [GREY])
    for folder in ("masks/still/alpha", "results/still-grey/alpha"):
        assert sorted(file.name for file in (runner.out / folder).glob("*.png")) == [f"0000{t}.png" for t in range(3)]
        assert len(list((runner.out / folder).glob("*.json"))) == 1


def test_results_that_another_program_made(cases, runner, tmp_path):
    other = tmp_path / "theirs"
    shutil.copytree(cases / "alpha/clean", other / "alpha")
    (other / "beta").mkdir()
    for t in range(COUNT):
        cv2.imwrite(str(other / "beta" / f"{t:05d}.png"), np.zeros((96, 128, 3), np.uint8))
    runner.elsewhere = {"theirs": other}
    records, failures = runner.run(find_cases(cases), [Method("", "theirs")])
    assert [r.case for r in records] == ["alpha"] and set(records[0].scores["psnr"]) == {100.0}
    assert records[0].seconds() is None
    assert len(failures) == 1 and "beta" in failures[0] and "128x96" in failures[0] and "64x48" in failures[0]
    (other / "alpha/00005.png").unlink()
    shutil.rmtree(other / "beta")
    records, failures = runner.run(find_cases(cases), [Method("", "theirs")])
    assert not records and "5 frames" in failures[0] and "does not exist" in failures[1]


def test_one_bad_case_does_not_stop_the_others(cases, runner):
    (cases / "alpha/masks/00002.png").write_bytes(b"no")
    records, failures = runner.run(find_cases(cases), [GREY, PERFECT])
    assert [r.case for r in records] == ["beta", "beta"]
    assert len(failures) == 1 and "alpha" in failures[0] and "00002.png" in failures[0]


def test_values_that_are_not_numbers_are_reported(cases, runner):
    runner.models.grey.value = float("nan")
    records, failures = runner.run(find_cases(cases)[:1], [PERFECT])
    assert not records and "not numbers" in failures[0] and "alpha" in failures[0]


def test_a_case_without_clean_clip_has_what_can_be_known(cases, runner):
    shutil.rmtree(cases / "alpha/clean")
    record = runner.run(find_cases(cases)[:1], [GREY])[0][0]
    assert {"J", "F", "e_warp", "e_warp_masked", "psnr_outside"} <= record.scores.keys()
    assert not {"psnr", "psnr_box", "ssim65"} & record.scores.keys()


def test_a_case_of_one_frame(cases, runner):
    runner.settings = Settings(limit=1, grow=0, feather=0)
    record = runner.run(find_cases(cases)[:1], [PERFECT])[0][0]
    assert record.frames == 1 and len(record.scores["psnr"]) == 1 and record.scores["e_warp"] == []


def test_true_masks_of_some_frames_cannot_be_inpainted(cases, runner):
    shutil.rmtree(cases / "alpha/clean")
    (cases / "alpha/masks/00003.png").unlink()
    records, failures = runner.run(find_cases(cases)[:1], [GREY, PERFECT])
    assert [r.method for r in records] == [GREY] and "5 of 6 frames" in failures[0]


def test_wrong_mask_curves(cases, runner):
    """Grey fill over the true mask is exactly right inside nothing; a larger hole cannot raise PSNR elsewhere."""
    found = find_cases(cases)
    curves, failures = tolerance_curves(runner, found, [GREY, PERFECT])
    assert not failures and set(curves) == {"grey"} and set(curves["grey"]) == set(KINDS)
    true = runner.run(found, [PERFECT])[0]
    expected = np.mean([v for r in true for v in r.scores["psnr_box"]])
    for row in curves["grey"].values():
        assert len(row) == 6 and row[0] == pytest.approx(expected)
    # the red square shows where the mask is missing; beyond the box nothing counts
    assert curves["grey"]["eroded"][5] < curves["grey"]["eroded"][0]
    assert curves["grey"]["dilated"][5] == pytest.approx(curves["grey"]["dilated"][0])
    calls = runner.models.grey.calls
    assert tolerance_curves(runner, found, [GREY])[0] == curves and runner.models.grey.calls == calls
    shutil.rmtree(cases / "beta/clean")
    assert "clean clip is not known" in tolerance_curves(runner, find_cases(cases), [GREY])[1][0]


def test_weight_files_are_found_by_their_keys(tmp_path):
    write_safetensors(tmp_path / "any_name.safetensors", {"logits.conv3d.weight": torch.zeros(1)} | I3D_MARK)
    models = Models(torch.device("cpu"), tmp_path, {"propagator:lite": tmp_path / "p.pth"})
    assert models.file_of("metric", "i3d") == tmp_path / "any_name.safetensors"
    assert models.file_of("propagator", "lite") == tmp_path / "p.pth" and models.file_of("backbone", "lite") is None


def test_methods_that_can_be_built():
    models = Models(torch.device("cpu"))
    methods, notes = choose(models, masks=["flow"], fillers=None, true_masks=True)
    assert Method("flow", "flow") in methods and Method(TRUE_MASKS, "flow") in methods
    assert any("e2fgvi" in note and "weight file" in note for note in notes)
    methods, notes = choose(models, masks=["flow"], fillers=["flow"], modes=["hard", "gate"])
    assert methods == [Method("flow", "flow")] and "no modes" in notes[0]
    with pytest.raises(CiriError, match="choose one of"):
        choose(models, masks=["nobody"], fillers=["flow"])
    with pytest.raises(CiriError, match="weight file"):
        choose(models, masks=["flow"], fillers=["sttn"])


def test_weights_of_what_refinement_asks_are_used_and_without_it_refused():
    weights = {f"{kind}:lite": SHIPPED / f"{kind}_lite.safetensors" for kind in ("propagator", "residue")}
    models = Models(torch.device("cpu"), weights=weights)
    choose(models, masks=["flow"], fillers=["flow"], true_masks=True, refined="lite")
    models.check_used()
    models = Models(torch.device("cpu"), weights=weights)
    choose(models, masks=["flow"], fillers=["flow"], true_masks=True)
    with pytest.raises(CiriError, match="Those that are: backbone:flow, propagator:flow;"):
        models.check_used()


def test_a_label_gives_a_backbone_other_weights(tmp_path):
    file = tmp_path / "other.safetensors"
    save_network(LiteNetwork(LiteConfig(8, 8, 8, 8, 1)), file, {"variant": "no-curriculum"})
    models = Models(torch.device("cpu"), weights={"lite@no-curriculum": file})
    methods, notes = choose(models, masks=["flow"], fillers=["lite@no-curriculum", "flow"], modes=["hard", "gate"])
    assert [(m.backbone, m.mode) for m in methods] == [("lite@no-curriculum", "auto"), ("flow", "auto")]
    assert any("lite@no-curriculum has no modes" in note for note in notes)
    assert models.backbone("lite@no-curriculum").network.config.half == 8
    assert models.stamp("backbone", "lite@no-curriculum")
    models.check_used()
    with pytest.raises(CiriError, match="--weights lite@ciri=FILE"):
        choose(models, masks=["flow"], fillers=["lite@ciri"])
