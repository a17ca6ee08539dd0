"""From records to rows: means, best values, order; CSV, JSON and Markdown."""

import csv
import json
import math

import pytest
import torch

from ciri.errors import EvaluationError
from ciri.evaluation.features import stored_features, vfid
from ciri.evaluation.markdown import build_markdown, without_folders, write_markdown
from ciri.evaluation.methods import TRUE_MASKS, Method
from ciri.evaluation.plots import masks_chart, time_chart
from ciri.evaluation.run import Record
from ciri.evaluation.store import finite, key_of, read_json, write_json
from ciri.evaluation.tables import COLUMNS, Report, as_json, geometric_shares, make_rows, worst_first, write_csv
from ciri.metrics.frechet import frechet_distance

NAN = math.nan
GOOD, BAD, BOUND = Method("flow", "good"), Method("flow", "bad", "hard"), Method(TRUE_MASKS, "good")


def record(case, method, local, frames=2, cpu=1.0, **scores):
    scores = {"psnr": [40.0] * frames, "psnr_box": local, "share_mask": [0.1, 0.4], **scores}
    return Record(case, method, scores, {"inpainting": {"cpu": cpu, "wall": 3 * cpu}}, frames, (64, 48))


RECORDS = [
    record("a", GOOD, [30.0, NAN], J=[NAN, 0.5], F=[NAN, 0.7]),
    record("a", BAD, [20.0, 22.0]),
    record("a", BOUND, [35.0, 35.0], J=[1.0], F=[1.0]),
    record("b", GOOD, [20.0, 25.0], cpu=3.0, e_warp_masked=[0.001, 0.003]),
]


def report(**changes):
    curves = {"good": {"eroded": [30.0, 29.0, 28.0, 27.0, 26.0, 25.5]}}
    machine = dict.fromkeys(("date", "processor", "system", "Python", "PyTorch", "OpenCV", "device"), "x")
    values = {"notes": ["VFID is not available."], "command": "python -m ciri evaluate cases"} | changes
    return Report(make_rows(RECORDS), curves, ["b", "a"], 4, {}, machine, **values)


def test_means_are_over_frames_not_over_cases():
    row = next(row for row in make_rows(RECORDS) if row.method == GOOD)
    assert row.values["psnr_box"] == pytest.approx((30 + 20 + 25) / 3)
    assert row.values["jf"] == pytest.approx(60) and row.values["e_warp_masked"] == pytest.approx(2)
    assert row.values["cpu"] == pytest.approx(4 / 4) and row.values["wall"] == pytest.approx(12 / 4)
    assert row.by_case["a"]["psnr_box"] == 30 and row.by_case["b"]["jf"] is None
    assert row.values["vfid"] is None


def test_flicker_and_masks_weigh_every_clip_alike():
    records = [
        record("long", GOOD, [30.0], J=[0.9] * 9, F=[0.7] * 9, e_warp=[0.001] * 9, e_warp_masked=[0.002] * 9),
        record("short", GOOD, [30.0], J=[0.5], F=[0.3], e_warp=[0.003], e_warp_masked=[0.008, NAN]),
    ]
    (row,) = make_rows(records)
    assert row.values["jf"] == pytest.approx((80 + 40) / 2)
    assert row.values["e_warp"] == pytest.approx((1 + 3) / 2)
    assert row.values["e_warp_masked"] == pytest.approx((2 + 8) / 2)


def test_true_masks_are_no_contestant():
    made = report()
    assert [row.method for row in made.rows] == [BOUND, GOOD, BAD]
    local = next(c for c in COLUMNS if c.key == "psnr_box")
    assert made.best(local) == pytest.approx(25)
    assert made.rows[0].values["jf"] is None
    assert local.text(None) == local.text(NAN) == "-" and local.text(25) == "25.00"


def test_ablation_follows_the_paper_s_order():
    modes = [Method("flow", "net", mode) for mode in ("gate", "hard")]
    records = [record("a", method, [value]) for method, value in zip(modes, (25.0, 20.0), strict=True)]
    made = report()
    assert made.ablation() == []
    made.rows = make_rows([*RECORDS, *records])
    assert [row.method.mode for row in made.ablation()] == ["hard", "gate"]
    text = build_markdown(made)
    baseline, inactivated = text.index("net: baseline, hard masks"), text.index("net: w/ target inactivation (Eq. 1)")
    assert text.index("## Ablation") < baseline < inactivated


def test_weights_of_our_own_are_rows_of_the_ablation_too():
    names = ("lite", "lite@hard-mask", "lite@no-curriculum", "lite@other")
    methods = [Method("flow", name) for name in names] + [Method("flow", "lite", refined="lite")]
    made = report()
    made.rows = make_rows([record("a", method, [20.0 + n]) for n, method in enumerate(methods)])
    rows = made.ablation()
    assert [row.method.backbone for row in rows] == ["lite@hard-mask", "lite@no-curriculum", "lite"]
    assert "flow + lite: w/ dual curriculum (Eq. 2, 3)" in build_markdown(made)


