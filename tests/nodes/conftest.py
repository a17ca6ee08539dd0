"""Loads the pack as ComfyUI does, without a server. Needs ComfyUI's code (``./test.sh`` fetches it), else skips."""

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from scripts import comfyui

ROOT = comfyui.ROOT
PACK = "ciri_pack"


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The pack's root module, its nodes imported; ComfyUI's folders point to a temporary place."""
    code = comfyui.locate().code
    if not (code / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {code}; ./test.sh fetches it")
    # before everything else: ComfyUI has a module called nodes, as this project has
    sys.path.insert(0, str(code))
    try:
        import comfy.cli_args

        comfy.cli_args.args.cpu = not torch.cuda.is_available()
        import comfy.model_management
        import comfy.utils
        import comfy_api.latest  # noqa: F401
        import folder_paths
    except ImportError as error:
        sys.path.remove(str(code))
        if Path(sys.prefix) == ROOT / ".venv":
            raise
        pytest.skip(f"this Python lacks what ComfyUI needs ({error}); ./test.sh has it")

    for kind in ("input", "output", "temp"):
        folder = tmp_path_factory.mktemp(kind)
        getattr(folder_paths, f"set_{kind}_directory")(str(folder))
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    asyncio.run(module.comfy_entrypoint())
    return module


@pytest.fixture(scope="session")
def nodes(pack: ModuleType) -> dict:
    """Every node class by its id."""
    extension = asyncio.run(pack.comfy_entrypoint())
    return {cls.GET_SCHEMA().node_id: cls for cls in asyncio.run(extension.get_node_list())}


@pytest.fixture
def run(nodes: dict):
    """``run("CIRI_X", images=..., ...)``: execute a node with its schema's defaults, as ComfyUI would."""

    def call(node_id: str, **inputs):
        cls = nodes[node_id]
        defaults = {i.id: i.default for i in cls.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
        with torch.inference_mode():
            return cls.EXECUTE_NORMALIZED(**{**defaults, **inputs})

    return call


@pytest.fixture
def folder(nodes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty ``models/ciri`` for this test alone."""
    import folder_paths

    endings = folder_paths.folder_names_and_paths["ciri"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ciri", ([str(tmp_path)], endings))
    folder_paths.filename_list_cache.pop("ciri", None)
    yield tmp_path
    folder_paths.filename_list_cache.pop("ciri", None)
