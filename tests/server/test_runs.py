"""Workflows run in a real ComfyUI: results, caching, interrupt, batches, bad input."""

import time

import numpy as np
import pytest
import torch

from ciri.media import read_clip, write_clip, write_png
from scripts.comfyui import ROOT
from tests.server.conftest import painted

ASSETS = ROOT / "assets"


def saved_video(client, run, node: str, folder) -> torch.Tensor:
    (item,) = [item for item in run.files() if item["node"] == node]
    return read_clip(client.download(item, folder)).frames


def psnr(first: torch.Tensor, second: torch.Tensor, where: torch.Tensor) -> float:
    where = where.expand_as(first)
    return float(10 * torch.log10(1 / ((first - second) ** 2)[where].mean()))


def with_masks_saved(graph: dict) -> dict:
    """Propagation alone; the masks are saved as a video by node "masks"."""
    kept = {number: graph[number] for number in ("1", "2", "5", "6", "7", "14", "30")}
    return kept | {
        "grey": {"class_type": "MaskToImage", "inputs": {"mask": ["7", 0]}},
        "video": {"class_type": "CreateVideo", "inputs": {"images": ["grey", 0], "fps": ["2", 2]}},
        "masks": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["video", 0], "filename_prefix": "masks", "format": "auto", "codec": "auto"},
        },
    }


def intersection_over_union(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    found, truth = found[:, :1] > 0.5, truth > 0.5
    return (found & truth).flatten(1).sum(1) / (found | truth).flatten(1).sum(1)


def test_the_bundled_workflow_removes_the_object_and_then_comes_from_the_cache(client, bundled, tmp_path):
    run = client.run(bundled)
    assert run.status == "success", run.error
    before, clean = read_clip(ASSETS / "ciri_example.mp4").frames, read_clip(ASSETS / "ciri_example_clean.mp4").frames
    after = saved_video(client, run, "12", tmp_path)
    assert after.shape == before.shape
    hidden = (before - clean).abs().amax(1, keepdim=True) > 0.15
    assert psnr(before, clean, hidden) < 12 and psnr(after, clean, hidden) > 24
    # what the codec costs away from the object
    assert psnr(after, before, ~hidden) > 30
    # the players inside the nodes, and the report as text
    for node in ("7", "13"):
        assert len(saved_video(client, run, node, tmp_path)) == len(before)
    assert "lite: 48 frames" in run.outputs["8"]["text"][0]
    # a second identical queue
    again = client.run(bundled)
    assert again.status == "success" and again.executed() == []


def test_changing_the_fill_does_not_propagate_again(client, bundled, upload_scene):
    upload_scene(bundled, 8, "stages")
    assert client.run(bundled).status == "success"
    bundled["10"]["inputs"]["feather"] = 5
    assert set(client.run(bundled).executed()) == {"10", "31", "11", "12", "13"}


def test_an_interrupt_returns_at_once_and_the_next_run_is_right(client, bundled, upload_scene, tmp_path):
    scene = upload_scene(bundled, 240, "long")
    graph, pressed = with_masks_saved(bundled), []

    def press_cancel(kind, data):
        state = data.get("nodes", {}).get("7", {}) if kind == "progress_state" else {}
        if not pressed and state.get("state") == "running" and state["value"] >= 0.02 * state["max"] > 0:
            client.interrupt()
            pressed.append(time.monotonic())

    run = client.run(graph, on_event=press_cancel)
    assert pressed and run.status == "interrupted"
    assert time.monotonic() - pressed[0] < 2, "the run went on after the interrupt"

    again = client.run(graph)
    assert again.status == "success", again.error
    assert "7" in again.executed(), "the interrupted result was taken from the cache"
    masks = saved_video(client, again, "masks", tmp_path)
    assert intersection_over_union(masks, scene.masks).mean() > 0.8


def test_two_clips_queued_as_a_batch_give_each_its_own_result(client, bundled, upload_scene, tmp_path):
    graphs, scenes = [], []
    for name, size in (("first", {"height": 80, "width": 128}), ("second", {"height": 96, "width": 96})):
        graph = with_masks_saved({number: {**node, "inputs": dict(node["inputs"])} for number, node in bundled.items()})
        scenes.append(upload_scene(graph, 10, name, **size))
        graphs.append(graph)
    queued = [client.queue(graph) for graph in graphs]
    for prompt, scene, name in zip(queued, scenes, ("a", "b"), strict=True):
        entry = client.history(prompt, timeout=120)
        assert entry["status"]["status_str"] == "success"
        item = entry["outputs"]["masks"]["images"][0]
        masks = read_clip(client.download(item, tmp_path / name)).frames
        assert masks.shape[2:] == scene.masks.shape[2:]
        assert intersection_over_union(masks, scene.masks).min() > 0.7


def test_masks_of_another_tool_are_bridged_where_they_drop_out(client, bundled, upload_scene, tmp_path):
    graph = with_masks_saved(bundled)
    scene = upload_scene(graph, 12)
    given = scene.masks.clone()
    given[4:6] = 0
    # the other half of the target
    left = int(torch.nonzero(given[8, 0].any(0))[0])
    given[8, :, :, left : left + 10] = 0
    write_clip(tmp_path / "given.mp4", given.expand(-1, 3, -1, -1))
    del graph["5"], graph["14"], graph["30"], graph["7"]
    graph |= {
        "other": {"class_type": "LoadVideo", "inputs": {"file": client.upload(tmp_path / "given.mp4")}},
        "grey frames": {"class_type": "GetVideoComponents", "inputs": {"video": ["other", 0]}},
        "given": {"class_type": "ImageToMask", "inputs": {"image": ["grey frames", 0], "channel": "red"}},
        "7": {
            "class_type": "CIRI_BridgeMasks",
            "inputs": {"images": ["2", 0], "masks": ["given", 0], "propagator": ["6", 0]},
        },
        "told": {"class_type": "PreviewAny", "inputs": {"source": ["7", 1]}},
    }
    run = client.run(graph)
    assert run.status == "success", run.error
    masks = saved_video(client, run, "masks", tmp_path)
    agreement = intersection_over_union(masks, scene.masks)
    assert agreement.min() > 0.7, agreement
    assert intersection_over_union(given, scene.masks).min() == 0
    assert "dropped out in frames 4-5, 8: lite bridged" in run.outputs["told"]["text"][0]
    assert len(saved_video(client, run, "7", tmp_path)) == 12


# ------------------------------------------------------------------------------------------------ bad input


def opaque(scene, folder):
    image = np.ascontiguousarray((255 * scene.clip[0]).byte().permute(1, 2, 0).numpy())
    return _picture(folder, "opaque", image)


def empty(scene, folder):
    # one pixel is not quite opaque: LoadImage keeps the alpha channel, and there is a mask without an object
    mask = torch.zeros_like(scene.masks[0])
    mask[0, 0, 0] = 0.2
    return _picture(folder, "empty", painted(scene.clip[0], mask))


def full(scene, folder):
    return _picture(folder, "full", painted(scene.clip[0], torch.ones_like(scene.masks[0])))


def another_shape(scene, folder):
    return _picture(folder, "square", painted(scene.clip[0, :, :64, :64], scene.masks[0, :, :64, :64]))


def _picture(folder, name, image):
    write_png(folder / f"{name}.png", image)
    return folder / f"{name}.png"


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (
            opaque,
            "The painted mask is the empty 64x64 mask that LoadImage gives for an image on which nothing was painted",
        ),
        (empty, "The painted mask is empty (no pixel above 0.5). Paint the object white on one frame"),
        (full, "The painted mask covers the whole frame, so there is no background to fill from."),
        (another_shape, "The painted mask is 64x64 but the frames are 128x80: the aspect ratios differ"),
    ],
)
def test_a_bad_mask_is_answered_in_words(client, bundled, upload_scene, tmp_path, picture, message):
    scene = upload_scene(bundled, 3, "short")
    bundled["5"]["inputs"]["image"] = client.upload(picture(scene, tmp_path))
    refused_in_words(client.run(bundled), message, "MaskError")


