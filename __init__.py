"""ComfyUI-CIRI: remove an object from a whole video after painting it on one frame."""

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
    """Called once by ComfyUI: import the rest, which has waited for that, and return what lists the nodes."""
    import folder_paths

    folder_paths.add_model_folder_path("ciri", os.path.join(folder_paths.models_dir, "ciri"))
    # a new folder starts with an empty set, which ComfyUI reads as "every file"
    folder_paths.folder_names_and_paths["ciri"][1].update({".safetensors", ".pth", ".pt"})
    _make_library_importable()
    try:
        from .nodes import CiriExtension
    except ModuleNotFoundError as error:
        problem, cure = f"the Python package {error.name}", f"-r {_HERE}/requirements.txt"
    except ImportError as error:
        if "libGL" not in str(error):
            raise
        problem, cure = f"OpenCV without windows here ({error})", "--force-reinstall opencv-python-headless"
    else:
        return CiriExtension()
    raise ImportError(f"ComfyUI-CIRI needs {problem}: {sys.executable} -m pip install {cure}")
