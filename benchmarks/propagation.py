"""Speed and memory of the propagators: seconds a frame and peak memory, over clip lengths, sizes and precisions.

    python benchmarks/propagation.py                                      # the table, on weights made from a seed
    python benchmarks/propagation.py --propagators stcn --frames 36 --sizes 432x240 --weights stcn.pth
    python benchmarks/propagation.py --clip clip.mp4 --mask first.png --propagators lite

Every setting runs in a process of its own, so that its peak memory is its own. ``plain`` is STCN as one would write it
down (benchmarks/plain_propagation.py): float32, frame by frame. ``stcn-whole`` decodes whole frames, as ``plain`` does;
``stcn`` decodes where the memory sees the target, so its time depends on the target's size (column "decoded").
Weights from a seed cost the same time as trained ones, but their masks mean nothing: give --weights to judge a crop.

"growth" is the memory without the clip and its masks over what the first number of frames in the table needs of it.
Processor seconds are printed besides wall seconds: on a shared machine only they can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

COLUMNS = (
    "propagator",
    "precision",
    "size",
    "frames",
    "wall s/frame",
    "CPU s/frame",
    "decoded",
    "peak MB",
    "without clip",
    "growth",
)


def synthetic_clip(length: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """A textured disc of a tenth of the height's radius that circles over a textured, panning background."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, height // 8 + 9, width // 8 + 9, generator=rng)
    background = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic").clamp(0, 1)[0]
    texture = torch.rand(3, height, width, generator=rng)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frames, first = torch.empty(length, 3, height, width), torch.zeros(1, 1, height, width)
    for t in range(length):
        angle = torch.tensor(t / 20.0)
        y, x = height * (0.5 + 0.25 * angle.sin()), width * (0.5 + 0.25 * angle.cos())
        disc = (rows - y) ** 2 + (columns - x) ** 2 < (0.1 * height) ** 2
        pan = t % 32
        frames[t] = torch.where(disc, texture, background[:, pan : pan + height, pan : pan + width])
        if t == 0:
            first[0, 0] = disc
    return frames, first


def given_clip(setting: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The user's clip and mask at the asked length and size."""
    from ciri.mask_files import read_mask
    from ciri.media import read_clip

    frames = read_clip(setting["clip"]).frames[: setting["frames"]]
    mask = read_mask(setting["mask"])[0].reshape(1, 1, *frames.shape[2:]).float()
    size = (setting["height"], setting["width"])
    resized = [torch.nn.functional.interpolate(x, size=size, mode="area") for x in (frames, mask)]
    return resized[0], (resized[1] > 0.5).float()


def seeded_stcn(weights: str | None) -> Any:
    """STCN with a file's weights, or with random ones that react to image and mask."""
    from ciri.propagation.stcn import STCN, load_stcn

    if weights:
        return load_stcn(weights)
    torch.manual_seed(0)
    network = STCN()
    for name, value in network.named_parameters():
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=value[0].numel() ** -0.5)
            if name.startswith("value_encoder.conv1"):
                value.data *= 8
    return network


def propagator_of(setting: dict[str, Any]) -> Any:
    """The propagator of a setting, or None for the plain path."""
    from ciri.propagation import registry
    from ciri.propagation.engine import MemoryPropagator

    name, precision = setting["propagator"], setting["precision"]
    if name.startswith("stcn"):
        # weights from a seed are never sure: what they are unsure of has to be stored all the same
        return MemoryPropagator(
            seeded_stcn(setting["weights"]),
            precision=precision,
            include_last=False,
            crop_decoding=name == "stcn",
            store_above=None,
        )
    options = {} if name == "flow" else {"precision": precision}
    return registry.build(name, **options)


