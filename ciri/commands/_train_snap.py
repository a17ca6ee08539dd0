"""``python -m ciri train snap``: what moves a painted mask onto the object's edges."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ciri.commands import _arguments as shared
from ciri.commands._train_shared import add_plan, plan_of
from ciri.console import remark

#: Most steps, where none are given.
STEPS = 6000


def add_parser(networks: Any) -> None:
    parser = networks.add_parser("snap", help="what moves painted masks onto the edges of objects")
    parser.add_argument("--data", type=Path, required=True, help="the data pack, DAVIS, YouTube-VOS or OVIS")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; continued if it is there")
    parser.add_argument("--go-on-from", type=Path, help="exported weights to begin with (default: the propagator's)")
    add_plan(parser, STEPS)
    parser.add_argument("--batch", type=int, default=8, help="pictures per step (default 8)")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate (default 3e-4)")
    parser.add_argument("--pool", type=int, default=400, help="pictures held for reuse (default 400)")
    parser.add_argument("--reuse", type=int, default=4, help="draws of a picture before the next is made (default 4)")
    parser.add_argument("--seed", type=int, default=1, help="of synthesis and split (default 1)")
    parser.add_argument("--workers", type=int, default=4, help="threads that decode the data (default 4)")
    parser.add_argument("--look-every", type=int, default=250, help="steps between validations (default 250)")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> None:
    from ciri.training.snap import Settings, train_snap

    names = ("data", "out", "go_on_from", "batch", "rate", "pool", "reuse", "seed", "workers", "look_every")
    settings = Settings(**{name: getattr(args, name) for name in names}, **plan_of(args, STEPS))
    with shared.progress("training") as bar:
        weights = train_snap(settings, say=remark, on_step=bar)
    remark(f"{weights}: copy it to weights/ once benchmarks/painted_masks.py says that it is better")
