"""The bundled workflow in ComfyUI's page: from the templates to the finished video, as a person does it.

Screenshots are kept in ``artefacts/``.
"""

import json

import pytest

from scripts import browser
from scripts.comfyui import PACK_NAME, ROOT

pytestmark = pytest.mark.browser

ARTEFACTS = ROOT / "artefacts"
NAME = "one_shot_removal"
TWIN = json.loads((ROOT / "workflows" / "api" / f"{NAME}.json").read_text())
ENDS = ["execution_success", "execution_error", "execution_interrupted"]


@pytest.fixture(scope="module")
def page(server):
    pytest.importorskip("playwright")
    if browser.chromium() is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    ARTEFACTS.mkdir(exist_ok=True)
    with browser.comfy_page(server.url, width=1920, height=1080) as opened:
        yield opened


@pytest.fixture(scope="module")
def workflow(page):
    """The bundled workflow, opened from the list of templates."""
    page.locator(".templates-tab-button").first.click()
    page.get_by_text(PACK_NAME).first.click()
    card = page.get_by_test_id(f"template-workflow-{NAME}")
    card.wait_for()
    page.wait_for_timeout(1000)
    page.screenshot(path=ARTEFACTS / "templates.png")
    card.click()
    page.wait_for_function("() => window.app.graph._nodes.some(n => n.type === 'CIRI_PropagateMask')", timeout=30000)
    page.wait_for_timeout(2000)
    page.screenshot(path=ARTEFACTS / "loaded.png")
    return page


def known(server, node: dict) -> dict:
    """A node of a prompt without titles and without inputs of the page alone, such as LoadVideo's player."""
    info = server.get(f"/object_info/{node['class_type']}")[node["class_type"]]["input"]
    names = {*info.get("required", {}), *info.get("optional", {})}
    return {
        "class_type": node["class_type"],
        "inputs": {name: value for name, value in node["inputs"].items() if name in names},
    }


def test_the_page_makes_the_api_twin_of_it(workflow, server):
    prompt = workflow.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert {number: known(server, node) for number, node in prompt.items()} == TWIN


def test_run_shows_the_finished_video(workflow):
    workflow.evaluate(
        """ends => { window.ended = []; for (const name of ends)
        window.app.api.addEventListener(name, e => window.ended.push([name, e.detail])) }""",
        ENDS,
    )
    workflow.get_by_test_id("queue-button").first.click()
    workflow.wait_for_function("() => window.ended.length > 0", timeout=240000)
    workflow.wait_for_timeout(3000)
    workflow.screenshot(path=ARTEFACTS / "finished.png")
    ((end, detail),) = workflow.evaluate("() => window.ended")
    assert end == "execution_success", detail
    players = workflow.evaluate(
        "() => [...document.querySelectorAll('video')].map(v => [v.currentSrc, v.videoWidth, v.readyState])"
    )
    shown = {source.split("filename=")[1].split("_0")[0]: (width, state) for source, width, state in players}
    # the saved result, and the players of our nodes
    assert shown["CIRI"][0] == 432 and shown["ciri_preview"][0] == 432
    assert all(state >= 2 for _, _, state in players), "a player has no picture"
    report = workflow.evaluate("() => window.app.graph.getNodeById(8).widgets.map(w => w.value).join(' ')")
    assert "flow: 48 frames" in report


def open_help(page) -> None:
    """Select Propagate mask and press its "i"."""
    page.evaluate(
        """() => { const canvas = window.app.canvas, node = window.app.graph.getNodeById(7);
        canvas.centerOnNode(node); canvas.selectNode(node); canvas.setDirty(true, true) }"""
    )
    page.get_by_test_id("info-button").first.click()


def test_help_shows_the_page_and_its_picture(workflow):
    open_help(workflow)
    picture = workflow.locator("img[src*='CIRI_PropagateMask/picture.jpg']").first
    picture.wait_for(timeout=20000)
    workflow.wait_for_timeout(1000)
    workflow.screenshot(path=ARTEFACTS / "help.png")
    assert picture.evaluate("image => image.naturalWidth") == 640


def test_help_is_chinese_on_a_chinese_page(workflow):
    """The nodes' own names stay English in this version of the page: it loads a language over the packs' texts."""
    workflow.evaluate("async () => await window.app.extensionManager.setting.set('Comfy.Locale', 'zh')")
    try:
        workflow.reload()
        workflow.wait_for_function(browser.READY, timeout=120000)
        workflow.wait_for_function("() => window.app.graph.getNodeById(7)", timeout=30000)
        workflow.wait_for_timeout(1500)
        open_help(workflow)
        workflow.get_by_role("heading", name="遮罩传播").first.wait_for(timeout=20000)
        workflow.wait_for_timeout(1000)
        workflow.screenshot(path=ARTEFACTS / "help_zh.png")
    finally:
        workflow.evaluate("async () => await window.app.extensionManager.setting.set('Comfy.Locale', 'en')")


def test_nothing_left_the_machine(page):
    assert page.outside == []
