"""``python -m ciri train residue``: the residue detector lite."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ciri.commands import _arguments as shared
from ciri.commands._train_shared import add_plan, plan_of
from ciri.console import remark

#: Most steps, where none are given.
STEPS = 4000


def add_parser(networks: Any) -> None:
    parser = networks.add_parser("residue", help="the residue detector lite")
    parser.add_argument("--data", type=Path, required=True, help="the data pack, DAVIS, or YouTube-VOS")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; continued if it is there")
    parser.add_argument("--init", type=Path, required=True, help="pretrained EfficientNet-Lite0 (.pth or .safetensors)")
    parser.add_argument("--go-on-from", type=Path, help="exported weights to begin with")
    add_plan(parser, STEPS)
    parser.add_argument("--batch", type=int, default=32, help="samples per step (default 32)")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate (default 2e-3)")
    parser.add_argument("--files", type=int, default=60, help="files of 16 composites each, made beside (default 60)")
    parser.add_argument("--held", type=int, default=6, help="files of held-back composites (default 6)")
    parser.add_argument("--seed", type=int, default=1, help="of weights and synthesis (default 1)")
    parser.add_argument("--workers", type=int, default=1, help="0: make all samples first; 1: beside (default)")
    parser.add_argument("--look-every", type=int, default=200, help="steps between validations (default 200)")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> None:
    from ciri.training.residue import Settings, train_residue

    names = (
        "data",
        "out",
        "init",
        "go_on_from",
        "batch",
        "rate",
        "files",
        "held",
        "seed",
    )
    given = {name: getattr(args, name) for name in (*names, "workers", "look_every")}
    settings = Settings(**given, **plan_of(args, STEPS))
    with shared.progress("training") as bar:
        weights = train_residue(settings, say=remark, on_step=bar)
    remark(f"{weights}: copy it to weights/ once benchmarks/residue_detection.py says that it is better")
