"""The bundled workflow in ComfyUI's page: from the templates to the finished video, as a person does it.

Screenshots are kept in ``artefacts/``.
"""

import json

import cv2
import pytest

from scripts import browser
from scripts.comfyui import PACK_NAME, ROOT

pytestmark = pytest.mark.browser

ARTEFACTS = ROOT / "artefacts"
NAME = "one_shot_ciri"
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
    said = workflow.get_by_text("job completed").first
    for _ in range(40):  # the page's own message lies over the picture for a while
        if not said.is_visible():
            break
        workflow.wait_for_timeout(500)
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
    assert "lite: 48 frames" in report


def on_title(page, node: int) -> tuple[float, float]:
    """Where on the page a node's title bar is."""
    return page.evaluate(
        """id => { const n = app.graph.getNodeById(id), d = app.canvas.ds;
        const r = app.canvas.canvas.getBoundingClientRect();
        return [r.x + (n.pos[0] + 60 + d.offset[0]) * d.scale, r.y + (n.pos[1] - 15 + d.offset[1]) * d.scale] }""",
        node,
    )


def choose_from_menu(page, node: int, entry: str) -> None:
    page.mouse.click(*on_title(page, node), button="right")
    page.get_by_role("menuitem", name=entry).click()
    page.wait_for_timeout(500)


def test_the_steps_of_the_note_lead_to_a_painted_mask(workflow, server):
    """Run one part, copy the frame, paste it, paint it in the mask editor, save: as the note in the workflow says."""
    workflow.evaluate("() => { window.ran = []; app.api.addEventListener('executed', e => ran.push(e.detail.node)) }")
    workflow.evaluate("() => { app.graph.getNodeById(14).widgets[0].value = 24 }")  # another frame than the example's
    workflow.mouse.click(*on_title(workflow, 4))
    workflow.locator("[class*=toolbox] button:has([class*=lucide--play])").click()
    workflow.wait_for_function("() => window.ran.length > 0", timeout=60000)
    workflow.wait_for_timeout(1000)
    assert workflow.evaluate("() => window.ran") == ["4"], "more than the frame was run"
    choose_from_menu(workflow, 4, "Copy (Clipspace)")
    choose_from_menu(workflow, 5, "Paste (Clipspace)")
    choose_from_menu(workflow, 5, "Open in MaskEditor")
    editor = workflow.get_by_role("dialog")
    editor.wait_for()
    workflow.wait_for_timeout(2000)
    x, y, width, height = workflow.evaluate(
        """() => { const r = [...document.querySelectorAll('canvas')].filter(c => c.width === 432 && c.height === 240)
        .pop().getBoundingClientRect(); return [r.x, r.y, r.width, r.height] }"""
    )
    workflow.mouse.move(x + 0.4 * width, y + 0.4 * height)
    workflow.mouse.down()
    workflow.mouse.move(x + 0.6 * width, y + 0.4 * height, steps=12)
    workflow.mouse.up()
    workflow.wait_for_timeout(500)
    workflow.screenshot(path=ARTEFACTS / "mask_editor.png")
    editor.get_by_role("button", name="Save").click()
    editor.wait_for(state="hidden")
    workflow.wait_for_function("() => String(app.graph.getNodeById(5).widgets[0].value).startsWith('clipspace/')")
    name = workflow.evaluate("() => app.graph.getNodeById(5).widgets[0].value").removesuffix(" [input]")
    pixels = cv2.imread(str(server.base / "input" / name), cv2.IMREAD_UNCHANGED)
    assert pixels.shape == (240, 432, 4)
    painted = pixels[..., 3] < 128
    # the stroke, as thick as the brush, and nothing else
    assert painted[96, 180:252].all() and not painted[:60].any() and not painted[140:].any()


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
