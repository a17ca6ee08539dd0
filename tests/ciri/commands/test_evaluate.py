"""``python -m ciri evaluate``: files, what it says of bad input, and its own command line in the report."""

import json

import pytest

from ciri import cli
from ciri.commands.evaluate import spread
from ciri.evaluation.report import WITHOUT_CLEAN, WITHOUT_I3D
from tests.ciri.evaluation.conftest import cases, write_case  # noqa: F401


def run(capsys, *arguments):
    code = cli.main(["evaluate", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.err


def test_tables_and_report(cases, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out"
    code, said = run(
        capsys, cases, "--out", out, "--propagators", "flow", "--backbones", "flow", "--true-masks", "--frames", 4,
        "--degrade", "--degrade-cases", 1, "--results", f"clean={tmp_path / 'clean'}",
        "--markdown", tmp_path / "results.md",
    )  # fmt: skip
    assert code == 0 and WITHOUT_I3D in said
    written = json.loads((out / "results.json").read_text())
    assert {m["title"] for m in written["methods"]} == {"flow + flow", "true masks + flow"}
    assert any("clean has no result" in note for note in written["notes"])
    assert set(written["wrong_masks"]["flow"]) == {"eroded", "dilated", "missing part", "lagging", "leaking"}
    assert str(tmp_path) not in (tmp_path / "results.md").read_text()
    assert str(tmp_path) not in written["command"] and written["frames"] == 8
    assert (out / "report.html").stat().st_size > 20_000 and (out / "results.csv").exists()


def test_without_clean_clips(tmp_path, capsys):
    write_case(tmp_path / "cases/real", clean=False)
    arguments = (tmp_path / "cases", "--out", tmp_path / "out", "--propagators", "flow", "--backbones", "flow")
    code, said = run(capsys, *arguments)
    assert code == 0 and WITHOUT_CLEAN in said
    values = json.loads((tmp_path / "out/results.json").read_text())["methods"][0]["values"]
    assert values["jf"] > 50 and "psnr" not in values


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "gamma"], "no case 'gamma'; the cases are alpha, beta"),
        (["--frames", "0"], "at least one frame"),
        (["--feather", "-1"], "--feather -1: expected 0 or more"),
        (["--degrade-cases", "1"], "--degrade-cases without --degrade"),
        (["--degrade", "--degrade-cases", "0"], "at least one case"),
        (["--ablate", "--modes", "hard"], "Both --ablate and --modes"),
        (["--modes", "auto,gaet"], "no mode 'gaet'; choose from auto, hard, blend, gate"),
        (["--weights", "flow=a.pth", "--weights", "flow=b.pth"], "--weights flow is given 2 times"),
        (["--models", "nowhere"], "--models nowhere is no folder"),
        (["--propagators", "nobody"], "no propagator called 'nobody'"),
        (["--backbones", "sttn"], "needs a weight file"),
        (["--i3d", "missing.pt"], "missing.pt cannot be read"),
        (["--lpips", "missing.pt"], "missing.pt cannot be read"),
        (["--device", "cuda:99"], "is not there"),
        (["--out", __file__], "test_evaluate.py cannot be made a folder"),
        (
            ["--weights", "stnc=w.pth"],
            "--weights stnc=w.pth: no model of that name is run. Those that are: backbone:flow, metric:i3d, "
            "propagator:flow; give",
        ),
        (["--weights", "propagator:stcn=w.pth"], "--weights propagator:stcn=w.pth: no model"),
        (["--results", "flow=made"], "--results flow: this name is taken"),
        (["--results", "other=made", "--results", "other=made_too"], "--results other: this name is taken"),
    ],
)
def test_bad_arguments_end_in_one_line(cases, tmp_path, capsys, arguments, said):  # noqa: F811
    defaults = ["--propagators", "flow", "--backbones", "flow"]
    code, error = run(capsys, cases, "--out", tmp_path / "out", *defaults, *arguments)
    assert code == 2 and said in error and "Traceback" not in error
    assert "evaluating" not in error  # not after hours of it


def test_nothing_that_could_be_measured(cases, tmp_path, capsys):  # noqa: F811
    for case in ("alpha", "beta"):
        (cases / case / "frames/00002.png").unlink()
    arguments = (cases, "--out", tmp_path / "out", "--propagators", "flow", "--backbones", "flow")
    code, error = run(capsys, *arguments)
    assert code == 2 and "Nothing was measured" in error and "frame 2 is missing" in error


def test_pairs_are_checked(cases, tmp_path, capsys):  # noqa: F811
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(cases), "--out", str(tmp_path), "--weights", "nothing"])
    assert "expected NAME=PATH" in capsys.readouterr().err


def test_what_is_named_twice_is_run_once():
    typed = ["evaluate", "CASES", "--out", "o", "--propagators", "flow,lite, flow", "--backbones", "flow,flow"]
    args = cli.make_parser().parse_args(typed)
    assert args.propagators == ["flow", "lite"] and args.backbones == ["flow"]


def test_cases_are_spread():
    assert spread(list("abcdef"), 3) == ["a", "c", "e"] and spread([1, 2], None) == [1, 2] == spread([1, 2], 9)
