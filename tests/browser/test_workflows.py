"""Every bundled workflow, opened in the page, is the graph of its API twin, also where weight files are missing."""

import json

import pytest

from scripts import browser
from scripts.comfyui import ROOT

pytestmark = pytest.mark.browser

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))


@pytest.fixture(scope="module")
def page(server):
    pytest.importorskip("playwright")
    if browser.chromium() is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with browser.comfy_page(server.url) as opened:
        yield opened


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_the_page_makes_the_api_twin_of_it(page, server, workflow):
    page.evaluate("async graph => { await window.app.loadGraphData(graph) }", json.loads(workflow.read_text()))
    page.wait_for_timeout(1000)
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
