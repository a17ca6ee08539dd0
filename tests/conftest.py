"""Shared settings of the tests, and the one ComfyUI that server and browser tests share."""

import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from scripts import comfyui

# shared machines stall now and then: a deadline would turn that into a failure
settings.register_profile("ciri", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ciri")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]):
    """With several processes (./test.sh): a file stays in one, and so does all that uses the one ComfyUI."""
    for item in items:
        uses_comfyui = "server" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("comfyui" if uses_comfyui else str(item.path)))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory):
    """A running ComfyUI with this pack and the bundled example in its input folder; skips if none is set up."""
    if not (comfyui.locate().code / "main.py").is_file():
        pytest.skip("ComfyUI is not set up; ./test.sh does that")
    base = tmp_path_factory.mktemp("comfyui")
    (base / "input").mkdir()
    for file in (comfyui.ROOT / "assets").glob("ciri_example*"):
        shutil.copy(file, base / "input")
    running = comfyui.Server(base=base)
    try:
        running.start()
    except comfyui.ServerError as error:
        # the pack cannot keep ComfyUI from starting, a Python without ComfyUI's packages does
        if "ModuleNotFoundError" not in str(error) or Path(sys.prefix) == comfyui.ROOT / ".venv":
            raise
        pytest.skip("this Python lacks what ComfyUI needs; ./test.sh has it")
    yield running
    running.stop()
