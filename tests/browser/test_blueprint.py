"""The blueprint out of the node library is the eight nodes of the workflow, joined as there."""

import json

import pytest

from scripts import browser
from scripts.comfyui import ROOT
from scripts.make_blueprint import INSIDE

pytestmark = pytest.mark.browser

NAME = "Remove object (CIRI)"

#: Puts what the workflow has around the eight nodes around the one, and returns what the server would be sent.
SURROUND = """async name => {
    const graph = window.app.graph
    const blueprint = graph._nodes.find(node => node.title === name)
    const add = type => { const node = LiteGraph.createNode(type); graph.add(node); return node }
    const [load, parts, painted, video] = ['LoadVideo', 'GetVideoComponents', 'LoadImage', 'CreateVideo'].map(add)
    load.connect(0, parts, 0)
    parts.connect(0, blueprint, 'images')
    painted.connect(1, blueprint, 'first_mask')
    blueprint.connect(0, video, 'images')
    add('SaveVideo')
    video.connect(0, graph._nodes.find(node => node.type === 'SaveVideo'), 'video')
    return (await window.app.graphToPrompt()).output
}"""

#: Says on the one node that frame 5 was painted, then 7 and 9 again, and returns what would be sent then.
PAINTED_LATER = """async name => {
    const blueprint = window.app.graph._nodes.find(node => node.title === name)
    blueprint.widgets.find(widget => widget.name === 'painted_frame').value = 5
    blueprint.widgets.find(widget => widget.name === 'key_frames').value = '7, 9'
    return (await window.app.graphToPrompt()).output
}"""


def test_one_node_is_sent_as_the_eight_of_the_workflow(server):
    pytest.importorskip("playwright")
    if browser.chromium() is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    assert NAME in {entry["name"] for entry in server.get("/global_subgraphs").values()}
    with browser.comfy_page(server.url, width=1920, height=1080) as page:
        page.evaluate("() => window.app.graph.clear()")
        page.keyboard.press("n")
        page.locator('input[placeholder*="Search Nodes"]').first.fill("Remove object")
        page.get_by_text(NAME).first.click()
        page.wait_for_function("name => window.app.graph._nodes.some(node => node.title === name)", arg=NAME)
        prompt = page.evaluate(SURROUND, NAME)
        later = page.evaluate(PAINTED_LATER, NAME)
        (ROOT / "artefacts").mkdir(exist_ok=True)
        page.screenshot(path=ROOT / "artefacts" / "blueprint.png")

    twin = json.loads((ROOT / "workflows" / "api" / "one_shot_ciri.json").read_text())
    assert described(prompt) == described({number: twin[number] for number in INSIDE})
    painted = {n["class_type"]: n["inputs"]["painted_frame"] for n in later.values() if "painted_frame" in n["inputs"]}
    assert painted == dict.fromkeys(("CIRI_SnapMask", "CIRI_PropagateMask", "CIRI_ComplementaryAttention"), 5)
    again = {n["class_type"]: n["inputs"]["key_frames"] for n in later.values() if "key_frames" in n["inputs"]}
    assert again == {"CIRI_PropagateMask": "7, 9", "CIRI_ComplementaryAttention": "7, 9"}
    (made,) = (node for node in prompt.values() if node["class_type"] == "CreateVideo")
    assert prompt[made["inputs"]["images"][0]]["class_type"] == "CIRI_MatchGrain"


def described(prompt: dict) -> dict:
    """Our nodes by their kind, each link as the kind it comes from; what comes from outside as its slot alone."""

    def source(value: object) -> object:
        if not isinstance(value, list):
            return value
        origin = prompt.get(value[0], {}).get("class_type", "")
        return origin if origin.startswith("CIRI_") else "outside", value[1]

    ours = {node["class_type"]: node["inputs"] for node in prompt.values() if node["class_type"].startswith("CIRI_")}
    # fields of its own are what the workflow takes from other nodes
    return {
        kind: {name: source(value) for name, value in inputs.items() if name not in ("painted_frame", "key_frames")}
        for kind, inputs in ours.items()
    }
