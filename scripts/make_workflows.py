"""Makes ``workflows/NAME.json`` (for the page) from ``workflows/api/NAME.json`` and ``scripts/layouts/NAME.json``.

    .venv/bin/python -m scripts.make_workflows [NAME ...]

The page itself turns the API graph into its own format, so the file is what "Save" would have written; the layout
adds positions, titles, groups and notes. Needs ComfyUI and Chromium (``./test.sh`` sets both up).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import uuid
from pathlib import Path

from scripts.browser import comfy_page
from scripts.comfyui import ROOT, Server

WORKFLOWS = ROOT / "workflows"
LAYOUTS = ROOT / "scripts" / "layouts"
#: Room of a group around its nodes, and above them for titles.
MARGIN, HEADER = 20, 80


def main() -> None:
    known = sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all): {', '.join(known)}")
    names = parser.parse_args().names or known
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"there is no workflows/api/{unknown[0]}.json")
    with tempfile.TemporaryDirectory() as folder, Server(base=Path(folder)) as server:
        for name in names:
            target = WORKFLOWS / f"{name}.json"
            target.write_text(json.dumps(make(server.url, name), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(target)


def make(url: str, name: str) -> dict:
    """Return the workflow in the page's format."""
    api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    layout = json.loads((LAYOUTS / f"{name}.json").read_text(encoding="utf-8"))
    with comfy_page(url) as page:
        page.evaluate("w => window.app.loadApiJson(w, 'workflow')", api)
        page.wait_for_timeout(1500)
        # text made in the page: handed over as objects, 'undefined' would turn into null
        graph = json.loads(page.evaluate("() => JSON.stringify(window.app.graph.serialize())"))
    return arrange(graph, layout, name)


def arrange(graph: dict, layout: dict, name: str) -> dict:
    """Put positions, titles, groups and notes into a serialized graph."""
    boxes = {}
    for node in graph["nodes"]:
        place = layout["nodes"][str(node["id"])]
        node["pos"], node["size"] = place["pos"], place["size"]
        boxes[str(node["id"])] = [*place["pos"], *place["size"]]
        # a number that changes by itself after every run would never be the one that was painted
        node["widgets_values"] = ["fixed" if v == "randomize" else v for v in node.get("widgets_values") or []]
        if "title" in place:
            node["title"] = place["title"]
    for note in layout["notes"]:
        graph["last_node_id"] += 1
        graph["nodes"].append(_note(graph["last_node_id"], len(graph["nodes"]), note))
    graph["groups"] = [_group(index + 1, group, boxes) for index, group in enumerate(layout["groups"])]
    # the same name, the same id: a file made again differs only where it changed
    graph["id"], graph["revision"] = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.ciri")), 0
    # just large enough for the page to write the nodes' titles
    graph["extra"] = {"ds": {"scale": 0.65, "offset": [130, 230]}}
    return graph


def _note(number: int, order: int, note: dict) -> dict:
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": note["pos"],
        "size": note["size"],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": note["title"],
        "properties": {},
        "widgets_values": ["\n".join(note["text"])],
        "color": "#432",
        "bgcolor": "#653",
    }


def _group(number: int, group: dict, boxes: dict) -> dict:
    inside = [boxes[node] for node in group["nodes"]]
    left, top = min(b[0] for b in inside) - MARGIN, min(b[1] for b in inside) - HEADER
    right, bottom = max(b[0] + b[2] for b in inside) + MARGIN, max(b[1] + b[3] for b in inside) + MARGIN
    return {
        "id": number,
        "title": group["title"],
        "bounding": [left, top, right - left, bottom - top],
        "color": group["color"],
        "font_size": 24,
        "flags": {},
    }


if __name__ == "__main__":
    main()
