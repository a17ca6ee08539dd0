"""Speed and memory of the backbones against the published window loop of the same networks; prints a Markdown table.

    python benchmarks/inpainting.py                                             # T = 36, every backbone, fp32 and bf16
    python benchmarks/inpainting.py --backbones e2fgvi --frames 300 --precisions fp32 --references 6
    python benchmarks/inpainting.py --backbones dstt --frames 60 300 --references 6 --forms driver   # memory growth
    python benchmarks/inpainting.py --backbones e2fgvi_hq --frames 24 --sizes 1920x1080 --crop --forms driver

Two forms of each network, each in a process of its own, so that its peak memory is its own:

* ``plain``: the published program's loop in float32. Every window runs whole, on the form of the network that the
  papers describe (benchmarks/plain_*.py): references from the whole clip, all of a window's frames encoded anew
  (STTN: once, as published), score matrices in memory, references decoded.
* ``driver``: ours, :class:`ciri.inpainting.driver.WindowBackbone`, over the whole clip.

A window's cost depends on how many local and reference frames it has, not on what they show: of the plain loop one
window of each kind is run and counted as often as that kind occurs. ``--every-window`` runs them all. The PSNR compares
both forms' predictions for these windows inside the hole, before composition.

"s/frame" is processor time of all threads, which other work on the machine hardly disturbs; "wall" is the clock's. The
ratios are of processor time. "memory growth" is the memory apart from the clip, its masks and the result, over what the
first number of frames in the table needs of it. Weights are from a seed unless given: they cost the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from ciri.inpainting.driver import DEFAULT_REFERENCES, WindowBackbone
from ciri.inpainting.flow import FlowBackbone
from ciri.inpainting.load import NETWORKS, load_backbone
from ciri.inpainting.network import WindowNetwork
from ciri.inpainting.remove import remove
from ciri.inpainting.windows import Schedule, Window
from ciri.precision import PRECISIONS

COLUMNS = ("backbone", "form", "precision", "size", "T", "refs", "s/frame", "wall", "encode", "flow", "window")
COLUMNS += ("peak MB", "without clip", "memory growth", "times faster", "PSNR dB")


# ------------------------------------------------------------------------------------------- what is measured


def clip_of(setting: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """A texture that pans behind a box, ``target`` of the height tall, that drifts; the masks cover the box."""
    length, height, width = setting["frames"], setting["height"], setting["width"]
    coarse = torch.rand(1, 3, height // 8 + 9, width // 8 + 9, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic").clamp(0, 1)[0]
    frames, masks = torch.empty(length, 3, height, width), torch.zeros(length, 1, height, width)
    side = int(setting["target"] * height)
    for t in range(length):
        pan = t % 64
        frames[t] = large[:, pan : pan + height, pan : pan + width].mul(255).round() / 255
        left = (width - side) // 2 + round(0.1 * width * (t % 20 - 10) / 10)
        masks[t, :, (height - side) // 2 : (height + side) // 2, left : left + side] = 1
    return frames, masks


def network_of(setting: dict[str, Any]) -> WindowNetwork:
    """The network in evaluation mode, with given weights or ones from a seed whose output varies."""
    from tests.parity.seeded_weights import seeded_state_dict

    name, given = setting["backbone"], setting["weights"] and Path(setting["weights"], setting["backbone"])
    if given:
        found = next(path for end in (".safetensors", ".pth", ".pt") if (path := given.with_suffix(end)).exists())
        network: WindowNetwork = load_backbone(found, precision="fp32").network
    else:
        network = NETWORKS[name]()
        own = network.state_dict()
        drawn = seeded_state_dict(own, 1, 1.0 if name.startswith("e2fgvi") else 0.8)
        if name.startswith("e2fgvi"):
            drawn["sc.embedding.weight"] *= 0.05
            drawn |= {key: own[key] for key in ("update_spynet.mean", "update_spynet.std")}
        network.load_state_dict(drawn)
    return network.eval().requires_grad_(False)


class Stopwatch:
    """Processor seconds of the named parts of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"encode": 0.0, "flow": 0.0}

    @contextmanager
    def running(self, part: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[part] += time.process_time() - start

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Count every call of a method to a part."""
        original = getattr(owner, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.running(part):
                return original(*args, **kwargs)

        setattr(owner, method, watched)


def one_of_each_kind(windows: list[Window]) -> dict[int, int]:
    """Number of a window of each kind (local and reference frames) -> how many windows are of that kind."""
    kinds: dict[tuple[int, int], list[int]] = {}
    for number, window in enumerate(windows):
        kinds.setdefault((len(window.local), len(window.reference)), []).append(number)
    return {numbers[len(numbers) // 2]: len(numbers) for numbers in kinds.values()}


def plain_network(network: WindowNetwork, masked: Tensor, watch: Stopwatch) -> Callable[[Window], Tensor]:
    """A function from a window to its predictions (l, 3, h, w) in [-1, 1], in the network's published form."""
    from benchmarks import plain_e2fgvi, plain_transformers

    plain: Any = network
    for encoder in ("encoder", "hier_enc"):
        if hasattr(plain, encoder):
            watch.watch(getattr(plain, encoder), "forward", "encode")
    if network.name == "sttn":
        features = torch.cat([plain.encoder(part) for part in masked.split(8)])
        return lambda window: plain_transformers.sttn(plain, features[list(window.frames)], len(window.local))
    if network.uses_flow:
        watch.watch(plain, "flows", "flow")
        return lambda window: plain_e2fgvi.forward(plain, masked[list(window.frames)][None], len(window.local))[0]
    form = getattr(plain_transformers, network.name)
    return lambda window: form(plain, masked[list(window.frames)])


@torch.no_grad()
def measure_plain(setting: dict[str, Any]) -> dict[str, Any]:
    """The published loop, or one window of each kind of it."""
    frames, masks = clip_of(setting)
    network, watch = network_of(setting), Stopwatch()
    masked = (frames * 2 - 1) * (1 - masks)
    windows = Schedule().windows(len(frames))
    chosen = dict.fromkeys(range(len(windows)), 1) if setting["every_window"] else one_of_each_kind(windows)
    began = time.perf_counter(), time.process_time()
    run = plain_network(network, masked, watch)
    once = time.perf_counter() - began[0], time.process_time() - began[1], dict(watch.seconds)
    totals, kept = [once[0], once[1], once[2]["encode"], once[2]["flow"]], {}
    for number, times in chosen.items():
        before, start = dict(watch.seconds), (time.perf_counter(), time.process_time())
        kept[number] = run(windows[number])[: len(windows[number].local)].clone()
        spent = [time.perf_counter() - start[0], time.process_time() - start[1]]
        spent += [watch.seconds[part] - before[part] for part in ("encode", "flow")]
        totals = [total + times * seconds for total, seconds in zip(totals, spent, strict=True)]
    torch.save(kept, setting["save"])
    references = max(len(window.reference) for window in windows)
    return row(frames, totals[0], totals[1], totals[2], totals[3]) | {"refs": references}


def measure_driver(setting: dict[str, Any]) -> dict[str, Any]:
    """Our driver over the whole clip."""
    frames, masks = clip_of(setting)
    network, watch = network_of(setting), Stopwatch()
    network.precision = PRECISIONS[setting["precision"]] or torch.float32
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    backbone = WindowBackbone(network, schedule=Schedule(num_ref=setting["references"]))
    windows, kept = backbone.schedule.windows(len(frames)), {}
    chosen = one_of_each_kind(windows)
    watch.watch(network, "encode", "encode")
    watch.watch(network, "flows", "flow")
    decode, numbers = network.decode_window, iter(range(len(windows)))

    def keep(*args: Any, **kwargs: Any) -> Tensor:
        predictions, number = decode(*args, **kwargs), next(numbers)
        if number in chosen:
            kept[number] = predictions[0].clone()
        return predictions

    network.decode_window = keep  # type: ignore[method-assign]
    began = time.perf_counter(), time.process_time()
    remove(frames, masks, backbone, crop=True) if setting["crop"] else backbone.inpaint(frames, masks)
    wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    torch.save(kept, setting["save"])
    references = max(len(window.reference) for window in windows)
    return row(frames, wall, cpu, watch.seconds["encode"], watch.seconds["flow"]) | {"refs": references}


def measure_classical(setting: dict[str, Any]) -> dict[str, Any]:
    """The classical backbone: it has neither windows nor references."""
    frames, masks = clip_of(setting)
    began = time.perf_counter(), time.process_time()
    remove(frames, masks, FlowBackbone(), crop=setting["crop"])
    wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    return row(frames, wall, cpu, 0, 0) | {"refs": 0, "encode": 0, "flow": 0, "window": 0}


def row(frames: Tensor, wall: float, cpu: float, encode: float, flow: float) -> dict[str, Any]:
    """Seconds a frame by part, and this process's peak memory: with the clip, and without clip, masks and result."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**20
    seconds = {"s/frame": cpu, "wall": wall, "encode": encode, "flow": flow, "window": cpu - encode - flow}
    clip = frames.numel() * (1 + 1 / 3 + 1) * frames.element_size() / 2**20
    memory = {"peak MB": round(peak), "without clip": round(peak - clip)}
    return {name: value / len(frames) for name, value in seconds.items()} | memory


def measure(setting: dict[str, Any]) -> dict[str, Any]:
    """Run one setting in this process."""
    if setting["threads"]:
        torch.set_num_threads(setting["threads"])
    if setting["backbone"] == "flow":
        return measure_classical(setting)
    return measure_plain(setting) if setting["form"] == "plain" else measure_driver(setting)


# ------------------------------------------------------------------------------------------------- the table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbones", nargs="+", default=[*NETWORKS, "flow"], choices=[*NETWORKS, "flow"])
    parser.add_argument("--forms", nargs="+", default=["plain", "driver"], choices=["plain", "driver"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--frames", nargs="+", type=int, default=[36])
    parser.add_argument("--sizes", nargs="+", default=["432x240"])
    parser.add_argument(
        "--references",
        nargs="+",
        type=int,
        default=[-1],
        help=f"of the driver; -1: all, as the plain loop has; the backbones' own default is {DEFAULT_REFERENCES}",
    )
    parser.add_argument("--crop", action="store_true", help="the driver works on a window that follows the target")
    parser.add_argument("--target", type=float, default=0.3, help="side of the target over the frame's height")
    parser.add_argument("--threads", type=int, default=0, help="threads to compute with (default: as PyTorch likes)")
    parser.add_argument("--weights", help="a folder with weight files, named as the backbones are")
    parser.add_argument("--every-window", action="store_true", help="run all windows of the plain loop")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def settings(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs that differ; the plain one of a backbone, size and length comes before its driver's."""
    shared = {name: getattr(args, name) for name in ("crop", "target", "threads", "weights", "every_window")}
    every: list[dict[str, Any]] = []
    for backbone in args.backbones:
        for size in args.sizes:
            width, height = (int(side) for side in size.split("x"))
            for frames in args.frames:
                clip = shared | {"backbone": backbone, "size": size, "height": height, "width": width, "frames": frames}
                if backbone == "flow":
                    every.append(clip | {"form": "classical", "precision": "fp32"})
                    continue
                if "plain" in args.forms:
                    every.append(clip | {"form": "plain", "precision": "fp32"})
                if "driver" in args.forms:
                    runs = [(p, r) for p in args.precisions for r in args.references]
                    every += [clip | {"form": "driver", "precision": p, "references": r} for p, r in runs]
    return every


def run_apart(setting: dict[str, Any]) -> dict[str, Any] | None:
    """Measure in a process of its own; None, and a line on stderr, if it fails."""
    child = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(setting)],
        capture_output=True,
        text=True,
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
    )
    if child.returncode:
        why = (child.stderr.strip().splitlines() or ["it was killed; most often memory ran out"])[-1]
        print(f"{setting['backbone']} {setting['form']} of {setting['frames']} frames: {why}", file=sys.stderr)
        return None
    return json.loads(child.stdout.splitlines()[-1])


