"""What the trainings' commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from ciri.errors import TrainingError


def add_run(parser: argparse.ArgumentParser) -> None:
    """Arguments of every training run."""
    parser.add_argument("--data", type=Path, required=True, help="the data pack, DAVIS, YouTube-VOS or OVIS")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; continued if it is there")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes; the same command goes on later")
    parser.add_argument("--plan-minutes", type=float, help="minutes of all calls together (default: --minutes)")
    parser.add_argument("--steps", type=int, default=20_000, help="most steps of all calls together (default 20000)")
    parser.add_argument("--seed", type=int, default=1, help="of weights, synthesis and split (default 1)")
    parser.add_argument("--workers", type=int, default=16, help="threads or processes that make clips (default 16)")


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
