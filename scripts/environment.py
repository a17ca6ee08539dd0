"""Makes the project's virtual environment: ``python3 -m scripts.environment run | test``.

Runs on a bare Python >= 3.10 (standard library only) from the project's root. ``run`` installs what ``./run.sh``
needs, ``test`` adds the development tools. Each group leaves a stamp with the hash of everything that decides its
content, so a second call takes no time and a changed pin installs again.

CIRI_TORCH_INDEX names an additional package index to take torch from (PyTorch's own index of CPU wheels, say: on
Linux, PyPI's torch brings the CUDA libraries along).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from scripts import comfyui

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "scripts" / "constraints.txt"

#: What the scripts themselves need beside the pack's own requirements.
TOOLS = ["av", "websockets"]
#: The least with which ComfyUI 0.3.75 starts, found by leaving each package out (torchvision is installed apart).
COMFYUI = (
    "transformers tokenizers sentencepiece aiohttp yarl pyyaml pillow scipy tqdm psutil torchsde requests av "
    "comfyui-frontend-package kornia spandrel alembic SQLAlchemy pydantic pydantic-settings"
).split()


class SetupError(Exception):
    """The environment cannot be made; the text says what to do."""


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def requirements() -> list[str]:
    """The pack's requirements, with the OpenCV build that needs no display libraries."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    return ["opencv-python-headless" if line == "opencv-python" else line for line in lines if line]


def create() -> None:
    """Make the virtual environment unless a working one is there."""
    probe = [str(PYTHON), "-c", "import pip"]
    if PYTHON.exists() and subprocess.run(probe, capture_output=True).returncode == 0:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    say(f"making {VENV.name} with Python {sys.version.split()[0]}")
    reasons = []
    for maker in ("venv", "virtualenv"):
        made = subprocess.run([sys.executable, "-m", maker, str(VENV)], capture_output=True, text=True)
        if made.returncode == 0 and subprocess.run(probe, capture_output=True).returncode == 0:
            return
        reasons.append((made.stdout + made.stderr).strip())
        shutil.rmtree(VENV, ignore_errors=True)
    raise SetupError(
        "no virtual environment could be made.\n"
        + "\n".join(reasons)
        + "\nOn Debian and Ubuntu: sudo apt-get install python3-venv"
    )


def pip(*arguments: str) -> None:
    """Run pip quietly; show what it said only if it failed."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
    )
    if done.returncode:
        raise SetupError(f"pip {' '.join(arguments)} failed:\n{done.stdout}")


def install(*packages: str, extra: tuple[str, ...] = (), constraints: Path = CONSTRAINTS) -> None:
    pip("install", "--quiet", "--constraint", str(constraints), *extra, *packages)


def group(name: str, packages: list[str], make) -> None:
    """Run ``make()`` unless a stamp says that exactly this was installed before."""
    decisive = [CONSTRAINTS.read_text(), *packages, os.environ.get("CIRI_TORCH_INDEX", ""), Path(__file__).read_text()]
    stamp = VENV / f".ciri-{name}"
    key = hashlib.sha256("\n".join(decisive).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == key:
        return
    say(f"installing {name}: {' '.join(packages)}")
    start = time.monotonic()
    make()
    stamp.write_text(key)
    say(f"{name} installed in {time.monotonic() - start:.0f} s")


def has_gpu() -> bool:
    return (
        shutil.which("nvidia-smi") is not None and subprocess.run(["nvidia-smi"], capture_output=True).returncode == 0
    )


def install_pack() -> None:
    index = os.environ.get("CIRI_TORCH_INDEX")
    has_torch = subprocess.run([str(PYTHON), "-c", "import torch"], capture_output=True).returncode == 0
    if not (index or has_torch or has_gpu()) and sys.platform == "linux":
        say("no NVIDIA GPU found. If torch comes with CUDA libraries (several GB) and you would rather not have them,")
        say("stop here and set CIRI_TORCH_INDEX to PyTorch's package index for CPU wheels.")
    install(*requirements(), *TOOLS, extra=("--extra-index-url", index) if index else ())


def comfyui_packages() -> list[str]:
    """What the ComfyUI in use needs beside torch: a found one says so itself."""
    found = comfyui.locate(python=PYTHON)
    listing = found.code / "requirements.txt"
    if found.fetched or not listing.is_file():
        return COMFYUI
    lines = [line.split("#")[0].strip() for line in listing.read_text().splitlines()]
    # torchaudio: its wheels need CUDA libraries, and no node of this pack needs it
    return [line for line in lines if (line and not line.startswith("torch")) or line.startswith("torchsde")]


def install_comfyui() -> None:
    index = os.environ.get("CIRI_TORCH_INDEX")
    # alone: with its dependencies it would replace torch
    install("torchvision", extra=("--no-deps", *(("--extra-index-url", index) if index else ())))
    if comfyui.locate(python=PYTHON).fetched:
        install(*comfyui_packages())
    else:
        # another ComfyUI has its own versions; only torch stays what it is
        kept = VENV / ".ciri-torch.txt"
        kept.write_text("\n".join(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch")))
        install(*comfyui_packages(), constraints=kept)
    make_torchvision_import()


def make_torchvision_import() -> None:
    """Install the shim of ``torchvision_cpu.py`` where torchvision does not import without it."""
    query = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.run([PYTHON, "-c", query], capture_output=True, text=True, check=True).stdout.strip())
    hook = site / "_torchvision_cpu.pth"
    hook.unlink(missing_ok=True)
    attempt = [str(PYTHON), "-c", "import torchvision"]
    if subprocess.run(attempt, capture_output=True).returncode == 0:
        return
    shutil.copy(ROOT / "scripts" / "torchvision_cpu.py", site / "_torchvision_cpu.py")
    hook.write_text("import _torchvision_cpu\n")
    done = subprocess.run(attempt, capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"torchvision does not import:\n{done.stderr}")


def prepare(what: str) -> None:
    """Bring the environment up to date for ``run`` or ``test``, ComfyUI's code included."""
    create()
    group("pack", [*requirements(), *TOOLS], install_pack)
    if what == "test" or comfyui.locate(python=PYTHON).python == PYTHON:
        group("comfyui", [*comfyui_packages(), "torchvision"], install_comfyui)
    if what == "test":
        names = (ROOT / "requirements-dev.txt").read_text().split("\n")
        packages = [name for line in names if (name := line.split("#")[0].strip())]
        group("development", packages, lambda: install(*packages))
    comfyui.fetch(PYTHON, say=say)


def main() -> int:
    if sys.argv[1:] not in (["run"], ["test"]):
        print("usage: python3 -m scripts.environment run | test", file=sys.stderr)
        return 2
    try:
        prepare(sys.argv[1])
    except (SetupError, comfyui.ServerError) as error:
        print(f"[setup] {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
