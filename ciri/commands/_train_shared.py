"""What the trainings' commands share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from ciri.errors import TrainingError

#: Most steps of the propagator and of the lite backbone, where none are given.
STEPS = 20_000


def add_run(parser: argparse.ArgumentParser, steps: int | str = STEPS) -> None:
    """Arguments of every training run; ``steps`` as for :func:`add_plan`."""
    parser.add_argument("--data", type=Path, required=True, help="the data pack, DAVIS, YouTube-VOS or OVIS")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; continued if it is there")
    add_plan(parser, steps)
    parser.add_argument("--seed", type=int, default=1, help="of weights, synthesis and split (default 1)")
    parser.add_argument("--workers", type=int, default=16, help="threads or processes that make clips (default 16)")


def add_plan(parser: argparse.ArgumentParser, steps: int | str) -> None:
    """How long to train; ``steps`` says how many it is where none are given."""
    parser.add_argument("--minutes", type=float, help="stop after so many minutes; the same command goes on later")
    parser.add_argument(
        "--plan-minutes",
        type=float,
        help="minutes of all calls together, the schedule's (default: --minutes, where no --steps are given)",
    )
    parser.add_argument("--steps", type=int, help=f"most steps of all calls together (default {steps})")


def plan_of(args: argparse.Namespace, steps: int) -> dict[str, Any]:
    """Steps and minutes of the settings.

    Where --steps is given, it says how long the schedule is, and --minutes only ends a call: the same command goes on
    where it was. Otherwise the schedule runs over the minutes, for nobody knows beforehand how many steps these are.
    """
    minutes = args.plan_minutes
    if minutes is None and args.minutes is not None and args.steps is not None:
        minutes = math.inf
    return {
        "steps": steps if args.steps is None else args.steps,
        "minutes": args.minutes,
        "plan_minutes": minutes,
    }


def parse_size(text: str, example: str, option: str = "--size") -> tuple[int, int]:
    """Return (width, height) of WIDTHxHEIGHT, as it was given with an option.

    Raises:
        TrainingError: not two numbers.
    """
    try:
        width, height = (int(side) for side in text.split("x"))
    except ValueError:
        raise TrainingError(f"{option} {text!r}: expected WIDTHxHEIGHT, such as {example}.") from None
    return width, height
