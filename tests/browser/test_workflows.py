"""Every bundled workflow, opened in the page, is the graph of its API twin, also where weight files are missing.

Screenshots are kept in ``artefacts/``.
"""

import itertools
import json

import pytest

from scripts import browser
from scripts.comfyui import ROOT

pytestmark = pytest.mark.browser

ARTEFACTS = ROOT / "artefacts"
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))


@pytest.fixture(scope="module")
def page(server):
    pytest.importorskip("playwright")
    if browser.chromium() is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    ARTEFACTS.mkdir(exist_ok=True)
    with browser.comfy_page(server.url, width=1920, height=1080) as opened:
        yield opened


def open_workflow(page, workflow):
    page.evaluate("async graph => { await window.app.loadGraphData(graph) }", json.loads(workflow.read_text()))
    page.wait_for_timeout(1000)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_the_page_makes_the_api_twin_of_it(page, server, workflow):
    open_workflow(page, workflow)
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    known = server.get("/object_info")

    def named(node: dict) -> dict:
        """Without titles and the inputs of the page alone, such as LoadVideo's player."""
        info = known[node["class_type"]]["input"]
        names = {*info.get("required", {}), *info.get("optional", {})}
        return {name: value for name, value in node["inputs"].items() if name in names}

    twin = json.loads((ROOT / "workflows" / "api" / workflow.name).read_text())
    assert {number: (node["class_type"], named(node)) for number, node in prompt.items()} == {
        number: (node["class_type"], node["inputs"]) for number, node in twin.items()
    }


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_nothing_lies_over_another_thing(page, workflow):
    open_workflow(page, workflow)
    page.keyboard.press("Escape")  # the message about weight files that are not there
    page.keyboard.press(".")  # fit the graph into the view
    page.wait_for_timeout(1500)
    page.screenshot(path=ARTEFACTS / f"workflow_{workflow.stem}.png")
    graph = json.loads(workflow.read_text())
    nodes, groups = page.evaluate(
        """() => [window.app.graph._nodes, window.app.graph._groups].map(things => things.map(thing => {
            const [x, y, width, height] = thing.boundingRect ?? thing._bounding
            return {name: thing.title, x, y, right: x + width, bottom: y + height} }))"""
    )
    assert (len(nodes), len(groups)) == (len(graph["nodes"]), len(graph["groups"]))
    assert not overlaps(nodes)
    assert not overlaps(groups)


def overlaps(boxes):
    """Names of the pairs that share a part of the plane."""
    return [
        (one["name"], other["name"])
        for one, other in itertools.combinations(boxes, 2)
        if min(one["right"], other["right"]) > max(one["x"], other["x"])
        and min(one["bottom"], other["bottom"]) > max(one["y"], other["y"])
    ]
