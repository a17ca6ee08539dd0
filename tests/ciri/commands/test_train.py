"""How long a training lasts, as its command says it."""

import importlib
import math
from pathlib import Path

import pytest

from ciri import cli

#: What is typed, where the training is, and how many steps it takes where none are given.
TRAININGS = [
    (("propagator",), "ciri.training.propagator.train", 20_000),
    (("backbone",), "ciri.training.backbone.train_backbone", 20_000),
    (("residue", "--init", "encoder.safetensors"), "ciri.training.residue.train_residue", 4000),
    (("attention",), "ciri.training.attention.train_attention", 6000),
]


@pytest.mark.parametrize(
    ("network", "training", "usual"), TRAININGS, ids=lambda x: x[0] if isinstance(x, tuple) else ""
)
@pytest.mark.parametrize(
    ("typed", "steps", "minutes", "plan"),
    [
        ("", None, None, None),
        ("--minutes 30", None, 30, None),
        ("--steps 900", 900, None, None),
        # the same command goes on: the minutes end a call, not the schedule
        ("--steps 900 --minutes 30", 900, 30, math.inf),
        ("--steps 900 --minutes 30 --plan-minutes 90", 900, 30, 90),
        ("--minutes 30 --plan-minutes 90", None, 30, 90),
    ],
)
def test_steps_that_are_given_are_the_plan(monkeypatch, network, training, usual, typed, steps, minutes, plan):
    module, _, name = training.rpartition(".")
    taken = []
    monkeypatch.setattr(importlib.import_module(module), name, lambda s, **more: taken.append(s) or Path("weights"))
    assert cli.main(["train", *network, "--data", "data", "--out", "run", *typed.split()]) == 0
    (settings,) = taken
    assert (settings.steps, settings.minutes, settings.plan_minutes) == (steps or usual, minutes, plan)


def test_a_published_backbone_is_planned_in_epochs(monkeypatch):
    taken = []
    from ciri.training import published

    monkeypatch.setattr(published, "train_published", lambda s, **more: taken.append(s) or Path("weights"))
    command = "train backbone --model sttn --init sttn.pth --data data --out run --minutes 30"
    assert cli.main(command.split()) == 0 and cli.main([*command.split(), "--steps", "9"]) == 0
    assert [(s.steps, s.minutes) for s in taken] == [(None, 30), (9, 30)]
