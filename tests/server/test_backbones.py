"""The published networks in a real ComfyUI: their workflows, their weight files, and Cancel in the middle of a window.

The weights are numbers from a seed: what they paint means nothing, but it has to be what the library paints.
"""

import json

import pytest
import torch

from ciri.errors import CheckpointError
from ciri.inpainting import registry as backbones
from ciri.inpainting.e2fgvi import E2FGVIHQ
from ciri.inpainting.remove import remove
from ciri.inpainting.sttn import STTN
from ciri.propagation import registry as propagators
from ciri.propagation import snap
from scripts.comfyui import ROOT
from tests.parity.seeded_weights import seeded_state_dict
from tests.server.test_runs import refused_in_words, saved_video

HQ = "E2FGVI-HQ-CVPR22.pth"
#: Just below the smallest size that E2FGVI-HQ pads to.
SMALL = {"height": 56, "width": 104}


@pytest.fixture(scope="module")
def models(server):
    """The server's models/ciri with weights of two networks in it."""
    folder = server.base / "models" / "ciri"
    folder.mkdir(exist_ok=True)
    for name, network in ((HQ, E2FGVIHQ()), ("sttn.pth", STTN())):
        own = network.state_dict()
        drawn = seeded_state_dict(own, 1, 0.8)
        # statistics of images, which a seed knows nothing of
        drawn |= {key: own[key] for key in ("update_spynet.mean", "update_spynet.std") if key in own}
        torch.save(drawn, folder / name)
    yield folder
    for name in (HQ, "sttn.pth"):
        (folder / name).unlink()


def bundled(name: str) -> dict:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())


def only(graph: dict, kind: str) -> dict:
    """Inputs of the graph's only node of a kind."""
    (inputs,) = [node["inputs"] for node in graph.values() if node["class_type"] == kind]
    return inputs


def test_each_node_lists_the_files_that_fit(server, models):
    def offered(node):
        return server.get(f"/object_info/{node}")[node]["input"]["required"]["weights"][1]["options"]

    assert offered("CIRI_BackboneE2FGVI") == [HQ]
    assert offered("CIRI_BackboneSTTN") == ["sttn.pth"]
    assert offered("CIRI_BackboneDSTT") == ["(no file found)"]


def test_the_e2fgvi_workflow_runs_and_then_comes_from_the_cache(client, models, upload_scene, tmp_path):
    graph = bundled("one_shot_e2fgvi_hq")
    scene = upload_scene(graph, 7, "hq", **SMALL)
    run = client.run(graph)
    assert run.status == "success", run.error
    result = saved_video(client, run, "12", tmp_path)
    assert result.shape == scene.clip.shape
    # the square is gone; away from it only the codec was at work
    changed = (result - scene.clip).abs().mean(1, keepdim=True)
    assert changed[scene.masks > 0].median() > 10 * changed[scene.masks == 0].median()
    report = run.outputs["15"]["text"][0]
    assert "e2fgvi_hq: filled 7 of 7 frames of 104x56" in report
    assert "2 windows of up to 7 frames" in report and "CC BY-NC 4.0" in report and "s per frame" in report
    again = client.run(graph)
    assert again.status == "success" and again.executed() == []


def test_both_backbones_of_the_swap_workflow_fill_as_the_library_does(client, models, upload_scene, tmp_path):
    graph = bundled("swap_backbone")
    upload_scene(graph, 7, "swap", **SMALL)
    for node in ("CIRI_BackboneE2FGVI", "CIRI_BackboneLite"):
        only(graph, node)["precision"] = "fp32"
    fills = {"small": "10", "large": "13"}
    for name, node in {"decoded": "2", **fills}.items():
        graph[name] = {"class_type": "SaveImage", "inputs": {"images": [node, 0], "filename_prefix": name}}
    run = client.run(graph)
    assert run.status == "success", run.error

    def saved(name):
        items = [item for item in run.files() if item["node"] == name]
        return torch.stack([read_picture(client.download(item, tmp_path)) for item in items])

    # what the library makes of the same frames
    frames, painted = saved("decoded"), 1 - read_picture(tmp_path / "swap.png")[None, 3:]
    masks = propagators.build("lite").propagate(frames, snap.shipped().snap(frames[0], painted), [0]).probs
    options = {"weights": models / HQ, "precision": "fp32"}
    own = {"small": backbones.build("lite", precision="fp32"), "large": backbones.build("e2fgvi_hq", **options)}
    for name in fills:
        expected, found = remove(frames, masks, own[name]), saved(name)
        assert found.shape == expected.shape
        # a picture is saved rounded down to 8 bit
        assert ((found - expected).abs() < 1.5 / 255).float().mean() > 0.999, f"{name} differs from the library's"
    beside = saved_video(client, run, "18", tmp_path)
    assert len(beside) == 7 and beside.shape[3] >= 2 * SMALL["width"]


def read_picture(path) -> torch.Tensor:
    """A PNG (3 or 4, H, W) in [0, 1]."""
    from PIL import Image

    with Image.open(path) as image:
        data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return data.view(image.height, image.width, -1).permute(2, 0, 1).float() / 255


def test_cancel_in_the_middle_of_a_window(client, models, upload_scene):
    graph = bundled("one_shot_e2fgvi_hq")
    upload_scene(graph, 8, "cancel")
    pressed, done = [], []

    def press_cancel(kind, data):
        state = data.get("nodes", {}).get("10", {}) if kind == "progress_state" else {}
        if state.get("state") == "running" and state["max"] == 2:
            done.append(state["value"])
            if not pressed:
                client.interrupt()
                pressed.append(state["value"])

    run = client.run(graph, on_event=press_cancel)
    assert run.status == "interrupted" and pressed == [0]
    assert max(done) == 0, "the window was run to its end"
    again = client.run(graph)
    assert again.status == "success", again.error
    assert "10" in again.executed(), "the interrupted result was taken from the cache"


def test_a_file_of_another_model_is_refused_in_words(client, models, upload_scene):
    graph = bundled("one_shot_e2fgvi_hq")
    upload_scene(graph, 3, "other", **SMALL)
    only(graph, "CIRI_BackboneE2FGVI")["weights"] = "sttn.pth"
    message = f"{models / 'sttn.pth'} holds STTN weights; expected E2FGVI (432x240) or E2FGVI-HQ."
    refused_in_words(client.run(graph), message, CheckpointError.__name__)


def test_a_file_that_is_not_there_is_answered_with_the_folder(client, models, upload_scene):
    graph = bundled("one_shot_e2fgvi_hq")
    upload_scene(graph, 3, "none", **SMALL)
    only(graph, "CIRI_BackboneE2FGVI")["weights"] = "E2FGVI-CVPR22.pth"
    run = client.run(graph)
    refused_in_words(run, "The weight file 'E2FGVI-CVPR22.pth' is not there.", CheckpointError.__name__)
    # where COMFYUI_DIR names a person's own ComfyUI, that one's folder is named
    assert "/models/ciri, then press R" in run.error


def test_weights_cut_short_are_refused_in_words(client, models, upload_scene):
    graph = bundled("one_shot_e2fgvi_hq")
    upload_scene(graph, 3, "cut", **SMALL)
    cut = models / "cut.pth"
    cut.write_bytes((models / "sttn.pth").read_bytes()[:1_000_000])
    try:
        only(graph, "CIRI_BackboneE2FGVI")["weights"] = cut.name
        refused_in_words(client.run(graph), str(cut), CheckpointError.__name__)
    finally:
        cut.unlink()