def count_decoded(network_type: type, stride: int) -> list[int]:
    """Count the cells that a network decodes from now on; the list grows by one number a call."""
    cells: list[int] = []
    decode = network_type.decode

    def counted(self: Any, readout: Tensor, *more: Any) -> Tensor:
        cells.append(readout.shape[-2] * readout.shape[-1])
        return decode(self, readout, *more)

    network_type.decode = counted
    return cells


def measure(setting: dict[str, Any]) -> dict[str, Any]:
    """Run one setting in this process."""
    if setting["threads"]:
        torch.set_num_threads(setting["threads"])
    size = (setting["height"], setting["width"])
    frames, mask = given_clip(setting) if setting["clip"] else synthetic_clip(setting["frames"], *size)
    decoded = None
    if setting["propagator"] == "plain":
        from benchmarks import plain_propagation
        from ciri.propagation.clip import Geometry

        network = seeded_stcn(setting["weights"]).requires_grad_(False)
        geometry = Geometry(*size, network.stride, None)
        padded, first = geometry.frames_in(frames), geometry.masks_in(mask)
        start = time.perf_counter(), time.process_time()
        plain_propagation.propagate(network, padded, first)
    else:
        propagator = propagator_of(setting)
        if hasattr(propagator, "network"):
            decoded = count_decoded(type(propagator.network), propagator.network.stride)
            grid = -(-size[0] // 16) * -(-size[1] // 16)
        start = time.perf_counter(), time.process_time()
        propagator.propagate(frames, mask, [0])
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**20
    clip = (frames.numel() + len(frames) * mask.numel()) * 4 / 2**20
    return {
        "wall s/frame": f"{wall / len(frames):.3f}",
        "CPU s/frame": f"{cpu / len(frames):.3f}",
        "decoded": "all" if decoded is None else f"{sum(decoded) / (grid * max(1, len(frames) - 1)):.0%}",
        "peak MB": f"{peak:.0f}",
        "without clip": f"{peak - clip:.0f}",
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--propagators", nargs="+", default=["plain", "stcn-whole", "stcn", "lite", "flow"])
    parser.add_argument("--frames", nargs="+", type=int, default=[24, 96, 384, 960])
    parser.add_argument("--sizes", nargs="+", default=["432x240", "854x480"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=0, help="threads to compute with (default: as PyTorch likes)")
    parser.add_argument("--weights", help="a checkpoint for plain and stcn")
    parser.add_argument("--clip", help="a video instead of the synthetic one; needs --mask")
    parser.add_argument("--mask", help="its first mask")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def settings(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All combinations that differ: what has no precision to choose runs once."""
    every = []
    for name in args.propagators:
        for precision in ["fp32"] if name in ("plain", "flow") else args.precisions:
            for size in args.sizes:
                width, height = (int(side) for side in size.split("x"))
                for frames in args.frames:
                    every.append(
                        {"propagator": name, "precision": precision, "size": size, "width": width, "height": height}
                        | {"frames": frames, "threads": args.threads, "weights": args.weights}
                        | {"clip": args.clip, "mask": args.mask}
                    )
    return every


def main() -> int:
    args = arguments()
    if args.one:
        print(json.dumps(measure(json.loads(args.one))))
        return 0
    widths = [max(12, len(name)) for name in COLUMNS]
    print("  ".join(name.rjust(width) for name, width in zip(COLUMNS, widths, strict=True)))
    failed, shortest = 0, {}
    for setting in settings(args):
        child = subprocess.run(
            [sys.executable, __file__, "--one", json.dumps(setting)],
            capture_output=True,
            text=True,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        )
        if child.returncode:
            failed = 1
            print(f"{setting['propagator']}: {child.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        row = {**setting, **json.loads(child.stdout.splitlines()[-1])}
        kind, memory = (row["propagator"], row["precision"], row["size"]), float(row["without clip"])
        row["growth"] = f"{memory / shortest.setdefault(kind, memory):.2f}"
        print("  ".join(str(row[name]).rjust(w) for name, w in zip(COLUMNS, widths, strict=True)), flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
