"""Bundled workflows against the nodes of a real ComfyUI, core nodes included."""

import json

import pytest

from scripts.comfyui import ROOT
from tests.nodes.schema import FILE_INPUTS


@pytest.fixture(params=sorted((ROOT / "workflows" / "api").glob("*.json")), ids=lambda path: path.stem)
def graph(request):
    return json.loads(request.param.read_text())


def test_nodes_exist_and_links_have_the_right_type(server, graph):
    known = server.get("/object_info")
    for number, node in graph.items():
        info = known[node["class_type"]]
        required, optional = info["input"].get("required", {}), info["input"].get("optional", {})
        assert set(required) <= set(node["inputs"]) <= {*required, *optional}, f"inputs of node {number}"
        for name, value in node["inputs"].items():
            wanted = {**required, **optional}[name][0]
            if isinstance(value, list):
                origin = known[graph[value[0]]["class_type"]]
                given = origin["output"][value[1]]
                assert wanted in (given, "*"), f"{name} of node {number} wants {wanted}, gets {given}"


def test_values_are_allowed(server, graph):
    known = server.get("/object_info")
    for number, node in graph.items():
        info = known[node["class_type"]]["input"]
        for name, value in node["inputs"].items():
            kind, *options = {**info.get("required", {}), **info.get("optional", {})}[name]
            # files are a person's own: ComfyUI marks a missing one on the page
            if isinstance(value, list) or name in FILE_INPUTS:
                continue
            options = options[0] if options else {}
            choices = kind if isinstance(kind, list) else options.get("options")
            if choices is not None:
                assert value in choices, f"{name} of node {number}"
            elif kind in ("INT", "FLOAT"):
                assert options["min"] <= value <= options["max"], f"{name} of node {number}"
