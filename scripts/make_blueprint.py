"""Makes ``subgraphs/NAME.json``: all of one-shot removal as one node, for the page's node library.

    .venv/bin/python -m scripts.make_blueprint

ComfyUI offers what lies in ``subgraphs/`` as blueprints: a node that holds nodes, to be opened and changed at will. The
page itself joins eight nodes of ``workflows/api/one_shot_ciri.json``, so the file is what "Publish" would have
written. Needs ComfyUI and Chromium (``./test.sh`` sets both up).
"""

from __future__ import annotations

import json
import tempfile
import uuid
from pathlib import Path

from scripts.browser import comfy_page
from scripts.comfyui import ROOT, Server

#: What the node library calls it: the file's name.
NAME = "Remove object (CIRI)"
TARGET = ROOT / "subgraphs" / f"{NAME}.json"

DESCRIPTION = "Follows an object that was painted on one frame, and removes it from the whole clip, with its shadow."

#: The nodes inside, by their number in the workflow, and where they lie: left, top, width, height.
INSIDE = {
    "30": (300, 100, 300, 420),
    "6": (300, 590, 300, 170),
    "9": (300, 830, 300, 110),
    "7": (680, 100, 320, 420),
    "15": (1080, 100, 320, 420),
    "16": (1480, 100, 320, 420),
    "10": (1880, 100, 320, 420),
    "31": (2280, 100, 320, 420),
}
#: Their settings that the node shows, besides those with an input of its own.
SHOWN = [("30", "reach"), ("15", "shadow"), ("10", "grow"), ("10", "feather"), ("31", "grain")]
#: The inputs and outputs in the order people look for them.
INPUTS = ["images", "first_mask", "key_masks", "further_objects", "keep", "painted_frame", "key_frames"]
OUTPUTS = ["images", "masks", "report"]

#: Joins the nodes of these numbers and forgets the others.
JOIN = """([numbers, name]) => {
    const graph = window.app.graph
    const chosen = graph._nodes.filter(node => numbers.includes(String(node.id)))
    const {subgraph, node} = graph.convertToSubgraph(new Set(chosen))
    subgraph.name = node.title = name
    for (const other of [...graph._nodes]) if (other !== node) graph.remove(other)
    return JSON.stringify(graph.serialize())
}"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Server(base=Path(folder)) as server, comfy_page(server.url) as page:
        page.evaluate("w => window.app.loadApiJson(w, 'workflow')", surrounded())
        page.wait_for_timeout(1500)
        graph = json.loads(page.evaluate(JOIN, [list(INSIDE), NAME]))
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(tidied(graph), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(TARGET)


def surrounded() -> dict:
    """The workflow, with something connected to every input and output that the joint node is to have."""
    api = json.loads((ROOT / "workflows" / "api" / "one_shot_ciri.json").read_text(encoding="utf-8"))
    kept = {number: api[number] for number in ("1", "2", "5", "11", "14", "24", *INSIDE)}
    further = {"image": "ciri_example_frame0.png", "channel": "alpha"}
    kept["20"] = {"class_type": "LoadImageMask", "inputs": further}
    kept["7"]["inputs"]["further_objects"] = ["20", 0]
    kept["23"] = {"class_type": "LoadImageMask", "inputs": further}
    kept["7"]["inputs"]["keep"] = ["23", 0]
    kept["25"] = {"class_type": "LoadImageMask", "inputs": further}
    kept["7"]["inputs"]["key_masks"] = ["25", 0]
    kept["21"] = {"class_type": "CIRI_MaskOverlay", "inputs": {"images": ["2", 0], "masks": ["7", 0]}}
    kept["22"] = {"class_type": "PreviewAny", "inputs": {"source": ["7", 1]}}
    return kept


def tidied(graph: dict) -> dict:
    """Put positions, the order of outputs, shown settings and lasting ids into what the page wrote."""
    (node,), (inner,) = graph["nodes"], graph["definitions"]["subgraphs"]
    for own in inner["nodes"]:
        left, top, width, height = INSIDE[str(own["id"])]
        own["pos"], own["size"] = [left, top], [width, height]
    for slot in [*inner["inputs"], *node["inputs"]]:
        # named after the first node that takes it, which would take any mask
        if slot["name"] == "mask":
            slot["name"], slot["localized_name"] = "first_mask", "first mask"
    before = [slot["name"] for slot in inner["inputs"]]
    for inputs in (inner["inputs"], node["inputs"]):
        inputs.sort(key=lambda slot: INPUTS.index(slot["name"]))
    for link in inner["links"]:
        if link["origin_id"] == inner["inputNode"]["id"]:
            link["origin_slot"] = INPUTS.index(before[link["origin_slot"]])
    before = [output["name"] for output in inner["outputs"]]
    for outputs in (inner["outputs"], node["outputs"]):
        outputs.sort(key=lambda output: OUTPUTS.index(output["name"]))
    for link in inner["links"]:
        if link["target_id"] == inner["outputNode"]["id"]:
            link["target_slot"] = OUTPUTS.index(before[link["target_slot"]])
            # the preview that stood outside takes anything, and the link remembers it
            link["type"] = inner["outputs"][link["target_slot"]]["type"]
    inner["inputNode"]["bounding"][:2] = [60, 100]
    inner["outputNode"]["bounding"][:2] = [2680, 100]
    # the same name, the same id: a file made again differs only where it changed
    inner["id"] = node["type"] = _uuid("definition")
    graph["id"], graph["revision"] = _uuid("graph"), 0
    graph["extra"] = {"BlueprintDescription": DESCRIPTION}
    for slot in [*inner["inputs"], *inner["outputs"]]:
        slot["id"] = _uuid(slot["name"] + str(slot in inner["inputs"]))
    node["pos"], node["size"] = [0, 0], [300, 210]
    node["properties"]["proxyWidgets"] += [list(setting) for setting in SHOWN]
    return graph


def _uuid(what: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{what}.{NAME}"))


if __name__ == "__main__":
    main()
