"""How far half precision moves a propagator's masks: the share of pixels that are target in one and not in the other.

    python benchmarks/propagation_precision.py --eval DIR --propagator stcn --weights stcn.pth
    python benchmarks/propagation_precision.py --eval DIR --only bear tennis --length 8 --height 128

DIR as for benchmarks/propagation_quality.py. Of the true masks only the first is given; "IoU" says how much the
propagation in float32 has to do with the rest. "undecided" is the share of pixels whose probability in float32 is
between 0.45 and 0.55.

Without --weights STCN's are from a seed, and its masks mean nothing. ``--fit 40`` then tunes the decoder with so many
steps on the first three true masks of each clip, so that it follows the target at least roughly.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.propagation import seeded_stcn
from benchmarks.propagation_quality import names_in, read_clip, read_masks, sources
from ciri.propagation import registry
from ciri.propagation.clip import Geometry
from ciri.propagation.engine import MemoryPropagator
from ciri.propagation.memory import read, to_map, to_rows


def load(folder: Path, name: str, length: int, height: int) -> tuple[Tensor, Tensor]:
    """Frames (T, 3, H, W) in [0, 1] and binary masks (T, 1, H, W), shortened and scaled down."""
    video, truth = sources(folder, name)
    frames = torch.from_numpy(read_clip(video)[:length]).permute(0, 3, 1, 2).float() / 255
    masks = torch.from_numpy(read_masks(truth)[:length, None]).float()
    if not height:
        return frames, masks
    size = (height, round(frames.shape[3] * height / frames.shape[2]))
    frames = F.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    return frames, (F.interpolate(masks, size, mode="area") > 0.5).float()


def network_of(name: str, weights: str | None) -> Any:
    """The network of a propagator, with a file's weights or, for STCN, some from a seed."""
    return seeded_stcn(weights) if name == "stcn" else registry.build(name, precision="fp32", weights=weights).network


def fit(network: Any, frames: Tensor, masks: Tensor, steps: int) -> Any:
    """A copy whose decoder was tuned to give the first frames' masks, each read from a memory of frame 0."""
    tuned = copy.deepcopy(network).requires_grad_(False)
    geometry = Geometry(*frames.shape[2:], tuned.stride, None)
    images, truth = geometry.frames_in(frames[:3]), geometry.masks_in(masks[:3])
    with torch.no_grad():
        features = tuned.encode_key(images)
        keys, grid = to_rows(features.key), features.key.shape[-2:]
        value = to_rows(tuned.encode_value(images[:1], features[:1], truth[:1], 0 * truth[:1]))
        readouts = [to_map(read(keys[0], value, key, tuned.top_k), *grid) for key in keys]
    weights = tuned.parameters_to_refine()
    optimiser = torch.optim.Adam([weight.requires_grad_() for weight in weights], 1e-4)
    for step in range(steps):
        t = step % len(readouts)
        logits = tuned.decode(readouts[t], features[t : t + 1])
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(logits, truth[t : t + 1]).backward()
        optimiser.step()
    return tuned.requires_grad_(False)


def masks_in(precision: str, network: Any, frames: Tensor, first: Tensor) -> Tensor:
    """Probabilities (T - 1, 1, H, W); what the network is unsure of is remembered and shown too."""
    propagator = MemoryPropagator(network, precision=precision, include_last=False, store_above=None)
    return propagator.propagate(frames, first, [0]).probs[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eval", type=Path, required=True, metavar="DIR")
    parser.add_argument("--propagator", default="stcn", choices=["stcn", "lite"])
    parser.add_argument("--weights", help="a checkpoint")
    parser.add_argument("--fit", type=int, default=0, metavar="STEPS", help="tune the decoder to each clip first")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp16"])
    parser.add_argument("--only", nargs="*", help="names of clips (default: all)")
    parser.add_argument("--length", type=int, help="first frames only")
    parser.add_argument("--height", type=int, default=0, help="scale the clips to this height (default: as they are)")
    arguments = parser.parse_args()
    names = arguments.only or names_in(arguments.eval)
    print(f"{'clip':20} {'frames':>6} {'size':>9} {'differ':>8} {'worst':>8} {'undecided':>9} {'target':>7} {'IoU':>6}")
    for name in names:
        frames, masks = load(arguments.eval, name, arguments.length, arguments.height)
        network = network_of(arguments.propagator, arguments.weights)
        if arguments.fit:
            network = fit(network, frames, masks, arguments.fit)
        exact, rounded = (masks_in(p, network, frames, masks[:1]) for p in ("fp32", arguments.precision))
        differ = ((exact > 0.5) != (rounded > 0.5)).flatten(1).float().mean(1)
        undecided, got, true = ((exact - 0.5).abs() < 0.05).float().mean(), exact > 0.5, masks[1:] > 0
        overlap = (got & true).sum() / (got | true).sum().clamp(min=1)
        print(
            f"{name:20} {len(frames):6d} {frames.shape[3]:4d}x{frames.shape[2]:<4d} {differ.mean():8.3%} "
            f"{differ.max():8.3%} {undecided:9.2%} {got.float().mean():7.1%} {overlap:6.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
