"""ComfyUI-CIRI: remove an object from a whole video after painting it on one frame.

ComfyUI imports this file; the rest waits until it asks for the nodes, so that the folder imports without a ComfyUI.
"""

import importlib.util
import os
import sys

WEB_DIRECTORY = "./web"
_HERE = os.path.dirname(os.path.abspath(__file__))


def _make_library_importable() -> None:
    """Let ``import ciri`` find the folder beside this file, without a change of ``sys.path`` for other packs."""
    if "ciri" not in sys.modules:
        spec = importlib.util.spec_from_file_location("ciri", os.path.join(_HERE, "ciri", "__init__.py"))
        sys.modules["ciri"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["ciri"])


async def comfy_entrypoint():
    """Called once by ComfyUI: return the extension that lists the nodes."""
    import folder_paths

    folder_paths.add_model_folder_path("ciri", os.path.join(folder_paths.models_dir, "ciri"))
    # a new folder starts with an empty set, which ComfyUI reads as "every file"
    folder_paths.folder_names_and_paths["ciri"][1].update({".safetensors", ".pth", ".pt"})
    _make_library_importable()
    try:
        from .nodes import CiriExtension
    except ModuleNotFoundError as missing:
        needs = f"ComfyUI-CIRI needs the Python package {missing.name}"
        raise ImportError(f"{needs}: {sys.executable} -m pip install -r {_HERE}/requirements.txt") from None
    return CiriExtension()
