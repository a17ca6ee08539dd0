"""What of ``/object_info`` is frozen in the snapshot, and the English texts that follow from it."""

from __future__ import annotations

from scripts.comfyui import ROOT

__all__ = ["ROOT", "english_texts", "frozen"]

#: Inputs whose choices are files on the person's disk.
FILE_INPUTS = {"weights"}


def _inputs(info: dict, group: str) -> dict:
    return info["input"].get(group, {})


def frozen(described: dict) -> dict:
    """Ids, inputs in order, types, defaults, limits and outputs; texts may change freely."""
    result = {}
    for node_id, info in sorted(described.items()):
        groups = {}
        for group in ("required", "optional"):
            entries = {}
            for name, (kind, options) in _inputs(info, group).items():
                kept = {k: v for k, v in options.items() if k not in {"tooltip", "label_on", "label_off"}}
                if name in FILE_INPUTS:
                    kept.pop("options", None)
                    kept.pop("default", None)
                entries[name] = [kind, kept]
            if entries:
                groups[group] = entries
        result[node_id] = {
            "input": groups,
            "output": info["output"],
            "output_is_list": info["output_is_list"],
            "output_name": info["output_name"],
            "output_node": info["output_node"],
        }
    return result


def english_texts(described: dict) -> dict:
    """The page's texts in ComfyUI's locale form (nodeDefs.json)."""
    texts = {}
    for node_id, info in sorted(described.items()):
        inputs = {**_inputs(info, "required"), **_inputs(info, "optional")}
        texts[node_id] = {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {
                name: {"name": name.replace("_", " "), "tooltip": options["tooltip"]}
                for name, (_, options) in inputs.items()
            },
            "outputs": {
                str(index): {"name": name, "tooltip": tooltip}
                for index, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
            },
        }
        if not inputs:
            del texts[node_id]["inputs"]
    return texts


def assert_slots_of_schema(node: dict, cls: type) -> None:
    """A node in a saved graph has the inputs and outputs of its class, and its widgets in the class's order."""
    schema = cls.GET_SCHEMA()
    assert {entry["name"]: entry["type"] for entry in node["inputs"]} == {i.id: i.io_type for i in schema.inputs}
    assert [entry["type"] for entry in node["outputs"]] == [o.io_type for o in schema.outputs]
    widgets = [entry["name"] for entry in node["inputs"] if entry.get("widget")]
    assert widgets == [i.id for i in schema.inputs if i.id in widgets], "widget values are stored by position"
