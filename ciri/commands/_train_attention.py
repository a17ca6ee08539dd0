"""``python -m ciri train attention``: the network that corrects predicted masks by what other frames show."""

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
    parser = networks.add_parser("attention", help="the complementary attention of the backbones lite and flow")
    parser.add_argument("--data", type=Path, required=True, help="the data pack, DAVIS, YouTube-VOS or OVIS")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; continued if it is there")
    parser.add_argument("--keep", type=Path, help="folder for the examples, shared by several runs (default: in --out)")
    parser.add_argument("--init", type=Path, help="exported weights to begin with")
    add_plan(parser, STEPS)
    parser.add_argument("--batch", type=int, default=12, help="examples per step (default 12)")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate (default 1e-3)")
    parser.add_argument("--scenes", type=int, default=400, help="scenes of eight examples, made beside (default 400)")
    parser.add_argument("--held", type=int, default=36, help="held-back scenes (default 36)")
    parser.add_argument("--first", type=int, default=40, help="scenes that training waits for (default 40)")
    parser.add_argument("--seed", type=int, default=1, help="of weights and synthesis (default 1)")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that make examples; 0: all before (default 1)"
    )
    parser.add_argument("--look-every", type=int, default=250, help="steps between validations (default 250)")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> None:
    from ciri.training.attention import Settings, train_attention

    given = {name: value for name, value in vars(args).items() if name in Settings.__dataclass_fields__}
    settings = Settings(**{**given, **plan_of(args, STEPS)})
    with shared.progress("training") as bar:
        weights = train_attention(settings, say=remark, on_step=bar)
    remark(f"{weights}: copy it to weights/ once 'python -m ciri evaluate' says that it is better")
