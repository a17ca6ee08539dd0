"""``python -m ciri train``: the small networks that ship with the pack, trained from data of your own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ciri.commands import _arguments as shared
from ciri.console import remark


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("train", help="train the small networks that ship with the pack")
    networks = parser.add_subparsers(metavar="NETWORK", required=True)
    _add_propagator(networks)
    _add_backbone(networks)
    _add_locate(networks)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Arguments of every training run."""
    parser.add_argument("--data", type=Path, required=True, help="the data pack, DAVIS, or YouTube-VOS")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; continued if it is there")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes; the same command goes on later")
    parser.add_argument("--plan-minutes", type=float, help="minutes of all calls together (default: --minutes)")
    parser.add_argument("--steps", type=int, default=20_000, help="most steps of all calls together (default 20000)")
    parser.add_argument("--seed", type=int, default=1, help="of weights, synthesis and split (default 1)")
    parser.add_argument("--workers", type=int, default=16, help="threads or processes that make clips (default 16)")


def _add_propagator(networks: Any) -> None:
    parser = networks.add_parser("propagator", help="the propagator lite")
    add_run(parser)
    parser.add_argument("--init", type=Path, help="pretrained EfficientNet-Lite0 (.safetensors)")
    parser.add_argument("--go-on-from", type=Path, help="exported weights to begin with, where checkpoints are lost")
    parser.add_argument("--batch", type=int, default=32, help="clips per step (default 32)")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate (default 5e-4)")
    parser.add_argument("--size", default="432x240", metavar="WxH", help="frame size (default 432x240)")
    parser.add_argument("--clip-frames", type=int, metavar="N", help="read at most so many frames of each clip")
    parser.add_argument("--look-every", type=int, default=500, help="steps between validations (default 500)")
    shared.add_device(parser)
    parser.set_defaults(run=_train_propagator)


def _train_propagator(args: argparse.Namespace) -> None:
    from ciri.errors import TrainingError
    from ciri.training.propagator import Settings, train

    try:
        width, height = (int(side) for side in args.size.split("x"))
    except ValueError:
        raise TrainingError(f"--size {args.size!r}: expected WIDTHxHEIGHT, such as 432x240.") from None
    settings = Settings(
        data=args.data,
        out=args.out,
        init=args.init,
        go_on_from=args.go_on_from,
        device=str(shared.choose_device(args.device)),
        minutes=args.minutes,
        plan_minutes=args.plan_minutes,
        steps=args.steps,
        batch=args.batch,
        rate=args.rate,
        height=height,
        width=width,
        seed=args.seed,
        workers=args.workers,
        clip_frames=args.clip_frames,
        look_every=args.look_every,
    )
    with shared.progress("training") as bar:
        weights = train(settings, say=remark, on_step=bar)
    remark(f"{weights}: copy it to weights/ once benchmarks/propagation_quality.py says that it is better")


def _add_backbone(networks: Any) -> None:
    parser = networks.add_parser("backbone", help="the backbone lite")
    add_run(parser)
    parser.add_argument("--variant", default="ciri", help="ciri, no-curriculum or hard-mask (default ciri)")
    parser.add_argument("--init", type=Path, help="exported weights to begin with")
    parser.add_argument("--batch", type=int, default=8, help="clips per step (default 8)")
    parser.add_argument("--window", type=int, default=10, help="frames per clip and step (default 10)")
    parser.add_argument("--length", type=int, default=20, help="frames of the clips that copies are sought in")
    parser.add_argument("--size", default="256x144", metavar="WxH", help="size of the clips (default 256x144)")
    parser.add_argument("--pool", type=int, default=2000, help="clips held for reuse (default 2000)")
    parser.add_argument(
        "--reuse", type=int, default=0, help="draw each clip so often before it is replaced (default 0)"
    )
    parser.add_argument("--channels", default="32,64,128,192", help="at 1/2, 1/4, 1/8 and 1/16 (default 32,64,128,192)")
    parser.add_argument("--deep", type=int, default=4, help="residual blocks at 1/16 (default 4)")
    parser.add_argument("--rate", type=float, default=4e-4, help="learning rate (default 4e-4)")
    parser.add_argument("--pretraining", type=float, default=0.35, help="share of the plan before the curriculum")
    parser.add_argument("--adversarial-from", type=float, default=1.0, help="progress at which it starts (1: never)")
    parser.add_argument("--look-every", type=int, default=500, help="steps between validations (default 500)")
    parser.add_argument("--held-back", type=int, default=24, help="clips that are validated on (default 24)")
    shared.add_device(parser)
    parser.set_defaults(run=_train_backbone)


def _train_backbone(args: argparse.Namespace) -> None:
    from ciri.errors import TrainingError
    from ciri.inpainting.lite_network import LiteConfig
    from ciri.training.backbone import Settings, train_backbone

    try:
        width, height = (int(side) for side in args.size.split("x"))
    except ValueError:
        raise TrainingError(f"--size {args.size!r}: expected WIDTHxHEIGHT, such as 256x144.") from None
    try:
        half, quarter, eighth, sixteenth = (int(count) for count in args.channels.split(","))
    except ValueError:
        raise TrainingError(f"--channels {args.channels!r}: expected four numbers, such as 32,64,128,192.") from None
    same = ("data", "out", "variant", "minutes", "plan_minutes", "steps", "batch", "window", "length", "rate", "seed")
    more = ("workers", "pool", "reuse", "init", "pretraining", "adversarial_from", "look_every", "held_back")
    settings = Settings(
        device=str(shared.choose_device(args.device)),
        height=height,
        width=width,
        config=LiteConfig(half=half, quarter=quarter, eighth=eighth, sixteenth=sixteenth, deep=args.deep),
        **{name: getattr(args, name) for name in (*same, *more)},
    )
    with shared.progress("training") as bar:
        weights = train_backbone(settings, say=remark, on_step=bar)
    remark(f"{weights}: copy it to weights/ once benchmarks/learned_inpainting.py says that it is better")


def _add_locate(networks: Any) -> None:
    parser = networks.add_parser("locate", help="find the pack's objects in the pictures that they were cut from")
    parser.add_argument("--data", type=Path, required=True, help="the data pack; located.json is written into it")
    parser.set_defaults(run=_locate)


def _locate(args: argparse.Namespace) -> None:
    from ciri.training.data import open_library
    from ciri.training.located import locate

    with shared.progress("locating") as bar:
        found = locate(open_library(args.data), args.data, on_step=bar)
    remark(f"{len(found)} objects found in their pictures; {args.data / 'located.json'} says where")
