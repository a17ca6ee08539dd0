"""Benchmarks are not part of the suite, but they have to run when somebody wants to measure."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from scripts.comfyui import ROOT


def measure(name, *options):
    """Run a benchmark and return the lines that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *map(str, options)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_propagation_measures_the_propagators_that_need_no_files():
    lines = measure(
        "propagation", "--propagators", "flow", "lite", "--frames", 3, "--sizes", "96x64", "--precisions", "fp32"
    )
    assert [line.split()[0] for line in lines[1:]] == ["flow", "lite"]
    # seconds a frame, and megabytes
    assert all(float(line.split()[4]) > 0 and float(line.split()[7]) > 0 for line in lines[1:])


@pytest.fixture
def case(tmp_path):
    """A texture that moves behind a square, on disk as CASE/{frames,masks,clean}."""
    random = np.random.default_rng(5)
    wide = cv2.resize(random.integers(0, 255, (16, 40, 3), np.uint8), (160, 64), interpolation=cv2.INTER_CUBIC)
    for t in range(5):
        clean = wide[:, 4 * t : 4 * t + 96]
        mask = np.zeros((64, 96), np.uint8)
        mask[24:36, 40:50] = 255
        frame = np.where(mask[..., None] > 0, np.uint8(255), clean)
        for kind, image in (("frames", frame), ("masks", mask), ("clean", clean)):
            (tmp_path / "cases" / "pan" / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "cases" / "pan" / kind / f"{t:05d}.png"), image)
    return tmp_path


def test_learned_inpainting_compares_the_small_backbone_with_copying(case):
    lines = measure("learned_inpainting", case / "cases", "--sheet", case / "sheet.png")
    assert lines[0].split() == ["flow", "backbone_lite"] and lines[-1].startswith("MEAN")
    flow, lite = (float(value) for value in lines[-1].split()[1::4])
    assert flow > 20 and lite > 20 and (case / "sheet.png").exists()


def test_texture_is_compared_with_the_smooth_guess(case):
    stills = case / "stills"
    stills.mkdir()
    picture = np.random.default_rng(6).integers(0, 255, (30, 54, 3), np.uint8)
    cv2.imwrite(str(stills / "a.png"), cv2.resize(picture, (432, 240), interpolation=cv2.INTER_CUBIC))
    lines = measure("texture", stills, case / "cases", "--count", 1, "--pictures", case / "out")
    assert [line.split()[0] for line in lines] == ["smooth", "texture"]
    assert all(float(line.split()[4]) > 5 for line in lines) and (case / "out" / "000.png").exists()


def test_noise_is_added_and_grain_matched(case):
    lines = measure("grain", case / "cases", "--deviations", "0,6", "--backbone", "flow", "--sheet", case / "grain.png")
    assert [line.split()[0] for line in lines] == ["clip", "pan", "pan", "MEAN", "MEAN"]
    assert all(float(line.split()[2]) > 15 for line in lines[1:]) and (case / "grain.png").exists()


def test_painted_masks_are_snapped_and_followed(case):
    lines = measure("painted_masks", case / "cases", "--kinds", "exact,8", "--follow", "--sheet", case / "sheet.png")
    exact, wide = (dict(zip("JjCcPDpd", map(float, line.split()[1:]), strict=True)) for line in lines[-2:])
    # a square that was exact stays, one painted too wide gets its edge back, and all that follows gains by it
    assert exact["J"] == 100 and exact["j"] > 90 and exact["C"] == 100
    assert wide["J"] < 60 < wide["j"] and wide["P"] < wide["p"] and wide["D"] < wide["d"]
    assert (case / "sheet.png").exists()
