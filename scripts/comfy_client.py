"""Drives a running ComfyUI through its HTTP interface: queue a workflow, follow it, fetch what it made.

client = Client("http://127.0.0.1:8188")
name = client.upload("clip.mp4")
run = client.run(graph, on_event=print)      # graph: a workflow in API format, as a dict
for item in run.files():
    client.download(item, "output")
"""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

ENDS = {"execution_success", "execution_error", "execution_interrupted"}

#: Receives each message of the server: its type ("executing", "progress_state", ...) and its data.
OnEvent = Callable[[str, dict], None]


class PromptRejected(Exception):
    """The server refused a workflow before it ran; ``answer`` is what it said."""

    def __init__(self, answer: dict):
        self.answer = answer
        details = [
            f"node {node} ({errors['class_type']}): {error['message']}: {error['details']}"
            for node, errors in answer.get("node_errors", {}).items()
            for error in errors["errors"]
        ]
        super().__init__("; ".join(details) or json.dumps(answer))


@dataclass
class Run:
    """A workflow that ended.

    Attributes:
        prompt_id: the server's name for it.
        status: "success", "error" or "interrupted".
        outputs: what each output node shows, by node id (the history's "outputs").
        events: (seconds since the start, type, data) of every message, binary previews as type "binary".
        error: the failed node's message, as a person reads it; "" otherwise.
        history: the whole history entry.
    """

    prompt_id: str
    status: str
    outputs: dict[str, dict]
    events: list[tuple[float, str, dict]]
    error: str = ""
    history: dict = field(default_factory=dict, repr=False)

    def executed(self) -> list[str]:
        """Ids of the nodes that ran, in order; cached ones are not among them."""
        seen = [data["node"] for _, kind, data in self.events if kind == "executing" and data.get("node")]
        return list(dict.fromkeys(seen))

    def files(self) -> Iterator[dict]:
        """Every file that the workflow left, as ComfyUI names it: filename, subfolder, type, and the node's id."""
        for node, shown in self.outputs.items():
            for value in shown.values():
                for item in value if isinstance(value, list) else []:
                    if isinstance(item, dict) and "filename" in item:
                        yield {**item, "node": node}


class Client:
    """One client of one server; several may share a server."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.client_id = uuid.uuid4().hex

    def get(self, path: str, **query: Any) -> Any:
        """The JSON that GET path answers."""
        return json.loads(self._open(path, query=query))

    def post(self, path: str, body: Any) -> Any:
        """POST a JSON body; return the JSON answer (None if empty)."""
        answer = self._open(path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.loads(answer) if answer else None

    def upload(self, path: str | Path, subfolder: str = "") -> str:
        """Put an image or a video into the server's input folder; return the value for LoadImage or LoadVideo."""
        path, boundary = Path(path), uuid.uuid4().hex
        lines = []
        for name, value in {"overwrite": "true", "subfolder": subfolder}.items():
            lines += [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()]
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
        lines += [f"{head}Content-Type: application/octet-stream\r\n\r\n".encode(), path.read_bytes()]
        body = b"".join([*lines, f"\r\n--{boundary}--\r\n".encode()])
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        got = json.loads(self._open("/upload/image", body, kind))
        return "/".join(part for part in (got["subfolder"], got["name"]) if part)

    def queue(self, graph: dict) -> str:
        """Queue a workflow and return its prompt id.

        Raises:
            PromptRejected: the server found an error in it.
        """
        try:
            return self.post("/prompt", {"prompt": graph, "client_id": self.client_id})["prompt_id"]
        except urllib.error.HTTPError as refused:
            raise PromptRejected(json.loads(refused.read())) from None

    def interrupt(self) -> None:
        """Stop what is running now."""
        self.post("/interrupt", {})

    def history(self, prompt_id: str, timeout: float = 30) -> dict:
        """The history entry of a workflow that ended (it appears just after the last message)."""
        end = time.monotonic() + timeout
        while not (entries := self.get(f"/history/{prompt_id}")):
            if time.monotonic() > end:
                raise TimeoutError(f"no history entry of {prompt_id}")
            time.sleep(0.05)
        return entries[prompt_id]

    def run(self, graph: dict, *, timeout: float = 600, on_event: OnEvent | None = None) -> Run:
        """Queue a workflow, follow it to its end and return what happened.

        Args:
            graph: the workflow in API format.
            timeout: seconds for the whole run.
            on_event: called with every message; may call :meth:`interrupt`.

        Raises:
            PromptRejected: the server found an error in it.
            TimeoutError: it did not end in time (it is interrupted then).
        """
        start, events = time.monotonic(), []
        address = self.url.replace("http", "ws", 1) + f"/ws?clientId={self.client_id}"
        with connect(address, max_size=None) as socket:
            prompt_id = self.queue(graph)
            while True:
                try:
                    message = socket.recv(timeout=max(0.01, timeout - (time.monotonic() - start)))
                except TimeoutError:
                    self.interrupt()
                    raise TimeoutError(f"the workflow did not end within {timeout:.0f} s") from None
                if isinstance(message, bytes):
                    kind, data = "binary", {"event": int.from_bytes(message[:4], "big"), "bytes": len(message)}
                else:
                    parsed = json.loads(message)
                    kind, data = parsed["type"], parsed["data"]
                events.append((time.monotonic() - start, kind, data))
                if on_event:
                    on_event(kind, data)
                if kind in ENDS and data.get("prompt_id") == prompt_id:
                    break
        return self._finished(prompt_id, kind.removeprefix("execution_"), events)

    def download(self, item: dict, folder: str | Path) -> Path:
        """Fetch one of :meth:`Run.files` into a folder."""
        query = {key: item[key] for key in ("filename", "subfolder", "type")}
        target = Path(folder) / item["filename"]
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(f"{self.url}/view?{urllib.parse.urlencode(query)}", timeout=120) as answer:
            with open(target, "wb") as file:
                shutil.copyfileobj(answer, file)
        return target

    def _finished(self, prompt_id: str, status: str, events: list) -> Run:
        entry = self.history(prompt_id)
        failed = [data for kind, data in entry["status"]["messages"] if kind == "execution_error"]
        error = failed[0]["exception_message"].strip() if failed else ""
        return Run(prompt_id, status, entry["outputs"], events, error, entry)

    def _open(
        self, path: str, body: bytes | None = None, headers: dict | None = None, query: dict | None = None
    ) -> bytes:
        address = self.url + path + ("?" + urllib.parse.urlencode(query) if query else "")
        request = urllib.request.Request(address, data=body, headers=headers or {})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.read()
