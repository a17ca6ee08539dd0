"""The evaluation workflow in a real ComfyUI: numbers, a plot, and words for clips that do not belong together."""

import json
import re

import pytest

from ciri.media import write_clip
from scripts.comfyui import ROOT


@pytest.fixture
def graph():
    return json.loads((ROOT / "workflows" / "api" / "evaluate.json").read_text())


def clean_clip(client, scene, tmp_path, frames):
    file = tmp_path / "clean.mp4"
    write_clip(file, scene.background.repeat(frames, 1, 1, 1))
    return client.upload(file)


def test_the_workflow_measures_and_plots(client, graph, upload_scene, tmp_path):
    scene = upload_scene(graph, 8, "measured")
    graph["3"]["inputs"]["file"] = clean_clip(client, scene, tmp_path, 8)
    run = client.run(graph)
    assert run.status == "success", run.error
    report = run.outputs["11"]["text"][0]
    local, outside = (
        float(re.search(rf"\| {name} \| (-?[\d.]+) dB", report).group(1))
        for name in (r"local PSNR \(mask\)", "outside PSNR")
    )
    # the square hides the same place all the time; elsewhere only what the codec did differs
    assert 10 < local < 30 < outside
    assert run.outputs["10"]["images"] and run.outputs["10"]["text"] == [report]


def test_clips_of_different_length_are_answered_in_words(client, graph, upload_scene, tmp_path):
    scene = upload_scene(graph, 8, "measured")
    graph["3"]["inputs"]["file"] = clean_clip(client, scene, tmp_path, 5)
    del graph["12"]
    run = client.run(graph)
    assert run.status == "error" and "expected the same count and size" in str(run.error)
