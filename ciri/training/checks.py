"""What the numbers of a training have to be, for all trainings: others are refused before anything is read or made."""

from __future__ import annotations

import math
from typing import Any

from ciri.errors import TrainingError

#: The least that a whole number of the settings may be, by its name; two frames are the shortest clip that moves.
LEAST = {
    "batch": 1,
    "window": 1,
    "length": 2,
    "local": 1,
    "references": 0,
    "pool": 1,
    "reuse": 0,
    "clip_frames": 1,
    "files": 1,
    "scenes": 1,
    "held": 1,
    "first": 1,
    "held_back": 0,
    "steps": 0,
    "look_every": 1,
    "log_every": 1,
    "workers": 0,
    "seed": 0,
}
#: The largest seed: trainings multiply theirs by up to a million, and PyTorch takes 63 bits.
LARGEST_SEED = 2**32 - 1
#: What has to be above 0 where it is given.
POSITIVE = ("rate", "epochs", "minutes", "plan_minutes")
#: Weights of losses, and shares of the plan: 0 or more.
NOT_NEGATIVE = ("pretraining", "perceptual", "adversarial_from", "adversarial", "flow")


def check_numbers(settings: Any) -> None:
    """Refuse counts, rates, times and weights that no training can be made with.

    Args:
        settings: of any training; of :data:`LEAST`, :data:`POSITIVE` and :data:`NOT_NEGATIVE`, those that it has.

    Raises:
        TrainingError: names the option, what was given and what is expected.
    """
    for name, least in LEAST.items():
        value = getattr(settings, name, None)
        if isinstance(value, int) and value < least:
            raise TrainingError(f"{_option(name)} {value}: expected {least} or more.")
    if settings.seed > LARGEST_SEED:
        raise TrainingError(f"--seed {settings.seed}: expected at most {LARGEST_SEED}.")
    for name in POSITIVE:
        value = getattr(settings, name, None)
        # written so that not-a-number is refused too
        if value is not None and not value > 0:
            raise TrainingError(f"{_option(name)} {value:g}: expected more than 0.")
    for name in NOT_NEGATIVE:
        weight: float = getattr(settings, name, 0.0)
        if not 0 <= weight < math.inf:
            raise TrainingError(f"{_option(name)} {weight:g}: expected 0 or more.")
    if math.isinf(settings.rate):
        raise TrainingError(f"{_option('rate')} {settings.rate:g}: expected a learning rate such as 0.001.")


def check_sides(what: str, height: int, width: int, multiple: int = 1) -> None:
    """Refuse a size in pixels. Raises TrainingError: a side is not above 0, or not divisible by ``multiple``."""
    if height < 1 or width < 1:
        raise TrainingError(f"{what} of {width}x{height}: both sides have to be at least {multiple}.")
    if height % multiple or width % multiple:
        raise TrainingError(f"{what} of {width}x{height}: both sides have to be divisible by {multiple}.")


def _option(name: str) -> str:
    """A setting as one types it."""
    return f"--{name.replace('_', '-')}"