@pytest.mark.parametrize(
    ("node", "name", "value", "message"),
    [
        ("7", "painted_frame", 3, "Frame number 3 is outside the clip; it has frames 0 to 2."),
        (
            "7",
            "key_frames",
            "1",
            "key_masks holds 0 masks and key_frames 1 frame numbers; connect one mask to key_masks for each frame",
        ),
        # refused before the run, it would be left out in silence: the picture of the frame can be made all the same
        ("7", "key_frames", "24, last", "key_frames is '24, last'; expected frame numbers separated by commas"),
        ("13", "mode", "diagonal", "The mode is 'diagonal'; expected one of side by side"),
    ],
)
def test_a_bad_value_is_answered_in_words(client, bundled, upload_scene, node, name, value, message):
    upload_scene(bundled, 3, "short")
    bundled[node]["inputs"][name] = value
    refused_in_words(client.run(bundled), message, "Error")


def test_clips_of_different_length_are_answered_in_words(client, bundled, upload_scene):
    upload_scene(bundled, 3, "short")
    bundled["two"] = {
        "class_type": "ImageFromBatch",
        "inputs": {"image": ["2", 0], "batch_index": 0, "length": 2},
    }
    bundled["13"]["inputs"]["second"] = ["two", 0]
    refused_in_words(
        client.run(bundled), "The clips have 3 and 2 frames; compare clips of the same length", "ClipError"
    )


def refused_in_words(run, message: str, kind: str) -> None:
    """The history holds our text alone: no traceback in the message, and nothing of the library in the traceback."""
    assert run.status == "error"
    assert run.error.startswith(message) and "Traceback" not in run.error
    (failed,) = [data for event, data in run.history["status"]["messages"] if event == "execution_error"]
    assert failed["exception_type"].endswith(kind) and failed["exception_type"].startswith("ciri.errors.")
    assert not [line for line in failed["traceback"] if "/ciri/" in line]
