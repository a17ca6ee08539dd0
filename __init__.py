"""ComfyUI-CIRI: remove an object from a whole video after painting it on one frame.

ComfyUI imports this file; everything else waits until it asks for the nodes, so that tests and scripts can import
the folder without a ComfyUI around.
"""

import importlib.util
import os
import sys

WEB_DIRECTORY = "./web"


def _make_library_importable() -> None:
    """Let ``import ciri`` find the folder beside this file, without a change of ``sys.path`` for other packs."""
    if "ciri" in sys.modules:
        return
    file = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ciri", "__init__.py")
    spec = importlib.util.spec_from_file_location("ciri", file)
    sys.modules["ciri"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["ciri"])


async def comfy_entrypoint():
    """Called once by ComfyUI: return the extension that lists the nodes."""
    import folder_paths

    folder_paths.add_model_folder_path("ciri", os.path.join(folder_paths.models_dir, "ciri"))
    # a new folder starts with an empty set, which ComfyUI reads as "every file"
    folder_paths.folder_names_and_paths["ciri"][1].update({".safetensors", ".pth", ".pt"})
    _make_library_importable()
    from .nodes import CiriExtension

    return CiriExtension()
