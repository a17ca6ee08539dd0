"""Scenes of the attention network: shadows fall where geometry says, and nothing else changes."""

import importlib.util
import pathlib

import numpy as np
import pytest

from ciri.training.composites import over
from ciri.training.data import open_library
from ciri.training.scenes import SceneMaker, cast_shadow

_spec = importlib.util.spec_from_file_location("pack", pathlib.Path(__file__).with_name("test_data.py"))
pack = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pack)


class Chosen:
    """A generator that gives the numbers it was told to, so that a light can be chosen."""

    def __init__(self, uniform, choice, random):
        self._uniform, self._choice, self._random = iter(uniform), choice, random

    def uniform(self, *_):
        return next(self._uniform)

    def choice(self, _):
        return self._choice

    def random(self):
        return self._random


@pytest.mark.parametrize(("shear", "length", "towards"), [(0.0, 0.5, 1), (0.8, 0.4, -1), (-0.6, 0.6, 1)])
def test_a_shadow_is_the_silhouette_laid_flat_from_its_foot_on(shear, length, towards):
    alpha = np.zeros((1, 80, 120), np.float32)
    alpha[0, 20:41, 50:54] = 1  # a post whose foot is in row 40
    dark = cast_shadow(alpha, Chosen([0.5, 0.4, shear, length], towards, 0.9))[0]
    for above in (0, 10, 20):
        row, column = 40 + towards * length * above, 51.5 + shear * above
        assert dark[round(row), round(column)] > 0.3
    assert dark[30, 90] == 0 and dark.max() <= 0.5 + 1e-6
    rows = np.nonzero(dark.max(1) > 0.1)[0]
    # from the foot to where the head falls, and no further
    ends = sorted((40, 40 + towards * length * 20))
    assert abs(rows[0] - ends[0]) <= 2 and abs(rows[-1] - ends[1]) <= 2


def test_no_object_no_shadow():
    assert not cast_shadow(np.zeros((3, 20, 30), np.float32), np.random.default_rng(0)).any()


def test_layers_are_blended_by_their_opacity():
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    layers = rng.random((2, 5, 7, 4)).astype(np.float32)
    layers[..., :3] *= layers[..., 3:]
    result, mask = over(frames, layers)
    for t, y, x in np.ndindex(2, 5, 7):
        alpha = layers[t, y, x, 3]
        expected = frames[t, y, x] * (1 - alpha) + layers[t, y, x, :3] * 255
        assert np.abs(result[t, y, x] - expected).max() <= 0.51 and mask[t, y, x] == (alpha > 0.02)


def test_scenes_hold_targets_shadows_and_occluders_and_can_be_made_again(tmp_path):
    library = open_library(pack.write_pack(tmp_path))
    maker = SceneMaker(library, (48, 64), 6)
    shaded = 0
    for seed in range(12):
        scene = maker.scene(np.random.default_rng(seed))
        again = maker.scene(np.random.default_rng(seed))
        assert all((getattr(scene, n) == getattr(again, n)).all() for n in ("frames", "mask", "shadow"))
        assert scene.frames.shape == (6, 48, 64, 3) and scene.mask.any()
        assert not scene.shadow[scene.mask].any() and 0 <= scene.shadow.min() and scene.shadow.max() <= 1
        shaded += bool(scene.shadow.any())
    assert 2 <= shaded <= 10
