"""The blueprint, one-shot removal as one node: what the file says without a page."""

import json

import pytest

from tests.nodes.schema import ROOT, assert_slots_of_schema

(BLUEPRINT,) = sorted((ROOT / "subgraphs").glob("*.json"))


@pytest.fixture
def graph() -> dict:
    return json.loads(BLUEPRINT.read_text(encoding="utf-8"))


def test_it_is_one_node_that_has_the_slots_of_its_inside(graph):
    (node,), (inner,) = graph["nodes"], graph["definitions"]["subgraphs"]
    assert node["type"] == inner["id"] and node["title"] == inner["name"] == BLUEPRINT.stem
    for kind in ("inputs", "outputs"):
        slots = [[(slot["name"], slot["type"]) for slot in place[kind]] for place in (node, inner)]
        assert slots[0] == slots[1]
    assert [slot["name"] for slot in node["outputs"]] == ["images", "masks", "report"]
    assert [slot["name"] for slot in node["inputs"]][:2] == ["images", "first_mask"]
    assert graph["extra"]["BlueprintDescription"]


def test_its_nodes_have_the_slots_of_their_schema(graph, nodes):
    for node in graph["definitions"]["subgraphs"][0]["nodes"]:
        assert_slots_of_schema(node, nodes[node["type"]])


def test_its_links_join_slots_of_one_type(graph):
    (inner,) = graph["definitions"]["subgraphs"]
    nodes = {node["id"]: node for node in inner["nodes"]}
    for link in inner["links"]:
        source = (
            inner["inputs"] if link["origin_id"] == inner["inputNode"]["id"] else nodes[link["origin_id"]]["outputs"]
        )
        sink = (
            inner["outputs"] if link["target_id"] == inner["outputNode"]["id"] else nodes[link["target_id"]]["inputs"]
        )
        assert source[link["origin_slot"]]["type"] == sink[link["target_slot"]]["type"] == link["type"]


def test_the_settings_it_shows_exist(graph):
    (node,), (inner,) = graph["nodes"], graph["definitions"]["subgraphs"]
    nodes = {str(inside["id"]): inside for inside in inner["nodes"]}
    for number, name in node["properties"]["proxyWidgets"]:
        slots = inner["inputs"] if number == "-1" else nodes[number]["inputs"]
        assert name in {slot["name"] for slot in slots}
