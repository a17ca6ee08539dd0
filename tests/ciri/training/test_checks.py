"""Impossible numbers are refused in one line by every training, before anything is read or made."""

import cv2
import numpy as np
import pytest

from ciri import cli
from ciri.errors import TrainingError
from ciri.training import attention, backbone, propagator
from ciri.training.attention import train_attention
from ciri.training.backbone import train_backbone
from ciri.training.checks import check_sides
from ciri.training.data import open_library
from ciri.training.propagator import train as train_propagator

PUBLISHED = ("backbone", "--model", "sttn", "--init", "sttn.pth")
RESIDUE = ("residue", "--init", "encoder.safetensors")


def refused(tmp_path, capsys, network, *options):
    arguments = ["train", *network, "--data", tmp_path / "data", "--out", tmp_path / "run", *options]
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and not list(tmp_path.iterdir())
    return said


@pytest.mark.parametrize("network", [("propagator",), ("backbone",), PUBLISHED, RESIDUE, ("attention",)])
@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--batch", 0, "1 or more"),
        ("--look-every", 0, "1 or more"),
        ("--seed", -1, "0 or more"),
        ("--seed", 10**13, "at most 4294967295"),
        ("--workers", -1, "0 or more"),
        ("--steps", -1, "0 or more"),
        ("--rate", "nan", "more than 0"),
        ("--rate", -0.1, "more than 0"),
        ("--rate", "inf", "a learning rate such as 0.001"),
        ("--minutes", 0, "more than 0"),
        ("--minutes", "nan", "more than 0"),
    ],
)
def test_every_training_refuses_impossible_numbers(tmp_path, capsys, network, option, value, expected):
    assert refused(tmp_path, capsys, network, option, value) == f"ciri: {option} {value}: expected {expected}."


@pytest.mark.parametrize(
    ("network", "option", "value", "said"),
    [
        (("backbone",), "--pool", 0, "--pool 0: expected 1 or more"),
        (("backbone",), "--length", 1, "--length 1: expected 2 or more"),
        (("backbone",), "--window", 0, "--window 0: expected 1 or more"),
        (("backbone",), "--held-back", -1, "--held-back -1: expected 0 or more"),
        (("backbone",), "--size", "106x64", "Clips of 106x64: both sides have to be divisible by 16"),
        (("backbone",), "--size", "0x0", "Clips of 0x0: both sides have to be at least 16"),
        (("backbone",), "--crop", "60x60", "Crops of 60x60: both sides have to be divisible by 16"),
        (("backbone",), "--crop", "64", "--crop '64': expected WIDTHxHEIGHT, such as 192x128"),
        (("backbone",), "--channels", "0,8,8,8", "--channels 0,8,8,8: expected four numbers of 1 or more"),
        (("backbone",), "--deep", -1, "--deep -1: expected 0 or more"),
        (("backbone",), "--perceptual", -0.1, "--perceptual -0.1: expected 0 or more"),
        (("backbone",), "--pretraining", "nan", "--pretraining nan: expected 0 or more"),
        (("backbone",), "--adversarial-from", -1, "--adversarial-from -1: expected 0 or more"),
        (("propagator",), "--pool", 0, "--pool 0: expected 1 or more"),
        (("propagator",), "--enlarge", "inf", "Clips are to be enlarged by up to inf; expected 1 (as they are) to 16"),
        (("propagator",), "--clip-frames", 0, "--clip-frames 0: expected 1 or more"),
        (("propagator",), "--plan-minutes", 0, "--plan-minutes 0: expected more than 0"),
        (("propagator",), "--size", "0x0", "Frames of 0x0: both sides have to be at least 16"),
        (PUBLISHED, "--local", 0, "--local 0: expected 1 or more"),
        (PUBLISHED, "--references", -1, "--references -1: expected 0 or more"),
        (PUBLISHED, "--length", 1, "--length 1: expected 2 or more"),
        (PUBLISHED, "--epochs", 0, "--epochs 0: expected more than 0"),
        (PUBLISHED, "--adversarial", "nan", "--adversarial nan: expected 0 or more"),
        (PUBLISHED, "--flow", -1, "--flow -1: expected 0 or more"),
        (PUBLISHED, "--size", "0x240", "Clips of 0x240: both sides have to be at least 1"),
        (RESIDUE, "--held", 0, "--held 0: expected 1 or more"),
        (RESIDUE, "--files", 0, "--files 0: expected 1 or more"),
        (("attention",), "--scenes", 0, "--scenes 0: expected 1 or more"),
        (("attention",), "--first", 0, "--first 0: expected 1 or more"),
    ],
)
def test_what_only_some_have_is_refused_too(tmp_path, capsys, network, option, value, said):
    assert refused(tmp_path, capsys, network, option, value) == f"ciri: {said}."


def test_sides_that_fit_pass():
    check_sides("Clips", 64, 96, 16)
    with pytest.raises(TrainingError, match="96x60.*divisible by 16"):
        check_sides("Clips", 60, 96, 16)


def test_a_single_scene_cannot_be_split(tmp_path):
    frames = tmp_path / "JPEGImages/480p/mine"
    frames.mkdir(parents=True)
    cv2.imwrite(str(frames / "00000.jpg"), np.zeros((64, 64, 3), np.uint8))
    data, out = tmp_path, tmp_path / "run"
    for train, settings in (
        (train_propagator, propagator.Settings(data, tmp_path / "other")),
        (train_backbone, backbone.Settings(data, out)),
        (train_attention, attention.Settings(data, out)),
    ):
        with pytest.raises(TrainingError, match=r"a single scene \(mine\); one is held back to validate on"):
            train(settings)
    assert not out.exists()
    (tmp_path / "JPEGImages/480p/other").mkdir()
    cv2.imwrite(str(tmp_path / "JPEGImages/480p/other/00000.jpg"), np.zeros((64, 64, 3), np.uint8))
    open_library(tmp_path).check_scenes()