def agreement(setting: dict[str, Any], plain: str, driver: str) -> str:
    """PSNR in dB between the predictions inside the hole, of the windows that both forms kept and ran alike."""
    windows = Schedule().windows(setting["frames"])
    mine = Schedule(num_ref=setting["references"]).windows(setting["frames"])
    kept, expected = torch.load(driver), torch.load(plain)
    _, masks = clip_of(setting)
    squares, count = 0.0, 0
    for number in set(kept) & set(expected):
        if windows[number].frames == mine[number].frames:
            hole = (masks[list(windows[number].local)] > 0).expand_as(expected[number])
            squares += float(((kept[number] - expected[number])[hole] / 2).double().square().sum())
            count += int(hole.sum())
    return f"{10 * torch.log10(torch.tensor(count / max(squares, 1e-12))):.1f}" if count else ""


def write(values: dict[str, Any]) -> None:
    cells = [f"{v:.2f}" if isinstance(v := values.get(name, ""), float) else str(v) for name in COLUMNS]
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> int:
    args = arguments()
    if args.one:
        print(json.dumps(measure(json.loads(args.one))))
        return 0
    write(dict(zip(COLUMNS, COLUMNS, strict=True)))
    print("|" + " --- |" * len(COLUMNS))
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        plain, driver = str(Path(folder, "plain.pt")), str(Path(folder, "driver.pt"))
        reference: dict[str, Any] | None = None
        shortest: dict[tuple[Any, ...], int] = {}
        for setting in settings(args):
            own = setting["form"] == "plain"
            found = run_apart(setting | {"save": plain if own else driver})
            failed |= found is None
            reference = found if own else reference if setting["form"] == "driver" and "plain" in args.forms else None
            if found is None:
                continue
            shown = setting | found | {"T": setting["frames"]}
            kind = tuple(setting.get(name) for name in ("backbone", "form", "precision", "size", "references"))
            shown["memory growth"] = found["without clip"] / shortest.setdefault(kind, found["without clip"])
            if reference and not own:
                shown["times faster"] = reference["s/frame"] / found["s/frame"]
                if not setting["crop"]:
                    shown["PSNR dB"] = agreement(setting, plain, driver)
            write(shown)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
