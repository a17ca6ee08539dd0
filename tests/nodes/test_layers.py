"""The library knows nothing of ComfyUI, and the pack's root nothing of anything until it is asked."""

import subprocess
import sys

from scripts import comfyui
from scripts.comfyui import ROOT

BLOCK = """
import importlib, pkgutil, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Block())
"""
COMFY = ["comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "nodes", "server"]
#: In a user's ComfyUI, or in the development environment, but not among the pack's requirements.
NOT_REQUIRED = ["PIL", "scipy", "skimage", "matplotlib", "transformers", "kornia", "av"]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_of_the_library_imports_without_comfyui():
    code = BLOCK.format(blocked=COMFY + NOT_REQUIRED) + (
        "import ciri\n"
        "names = [m.name for m in pkgutil.walk_packages(ciri.__path__, 'ciri.') if not m.name.endswith('__main__')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print(len(names))\n"
    )
    assert int(python(code)) > 10


def test_the_root_imports_without_comfyui_and_without_torch():
    code = BLOCK.format(blocked=[*COMFY, "torch"]) + (
        "import importlib.util\n"
        "spec = importlib.util.spec_from_file_location('pack', '__init__.py', submodule_search_locations=['.'])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.WEB_DIRECTORY)\n"
    )
    assert python(code).strip() == "./web"


def test_a_missing_package_is_answered_with_the_command_that_installs_it(pack):
    """In a process of its own: this one has the pack imported already."""
    code = (
        f"import sys; sys.path.insert(0, {str(comfyui.locate().code)!r})\n"
        + BLOCK.format(blocked=["cv2"])
        + (
            "import asyncio, importlib.util\n"
            "spec = importlib.util.spec_from_file_location('pack', '__init__.py', submodule_search_locations=['.'])\n"
            "module = importlib.util.module_from_spec(spec)\n"
            "sys.modules['pack'] = module\n"
            "spec.loader.exec_module(module)\n"
            "import comfy.cli_args\n"
            "comfy.cli_args.args.cpu = True\n"
            "try:\n"
            "    asyncio.run(module.comfy_entrypoint())\n"
            "except ImportError as error:\n"
            "    print(error)\n"
        )
    )
    said = python(code)
    assert "ComfyUI-CIRI needs the Python package cv2: " in said
    assert f"{sys.executable} -m pip install -r {ROOT}/requirements.txt" in said


def test_the_root_is_short():
    assert len((ROOT / "__init__.py").read_text().splitlines()) < 40
