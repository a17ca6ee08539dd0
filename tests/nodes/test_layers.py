"""The library knows nothing of ComfyUI, and the pack's root nothing of anything until it is asked."""

import subprocess
import sys

import pytest

from scripts import comfyui
from scripts.comfyui import ROOT

BLOCK = """
import importlib, pkgutil, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise {error}
sys.meta_path.insert(0, Block())
"""
MISSING = 'ModuleNotFoundError("blocked: " + name, name=name)'
COMFY = ["comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "nodes", "server"]
#: In a user's ComfyUI, or in the development environment, but not among the pack's requirements.
NOT_REQUIRED = ["PIL", "scipy", "skimage", "matplotlib", "transformers", "kornia", "av"]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_of_the_library_imports_without_comfyui():
    code = BLOCK.format(blocked=COMFY + NOT_REQUIRED, error=MISSING) + (
        "import ciri\n"
        "names = [m.name for m in pkgutil.walk_packages(ciri.__path__, 'ciri.') if not m.name.endswith('__main__')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print(len(names))\n"
    )
    assert int(python(code)) > 10


def test_the_root_imports_without_comfyui_and_without_torch():
    code = BLOCK.format(blocked=[*COMFY, "torch"], error=MISSING) + (
        "import importlib.util\n"
        "spec = importlib.util.spec_from_file_location('pack', '__init__.py', submodule_search_locations=['.'])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.WEB_DIRECTORY)\n"
    )
    assert python(code).strip() == "./web"


LIB_GL = "ImportError('libGL.so.1: cannot open shared object file: No such file or directory')"


@pytest.mark.parametrize(
    ("error", "problem", "cure"),
    [
        (MISSING, "the Python package cv2", f"-r {ROOT}/requirements.txt"),
        # servers and containers have no desktop's libraries, and the usual OpenCV wants them
        (LIB_GL, "OpenCV without windows here (libGL.so.1", "--force-reinstall opencv-python-headless"),
        ("ImportError('of another kind')", "of another kind", ""),
    ],
)
def test_a_package_that_cannot_be_imported_is_answered_with_the_command_that_cures_it(pack, error, problem, cure):
    """In a process of its own: this one has the pack imported already."""
    code = (
        f"import sys; sys.path.insert(0, {str(comfyui.locate().code)!r})\n"
        + BLOCK.format(blocked=["cv2"], error=error)
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
    if cure:
        assert f"ComfyUI-CIRI needs {problem}" in said and f": {sys.executable} -m pip install {cure}" in said
    else:
        assert said.strip() == problem


def test_the_root_is_short():
    assert len((ROOT / "__init__.py").read_text().splitlines()) < 40
