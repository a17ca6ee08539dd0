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


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("--model sttn --init sttn.pth --variant hard-mask", "--variant with --model sttn"),
        # also what it would have been anyway
        ("--model sttn --init sttn.pth --perceptual 0.1 --keep samples", "--keep, --perceptual with --model sttn"),
        ("--model sttn --init sttn.pth --plan-minutes 90", "--plan-minutes with --model sttn"),
        ("--epochs 3 --gate-points x0", "--epochs, --gate-points with --model lite"),
    ],
)
def test_options_of_the_other_kind_of_backbone_are_refused(monkeypatch, capsys, typed, named):
    from ciri.training import backbone, published

    for module, name in ((backbone, "train_backbone"), (published, "train_published")):
        monkeypatch.setattr(module, name, lambda s, **more: Path("weights"))
    assert cli.main(["train", "backbone", "--data", "data", "--out", "run", *typed.split()]) == 2
    assert named in capsys.readouterr().err


def test_options_that_are_not_given_are_what_the_help_says(monkeypatch):
    from ciri.training import backbone, published

    taken = []
    for module, name in ((backbone, "train_backbone"), (published, "train_published")):
        monkeypatch.setattr(module, name, lambda s, **more: taken.append(s) or Path("weights"))
    command = ["train", "backbone", "--data", "data", "--out", "run"]
    assert cli.main(command) == 0 and cli.main([*command, "--model", "sttn", "--init", "sttn.pth"]) == 0
    lite, sttn = taken
    assert (lite.variant, lite.window, lite.crop, lite.pool, lite.keep, lite.reuse) == (
        "ciri",
        3,
        (128, 192),
        500,
        None,
        0,
    )
    assert (lite.pretraining, lite.perceptual, lite.adversarial_from, lite.config.deep) == (0.35, 0.1, 1, 4)
    assert (sttn.epochs, sttn.local, sttn.references) == (30, 5, 3)
    assert (sttn.gate_points, sttn.adversarial, sttn.flow) == (("out",), 0.01, 1)
