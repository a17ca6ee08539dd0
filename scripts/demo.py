"""What ``./run.sh`` does: remove an object from a clip in a real ComfyUI, through its API, and show the result."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ciri.compare import overlay
from ciri.console import ProgressBar
from ciri.errors import CiriError
from ciri.frames import grow_mask
from ciri.mask_files import read_mask
from ciri.media import Clip, read_clip, write_clip, write_png
from scripts import comfyui
from scripts.comfy_client import Client, PromptRejected

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "workflows" / "api" / "one_shot_ciri.json"
EXAMPLE, CLEAN = ROOT / "assets" / "ciri_example.mp4", ROOT / "assets" / "ciri_example_clean.mp4"
EXAMPLE_MASK = ROOT / "assets" / "ciri_example_frame0.png"
OUTPUT = ROOT / "output"

#: The saucer changes a pixel of the example by more than this; the video codec changes the others by less.
_HIDDEN_ABOVE = 0.12


class DemoError(Exception):
    """The demonstration cannot go on; the text says why."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./run.sh",
        description="Remove an object from a clip in a real ComfyUI.",
        epilog="./run.sh --stop ends the ComfyUI that --serve left running.",
    )
    parser.add_argument("clip", nargs="?", help="a video (default: the bundled one)")
    parser.add_argument("mask", nargs="?", help="its first frame's mask: the object white, or transparent")
    parser.add_argument("--serve", action="store_true", help="leave ComfyUI running and print its address")
    parser.add_argument("--from", dest="folder", default=".", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.clip and not args.mask:
        parser.error("a clip of your own needs the mask of its first frame: ./run.sh CLIP MASK")
    folder, clean = Path(args.folder), None if args.clip else CLEAN
    video = folder / Path(args.clip).expanduser() if args.clip else EXAMPLE
    mask = folder / Path(args.mask).expanduser() if args.clip else EXAMPLE_MASK
    try:
        # what cannot be read is told before ComfyUI is started for it
        clip, _ = read_clip(video), read_mask(mask)
        with server(keep=args.serve) as url:
            show(Client(url), video, clip, mask, clean)
            if args.serve:
                print(f"ComfyUI stays at {url} (end it with ./run.sh --stop)")
    except (CiriError, comfyui.ServerError, DemoError, PromptRejected) as error:
        print(f"run.sh: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


@contextlib.contextmanager
def server(keep: bool):
    """Yield the address of a ComfyUI with this pack: the one that was left running, or a new one."""
    state = comfyui.running()
    if state:
        yield state["url"]
        return
    started = time.monotonic()
    new = comfyui.Server(port=comfyui.free_port(8188)).start()
    try:
        print(f"ComfyUI started in {time.monotonic() - started:.0f} s at {new.url}")
        if not new.pack_nodes():
            raise DemoError(
                f"ComfyUI did not load this pack; {new.log} says why. "
                "If a package is missing there: pip install -r requirements.txt with ComfyUI's Python."
            )
        if keep:
            comfyui.leave_running(new)
        yield new.url
    except BaseException:
        keep = False
        comfyui.STATE.unlink(missing_ok=True)
        raise
    finally:
        if not keep:
            new.stop()


def show(client: Client, video: Path, clip: Clip, mask: Path, clean: Path | None) -> None:
    """Remove the object in ComfyUI; write and announce the video, a before/after picture and, if known, the score."""
    with tempfile.TemporaryDirectory() as folder:
        graph = json.loads(WORKFLOW.read_text())
        set_input(graph, "LoadVideo", "file", client.upload(as_video(video, clip, Path(folder))))
        set_input(graph, "LoadImage", "image", client.upload(as_painting(mask, Path(folder))))
    started = time.monotonic()
    run = client.run(graph, timeout=24 * 3600, on_event=Bars(client, graph))
    if run.status != "success":
        raise DemoError(run.error or f"the workflow ended with: {run.status}")
    seconds = time.monotonic() - started
    saved = [item for item in run.files() if graph[item["node"]]["class_type"] == "SaveVideo"]
    result = client.download(saved[0], OUTPUT).replace(OUTPUT / f"{video.stem}_removed.mp4")
    after = read_clip(result).frames
    picture = OUTPUT / f"{video.stem}_before_after.png"
    write_picture(picture, clip.frames, after)
    print(f"{len(after)} frames in {seconds:.1f} s ({1000 * seconds / len(after):.0f} ms a frame)")
    print(f"result:        {result}\nbefore, after: {picture}")
    if clean:
        quality = local_psnr(clip.frames, after, read_clip(clean).frames)
        print(f"local PSNR:    {quality:.2f} dB (over the pixels that the object hid, against the clip without it)")


def set_input(graph: dict, kind: str, name: str, value: str) -> None:
    """Set an input of the one node of that class."""
    for node in graph.values():
        if node["class_type"] == kind:
            node["inputs"][name] = value


def as_video(path: Path, clip: Clip, folder: Path) -> Path:
    """The clip as a file that ComfyUI can load and save again: a video with even sides."""
    for note in clip.notes:
        print(f"note: {note}")
    height, width = clip.frames.shape[2:]
    if clip.video and height % 2 == 0 and width % 2 == 0:
        return path
    for note in write_clip(folder / f"{path.stem}.mp4", clip.frames, clip):
        print(f"note: {note}")
    return folder / f"{path.stem}.mp4"


def as_painting(path: Path, folder: Path) -> Path:
    """The mask as ComfyUI's LoadImage wants it: transparent where the object is."""
    mask, notes = read_mask(path)
    for note in notes:
        print(f"note: {note}")
    grey = (255 * mask.numpy()).round().astype(np.uint8)
    painting = folder / f"{path.stem}_painted.png"
    write_png(painting, np.dstack([grey, grey, grey, 255 - grey]))
    return painting


class Bars:
    """Draws the progress of the pack's nodes, one bar each, from the server's messages."""

    def __init__(self, client: Client, graph: dict):
        names = client.get("/object_info")
        self.titles = {
            node: names[spec["class_type"]]["display_name"]
            for node, spec in graph.items()
            if spec["class_type"].startswith("CIRI_")
        }
        self.bar: ProgressBar | None = None
        self.node = ""

    def __call__(self, kind: str, data: dict) -> None:
        if kind == "progress_state":
            for node, state in data["nodes"].items():
                if state["state"] == "running" and node in self.titles and state["max"] > 1:
                    self.follow(node)
                    self.bar(state["value"], state["max"])
        elif kind in ("executing", "execution_success", "execution_error") and data.get("node") != self.node:
            self.close()

    def follow(self, node: str) -> None:
        if node != self.node:
            self.close()
            self.node, self.bar = node, ProgressBar(self.titles[node])

    def close(self) -> None:
        if self.bar:
            self.bar.close()
        self.node, self.bar = "", None


def object_pixels(before: Tensor, other: Tensor) -> Tensor:
    """float32 (T, 1, H, W): 1 where the clip with the object differs from one without it."""
    different = ((before - other).abs().amax(1, keepdim=True) > _HIDDEN_ABOVE).float()
    # single pixels differ at sharp edges, where the codec is coarsest
    return grow_mask(grow_mask(different, -2), 3)


def local_psnr(before: Tensor, after: Tensor, clean: Tensor) -> float:
    """PSNR in dB over the pixels that the object hid, averaged over the frames that show it."""
    mask = object_pixels(before, clean)
    covered = mask.sum((1, 2, 3))
    error = ((after - clean) ** 2 * mask).sum((1, 2, 3))[covered > 0] / (3 * covered[covered > 0])
    return float((10 * torch.log10(1 / error.clamp(min=1e-10))).mean())


def write_picture(path: Path, before: Tensor, after: Tensor) -> None:
    """Three moments of the clip: what was there above, what is there now below, what was changed outlined."""
    after = after[:, :, : before.shape[2], : before.shape[3]]
    moments = [round(share * (len(before) - 1)) for share in (0.05, 0.5, 0.95)]
    before, after = before[moments], after[moments]
    rows = [overlay(before, object_pixels(before, after), opacity=0.0), after]
    gap = 4
    padded = [torch.nn.functional.pad(row, (0, gap, 0, gap), value=1.0) for row in rows]
    sheet = torch.cat([torch.cat(list(row), 2) for row in padded], 1)[:, :-gap, :-gap]
    write_png(path, np.ascontiguousarray((sheet * 255).round().byte().permute(1, 2, 0).numpy()))


if __name__ == "__main__":
    sys.exit(main())
