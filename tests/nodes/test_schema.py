"""Node ids, inputs, their order, types and defaults are a promise to every saved workflow."""

import json
import os

import pytest

from tests.nodes.schema import ROOT, english_texts, frozen

SNAPSHOT = ROOT / "tests" / "nodes" / "schema_snapshot.json"
ENGLISH = ROOT / "locales" / "en" / "nodeDefs.json"
CHINESE = ROOT / "locales" / "zh" / "nodeDefs.json"
#: Inputs of these types are fields on the node, not sockets.
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
HOW = "If the change is wanted: CIRI_UPDATE=1 python -m pytest tests/nodes/test_schema.py, then look at the diff."


def _read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def described(nodes) -> dict:
    """/object_info of every node, without a server."""
    return {node_id: json.loads(json.dumps(cls.GET_NODE_INFO_V1())) for node_id, cls in nodes.items()}


@pytest.fixture(scope="module", autouse=True)
def update(described):
    """With CIRI_UPDATE set, write the generated files before they are compared."""
    if os.environ.get("CIRI_UPDATE"):
        for path, content in ((SNAPSHOT, frozen(described)), (ENGLISH, english_texts(described))):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def test_schema_matches_the_snapshot(described):
    assert frozen(described) == _read(SNAPSHOT), HOW


def test_snapshot_keeps_the_order_of_inputs(described):
    """Equal dicts may differ in order, and widget values are stored by position."""
    for node_id, entry in frozen(described).items():
        for group in ("required", "optional"):
            got, expected = entry["input"].get(group, {}), _read(SNAPSHOT)[node_id]["input"].get(group, {})
            assert list(got) == list(expected), f"{node_id}: inputs were moved. {HOW}"


def _bypassed(info: dict) -> dict[str, str | None]:
    """Output -> the input that the page hands on in its place where a person bypasses the node.

    It takes the input in the output's own place if it is of its type, else the first one that is.
    """
    sockets = [(n, entry[0]) for group in info["input"].values() for n, entry in group.items()]
    sockets = [(n, kind) for n, kind in sockets if isinstance(kind, str) and kind.isupper() and kind not in WIDGETS]
    found = {}
    for place, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True)):
        own = [n for n, of in sockets[place : place + 1] if of == kind]
        found[name] = (own + [n for n, of in sockets if of == kind] + [None])[0]
    return found


@pytest.mark.parametrize(
    ("node_id", "output", "expected"),
    [
        ("CIRI_BridgeMasks", "masks", "masks"),
        ("CIRI_ComplementaryAttention", "attention", "masks"),
        ("CIRI_FuseInactivation", "inactivation", "masks"),
        ("CIRI_InactivationInpaint", "images", "images"),
        ("CIRI_RefinePropagator", "propagator", "propagator"),
        ("CIRI_RefinePropagator", "masks", "masks"),
        ("CIRI_RefinePropagator", "images", "inpainted"),
    ],
)
def test_a_bypassed_node_hands_on_what_it_would_have_improved(described, node_id, output, expected):
    assert _bypassed(described[node_id])[output] == expected


def test_ids_and_categories(described):
    for node_id, info in described.items():
        assert node_id.startswith("CIRI_") and info["category"].split("/")[0] == "CIRI"
        assert info["description"] and info["display_name"]


def test_every_input_and_output_has_a_tooltip(described):
    for node_id, info in described.items():
        for group in ("required", "optional"):
            for name, (_, options) in info["input"].get(group, {}).items():
                assert options.get("tooltip"), f"{node_id}.{name}"
        assert all(info["output_tooltips"]), node_id


def test_english_texts_are_the_schema_s(described):
    assert _read(ENGLISH) == english_texts(described), HOW


def test_chinese_texts_are_complete(described):
    """Same nodes, inputs and outputs as the English ones, each with a Chinese text."""

    def leaves(tree, path=()):
        if isinstance(tree, dict):
            return {p for key, value in tree.items() for p in leaves(value, (*path, key))}
        return {path}

    english, chinese = _read(ENGLISH), _read(CHINESE)
    assert leaves(chinese) == leaves(english)
    for path in leaves(chinese):
        text = chinese
        for key in path:
            text = text[key]
        assert any("\u4e00" <= letter <= "\u9fff" for letter in text), f"no Chinese in {'.'.join(path)}: {text!r}"


def test_chinese_texts_name_the_menu_entry_as_the_page_shows_it():
    """ComfyUI's Chinese page leaves this entry in English."""
    page = (ROOT / "web" / "docs" / "CIRI_PropagateMask" / "zh.md").read_text(encoding="utf-8")
    for text in (_read(CHINESE)["CIRI_PropagateMask"]["inputs"]["first_mask"]["tooltip"], page):
        assert "Open in MaskEditor" in text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_node_has_help_with_a_picture(described, language):
    docs = ROOT / "web" / "docs"
    for node_id, info in described.items():
        # without a page in its language, ComfyUI shows the one beside the folder
        page = docs / f"{node_id}.md" if language == "en" else docs / node_id / f"{language}.md"
        assert page.is_file(), f"{node_id} has no help page in {language!r}"
        text = page.read_text(encoding="utf-8")
        pictures = [part.split(")")[0] for part in text.split("](")[1:]]
        assert pictures, f"{page} shows no picture"
        for name in pictures:
            # ComfyUI resolves names against the docs folder, not against the page's own
            assert (docs / name).is_file(), f"{page} names {name}, which is not in {docs}"
        for name in [*info["input"].get("required", {}), *info["input"].get("optional", {})]:
            assert f"`{name}`" in text, f"{page} does not explain {name}"
