"""``python -m ciri train``: the small networks that ship with the pack, trained from data of your own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ciri.commands import _arguments as shared
from ciri.commands import _train_attention as attention
from ciri.commands import _train_backbone as backbone
from ciri.commands import _train_residue as residue
from ciri.commands import _train_snap as snap
from ciri.commands._train_shared import STEPS, add_run, parse_size, plan_of
from ciri.console import remark


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("train", help="train the small networks of the pack, or fine-tune published ones")
    networks = parser.add_subparsers(metavar="NETWORK", required=True)
    _add_propagator(networks)
    backbone.add_parser(networks)
    residue.add_parser(networks)
    attention.add_parser(networks)
    snap.add_parser(networks)
    _add_locate(networks)


def _add_propagator(networks: Any) -> None:
    parser = networks.add_parser("propagator", help="the propagator lite")
    add_run(parser)
    parser.add_argument("--init", type=Path, help="pretrained EfficientNet-Lite0 (.pth or .safetensors)")
    parser.add_argument("--go-on-from", type=Path, help="exported weights to begin with, where checkpoints are lost")
    parser.add_argument("--average-with", type=Path, help="exported weights to take the mean with in what is exported")
    parser.add_argument(
        "--own-share", type=float, default=0.5, metavar="N", help="share of the run's own weights in it (default 0.5)"
    )
    parser.add_argument("--batch", type=int, default=32, help="clips per step (default 32)")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate (default 5e-4)")
    parser.add_argument("--size", default="432x240", metavar="WxH", help="frame size (default 432x240)")
    parser.add_argument(
        "--window", default="256x176", metavar="WxH", help="size of what is trained on (default 256x176)"
    )
    parser.add_argument(
        "--enlarge", type=float, default=1.0, metavar="N", help="enlarge clips by 1 to N, as small frames are in use"
    )
    parser.add_argument("--pool", type=int, default=400, help="clips held for reuse (default 400)")
    parser.add_argument("--reuse", type=int, default=12, help="draws of a clip before the next is made (default 12)")
    parser.add_argument("--clip-frames", type=int, metavar="N", help="read at most so many frames of each clip")
    parser.add_argument("--look-every", type=int, default=500, help="steps between validations (default 500)")
    shared.add_device(parser)
    parser.set_defaults(run=_train_propagator)


def _train_propagator(args: argparse.Namespace) -> None:
    from ciri.training.propagator import Settings, train

    width, height = parse_size(args.size, "432x240")
    settings = Settings(
        data=args.data,
        out=args.out,
        init=args.init,
        go_on_from=args.go_on_from,
        average_with=args.average_with,
        own_share=args.own_share,
        device=str(shared.choose_device(args.device)),
        **plan_of(args, STEPS),
        batch=args.batch,
        rate=args.rate,
        height=height,
        width=width,
        seed=args.seed,
        window=parse_size(args.window, "256x176", "--window")[::-1],
        enlarge=args.enlarge,
        pool=args.pool,
        reuse=args.reuse,
        workers=args.workers,
        clip_frames=args.clip_frames,
        look_every=args.look_every,
    )
    with shared.progress("training") as bar:
        weights = train(settings, say=remark, on_step=bar)
    remark(f"{weights}: copy it to weights/ once benchmarks/propagation_quality.py says that it is better")


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
