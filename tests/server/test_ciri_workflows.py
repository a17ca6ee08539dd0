"""The workflows with the paper's further stages in a real ComfyUI: attention and fusion, residue and refinement."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ciri.residue.lite import SHIPPED, ResidueNetwork
from scripts.comfyui import ROOT
from tests.server.test_runs import saved_video

OWN = "residue_of_the_tests.safetensors"
#: Frames of the scene, and its size.
SIZE = {"frames": 6, "height": 80, "width": 128}


def bundled(name: str) -> dict:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def own_weights(server):
    """A detector with numbers from a seed in the server's models/ciri."""
    folder = server.base / "models" / "ciri"
    folder.mkdir(exist_ok=True)
    torch.manual_seed(3)
    state = {key: value.half() for key, value in ResidueNetwork().state_dict().items()}
    save_file(state, folder / OWN, {"architecture": "residue_lite", "threshold": "0.4"})
    yield OWN
    (folder / OWN).unlink()


def removed(result, scene):
    """Whether the square is gone, and only the square is changed."""
    changed = (result - scene.clip).abs().mean(1, keepdim=True)
    return changed[scene.masks > 0].median() > 10 * changed[scene.masks == 0].median()


def test_attention_and_fusion_run_show_their_maps_and_are_cached(client, upload_scene, tmp_path):
    graph = bundled("one_shot_ciri")
    scene = upload_scene(graph, name="ciri", **SIZE)
    run = client.run(graph)
    assert run.status == "success", run.error
    assert removed(saved_video(client, run, "12", tmp_path), scene)
    for node in ("7", "15", "16", "13"):
        assert len(saved_video(client, run, node, tmp_path)) == SIZE["frames"], f"node {node} shows no video"
    report = run.outputs["17"]["text"][0]
    assert "what other frames show" in report and "Mean attention" in report
    # another share of the masks: nothing is followed or compared again
    graph["16"]["inputs"]["beta"] = 0.9
    assert set(client.run(graph).executed()) == {"16", "10", "31", "11", "12", "13"}


def test_all_stages_run_and_detection_before_and_after_stand_side_by_side(client, own_weights, upload_scene, tmp_path):
    graph = bundled("one_shot_full")
    assert graph["17"]["inputs"]["weights"] == "shipped"
    if not SHIPPED.is_file():
        graph["17"]["inputs"]["weights"] = own_weights
    scene = upload_scene(graph, name="full", **SIZE)
    run = client.run(graph)
    assert run.status == "success", run.error
    assert removed(saved_video(client, run, "12", tmp_path), scene)
    for node in ("7", "15", "16", "18", "20", "22", "13"):
        assert len(saved_video(client, run, node, tmp_path)) == SIZE["frames"], f"node {node} shows no video"
    beside = saved_video(client, run, "23", tmp_path)
    assert beside.shape[3] >= 2 * SIZE["width"]
    report = run.outputs["21"]["text"][0]
    assert "Seconds:" in report
    again = client.run(graph)
    assert again.status == "success" and again.executed() == []


def test_own_detector_weights_are_listed(server, own_weights):
    listed = server.get("/object_info/CIRI_ResidueDetectorLite")["CIRI_ResidueDetectorLite"]["input"]["required"]
    assert listed["weights"][1]["options"] == ["shipped", OWN]