def test_worst_cases_come_first():
    assert worst_first(make_rows(RECORDS), ["a", "b"]) == ["b", "a"]


def test_geometric_means_of_shares():
    assert geometric_shares(RECORDS)["share_mask"] == pytest.approx(0.2)
    assert geometric_shares(RECORDS)["share_box"] is None


def test_vfid_is_the_distance_between_all_results_and_all_clean_clips():
    made, clean = torch.rand(2, 5, 8, generator=torch.Generator().manual_seed(0))
    records = [
        Record(str(i), GOOD, {}, {}, 20, (1, 1), {"global literature": a, "clean global literature": b})
        for i, (a, b) in enumerate(zip(made, clean, strict=True))
    ]
    assert vfid(records, "global", "literature") == pytest.approx(frechet_distance(made, clean))
    assert vfid(records, "local", "literature") is None and vfid(records[:1], "global", "literature") is None


def test_features_are_computed_once(cases, tmp_path):
    from ciri.evaluation.cases import find_cases
    from ciri.evaluation.run import CaseRun
    from tests.ciri.evaluation.test_run import PERFECT, FakeModels, Runner

    class Network:
        calls = 0

        def features(self, clip, statistics):
            self.calls += 1
            return clip.mean((0, 2, 3))

    runner = Runner(tmp_path / "out", FakeModels())
    runner.run(find_cases(cases), [PERFECT])
    runner.networks.i3d = network = Network()
    work = CaseRun(runner, find_cases(cases)[0])
    first = stored_features(work, PERFECT, "key")
    assert network.calls == 8 and len(first) == 8
    again = stored_features(work, PERFECT, "key")
    assert network.calls == 8 and all(torch.equal(again[name], value) for name, value in first.items())
    stored_features(work, PERFECT, "another result")
    assert network.calls == 12


def test_csv_and_json_hold_the_same_numbers(tmp_path):
    made = report()
    write_csv(tmp_path / "r.csv", made)
    write_json(tmp_path / "r.json", as_json(made))
    with open(tmp_path / "r.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4
    described = json.loads((tmp_path / "r.json").read_text())
    for line in lines:
        method = next(m for m in described["methods"] if (m["masks"], m["mode"]) == (line["masks"], line["mode"]))
        assert float(line["psnr_box"]) == pytest.approx(method["by_case"][line["case"]]["psnr_box"])
    assert {line["jf"] for line in lines} >= {""}
    with pytest.raises(EvaluationError, match="cannot be written"):
        write_csv(tmp_path / "no" / "r.csv", made)


def test_markdown_names_numbers_machine_command_and_what_is_missing(tmp_path):
    text = build_markdown(report())
    assert "| flow + good | **25.00** |" in text and "*true masks + good*" in text
    assert "python -m ciri evaluate cases" in text and "> VFID is not available." in text
    assert "| good | eroded | 30.00 | 29.00 (-1.00) | 27.00 (-3.00) | 25.50 (-4.50) |" in text
    assert text.index("| b | -") < text.index("| a | 35.00 | 30.00 | 21.00 |")
    write_markdown(tmp_path / "docs" / "results.md", report())
    for picture in (tmp_path / "docs/images").iterdir():
        assert f"images/{picture.name}" in (tmp_path / "docs/results.md").read_text()


def test_a_published_page_names_no_folders():
    assert without_folders("see /home/me/x/w.pth; a/b.png, C:\\me\\w.pt or 3/4") == "see w.pth; a/b.png, w.pt or 3/4"


def test_stored_json_survives_damage(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json(path, {"x": [1.5, NAN, math.inf]})
    assert read_json(path) == {"x": [1.5, None, None]}
    path.write_text("[1, 2")
    assert read_json(path) == {} == read_json(tmp_path / "none.json")
    assert finite((1, NAN)) == [1, None]
    assert key_of(1, {"a": 2, "b": 3}) == key_of(1, {"b": 3, "a": 2}) != key_of(1, {"a": 2, "b": 4})
    with pytest.raises(EvaluationError, match="cannot be written"):
        write_json(path / "below_a_file.json", {})


def test_charts_leave_out_what_colours_cannot_tell_apart():
    names = [f"net{n}" for n in range(5)]
    methods = [Method("flow", name, refined=kind) for name in (*names, "lite@ciri") for kind in ("", "lite")]
    made = report()
    made.rows = make_rows([record("a", method, [20.0], J=[0.5], F=[0.5]) for method in methods])
    for chart in (time_chart(made), masks_chart(made)):
        assert sorted(series.name for series in chart.series) == [f"flow + {name}" for name in names]
    made.rows = make_rows([record("a", method, [20.0], J=[0.5], F=[0.5]) for method in methods[:4]])
    assert len(time_chart(made).series) == 4


def test_a_write_that_fails_leaves_no_file_behind(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    write_json(tmp_path / "a.json", {"old": 1})
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(EvaluationError, match="No space left"):
        write_json(tmp_path / "a.json", {"new": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"] and read_json(tmp_path / "a.json") == {"old": 1}
