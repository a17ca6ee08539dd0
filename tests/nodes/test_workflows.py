"""Bundled workflows: the page's file and its API twin are one graph, its links fit, its nodes exist. No server."""

import json

import pytest

from scripts.comfyui import ROOT
from tests.nodes.schema import assert_slots_of_schema

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
NOTES = {"MarkdownNote", "Note"}
#: Widgets that the page adds for itself.
PAGE_ONLY = {"upload", "video-preview"}
#: Follows the value of a number that could change by itself after every run.
KEPT = "fixed"


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def twin(path):
    return load(ROOT / "workflows" / "api" / path.name)


def to_api(graph: dict) -> dict:
    """The page's format as the API's: the rules of ``app.graphToPrompt`` that these workflows need."""
    origins = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    result = {}
    for node in graph["nodes"]:
        if node["type"] in NOTES:
            continue
        values = iter([value for value in node.get("widgets_values") or [] if value != KEPT])
        inputs = {}
        for entry in node["inputs"]:
            value = next(values) if entry.get("widget") else None
            if entry.get("link") is not None:
                inputs[entry["name"]] = origins[entry["link"]]
            elif entry.get("widget") and entry["name"] not in PAGE_ONLY:
                inputs[entry["name"]] = value
        assert not list(values), f"{node['type']} holds more widget values than it has widgets"
        result[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return result


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request):
    return request.param


def test_every_workflow_has_a_twin_a_layout_and_a_thumbnail():
    names = {path.stem for path in WORKFLOWS}
    assert names and names == {path.stem for path in (ROOT / "workflows" / "api").glob("*.json")}
    assert names == {path.stem for path in (ROOT / "scripts" / "layouts").glob("*.json")}
    assert names == {path.stem for path in (ROOT / "workflows").glob("*.jpg")}


def test_the_page_s_file_equals_its_api_twin(workflow):
    assert to_api(load(workflow)) == {
        number: {"class_type": node["class_type"], "inputs": node["inputs"]} for number, node in twin(workflow).items()
    }


def test_no_number_changes_by_itself(workflow):
    values = [value for node in load(workflow)["nodes"] for value in node.get("widgets_values") or []]
    assert not {"randomize", "increment", "decrement"} & {value for value in values if isinstance(value, str)}


def test_links_join_existing_slots_of_one_type(workflow):
    graph = load(workflow)
    nodes = {node["id"]: node for node in graph["nodes"]}
    for number, origin, out_slot, target, in_slot, kind in graph["links"]:
        output, into = nodes[origin]["outputs"][out_slot], nodes[target]["inputs"][in_slot]
        assert number in output["links"] and into["link"] == number
        assert into["type"] in (output["type"], "*") and kind in (output["type"], into["type"])


def test_our_nodes_have_the_slots_of_their_schema(workflow, nodes):
    for node in load(workflow)["nodes"]:
        if node["type"].startswith("CIRI_"):
            assert_slots_of_schema(node, nodes[node["type"]])


def test_a_note_tells_a_newcomer_what_to_do(workflow):
    notes = [node for node in load(workflow)["nodes"] if node["type"] == "MarkdownNote"]
    assert notes and "Run" in notes[0]["widgets_values"][0]


def test_the_note_names_the_field_of_the_painted_frame_or_a_workflow_that_does(workflow):
    nodes = load(workflow)["nodes"]
    if "Which frame do you paint?" in [node.get("title") for node in nodes]:
        (note,) = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
        assert "**Which frame do you paint?**" in note or "see the workflow **one_shot_removal**" in note


def test_nothing_overlaps(workflow):
    """Nodes do not lie on each other (titles are 30 pixels high), and each is within a group or is a note."""
    graph = load(workflow)
    boxes = [(n["type"], n["pos"][0], n["pos"][1] - 30, *n["size"]) for n in graph["nodes"]]
    for i, (first, x, y, w, h) in enumerate(boxes):
        for second, u, v, p, q in boxes[:i]:
            apart = x + w <= u or u + p <= x or y + h + 30 <= v or v + q + 30 <= y
            assert apart, f"{first} and {second} overlap"
    for kind, x, y, w, h in boxes:
        inside = any(
            gx <= x and gy <= y and x + w <= gx + gw and y + 30 + h <= gy + gh
            for gx, gy, gw, gh in (group["bounding"] for group in graph["groups"])
        )
        assert inside or kind in NOTES, f"{kind} is in no group"
