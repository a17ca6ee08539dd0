"""Refinement as a further row of an evaluation."""

import pytest
import torch

from ciri.errors import CiriError
from ciri.evaluation import run as evaluation
from ciri.evaluation.cases import find_cases
from ciri.evaluation.methods import TRUE_MASKS, Method, Models, choose
from ciri.evaluation.run import CaseRun, Runner, Settings
from ciri.media import write_clip
from ciri.refinement.refine import refine
from ciri.residue.lite import LiteDetector, ResidueNetwork
from tests.ciri.refinement.scenes import Answers, Knows, Oracle, Scene


class FakeModels(Models):
    def __init__(self, scene):
        super().__init__(torch.device("cpu"))
        self.scene = scene

    def propagator(self, name):
        return Answers(self.scene, self.scene.cut(), "misses")

    def backbone(self, name, mode="auto"):
        return Knows(self.scene)

    def detector(self, name):
        return Oracle(self.scene)


def test_a_refined_row_scores_the_corrected_masks_and_pictures(tmp_path):
    scene = Scene()
    for name, clip in (("frames", scene.frames), ("masks", scene.true), ("clean", scene.clean)):
        write_clip(tmp_path / "cases" / "one" / name, clip)
    runner = Runner(tmp_path / "out", FakeModels(scene), Settings(grow=2, feather=2))
    plain, refined = Method("misses", "knows"), Method("misses", "knows", refined="oracle")
    records, failures = runner.run(find_cases(tmp_path / "cases"), [plain, refined])
    assert not failures and [record.method for record in records] == [plain, refined]
    before, after = (record.scores for record in records)
    for t in (2, 3):
        assert after["psnr_mask"][t] > before["psnr_mask"][t] + 3
        assert after["J"][t] > before["J"][t] + 0.1
    assert "refinement" in records[1].timing and "refinement" not in records[0].timing
    assert refined.title == "misses + knows, refined (oracle)" and refined.folder != plain.folder


def test_appearance_is_compared_in_the_features_of_the_detector(tmp_path, monkeypatch):
    scene, detector, given = Scene(), LiteDetector(ResidueNetwork(), 0.3), []
    for name, clip in (("frames", scene.frames), ("masks", scene.true), ("clean", scene.clean)):
        write_clip(tmp_path / "cases" / "one" / name, clip)
    models = FakeModels(scene)
    models.detector = lambda name: detector
    monkeypatch.setattr(evaluation, "refine", lambda *a, **k: given.append(k.get("features")) or refine(*a, **k))
    runner = Runner(tmp_path / "out", models, Settings(grow=2, feather=2))
    _, failures = runner.run(find_cases(tmp_path / "cases"), [Method("misses", "knows", refined="lite")])
    assert not failures and [extractor.detector for extractor in given] == [detector]


def test_other_weights_of_the_propagator_that_refinement_asks_count(tmp_path):
    for name in ("frames", "masks"):
        write_clip(tmp_path / "one" / name, Scene(count=1).frames)
    runner = Runner(tmp_path / "out", Models(torch.device("cpu")))
    (case,) = find_cases(tmp_path)
    methods = [Method(TRUE_MASKS, "flow", refined=refined) for refined in ("", "lite")]
    before = [CaseRun(runner, case)._key(method) for method in methods]
    runner.models.weights["propagator:lite"] = tmp_path / "one/frames/00000.png"
    after = [CaseRun(runner, case)._key(method) for method in methods]
    assert before[0] == after[0] and before[1] != after[1]


def test_refined_rows_stand_beside_the_plain_ones():
    class Known(Models):
        def detector(self, name):
            return None

    models = Known(torch.device("cpu"))
    methods, _ = choose(models, masks=["flow"], fillers=["flow"], refined="lite")
    assert methods == [Method("flow", "flow"), Method("flow", "flow", refined="lite")]


def test_an_unknown_detector_is_refused_before_anything_runs():
    with pytest.raises(CiriError, match="no residue detector called 'none'"):
        choose(Models(torch.device("cpu")), masks=["flow"], fillers=["flow"], refined="none")
