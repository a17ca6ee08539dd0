import importlib.util
import pathlib

import numpy as np
import pytest

from ciri.errors import TrainingError
from ciri.training.composites import LARGEST_SHARE, CompositeMaker
from ciri.training.data import Library, open_library

_spec = importlib.util.spec_from_file_location("pack", pathlib.Path(__file__).with_name("test_data.py"))
pack = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pack)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return open_library(pack.write_pack(tmp_path_factory.mktemp("pack")))


def test_away_from_the_object_the_frames_are_the_clean_clip(library):
    maker = CompositeMaker(library, (32, 48), 6)
    for seed in range(6):
        made = maker.make(np.random.default_rng(seed))
        assert made.frames.shape == made.clean.shape == (6, 32, 48, 3) and made.mask.shape == (6, 32, 48)
        assert made.mask.any() and made.mask[:].mean() < 2 * LARGEST_SHARE
        outside = ~made.mask
        # opacity below the threshold of the mask may still show, by at most two per cent of the range
        difference = np.abs(made.frames.astype(int) - made.clean.astype(int))[outside]
        assert difference.max() <= 6
        assert (made.frames != made.clean)[made.mask].any()


def test_the_same_generator_gives_the_same_composite(library):
    maker = CompositeMaker(library, (32, 48), 5)
    a, b = (maker.make(np.random.default_rng(9)) for _ in range(2))
    assert (a.frames == b.frames).all() and (a.mask == b.mask).all()


def test_nothing_to_paste_over_is_refused():
    with pytest.raises(TrainingError, match="no readable clip"):
        CompositeMaker(Library(), (32, 48), 4)


def test_unreadable_files_are_passed_over(tmp_path):
    library = open_library(pack.write_pack(tmp_path))
    for clip in library.clips[:3]:
        clip.source.write_bytes(b"")
    made = CompositeMaker(library, (32, 48), 4).make(np.random.default_rng(0))
    assert made.mask.any()
