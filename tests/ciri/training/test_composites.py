import importlib.util
import pathlib

import numpy as np
import pytest

from ciri.errors import TrainingError
from ciri.training.composites import LARGEST_SHARE, CompositeMaker, cut_out, is_worth_it
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


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    return open_library(pack.write_vos(tmp_path_factory.mktemp("vos")))


def test_an_annotated_object_is_cut_out_with_its_motion(annotated):
    clip = annotated.clips[0]
    images, labels = clip.annotated(clip.annotated_files())
    red = labels[0, 20, 10]
    cut = cut_out(images, labels == red)
    assert cut.shape == (6, 20, 20 + 3 * 5, 4)
    for t, image in enumerate(cut):
        inside = np.zeros(image.shape[:2], bool)
        inside[:, 3 * t : 3 * t + 20] = True
        assert ((image[..., 3] == 255) == inside).all() and (image[inside][:, :3] == (255, 0, 0)).all()


def test_small_and_brief_objects_are_left_out():
    mask = np.zeros((8, 40, 50), bool)
    assert not is_worth_it(mask)
    mask[:5, 10:20, 10:20] = True
    assert is_worth_it(mask)
    mask[3:] = False
    assert not is_worth_it(mask)
    mask[:, 10:20, 10:20] = False
    mask[:, 10:13, 10:13] = True
    assert not is_worth_it(mask)


def test_composites_of_annotated_clips_show_their_objects(annotated):
    maker = CompositeMaker(annotated, (48, 64), 6)
    shown = 0
    for seed in range(12):
        made = maker.make(np.random.default_rng(seed))
        assert made.mask.any() and (made.frames == made.clean)[~made.mask].mean() > 0.9
        colours = made.frames[made.mask].astype(int)
        red, blue = colours[:, 0] - colours[:, 2] > 120, colours[:, 2] - colours[:, 0] > 120
        shown += max(red.mean(), blue.mean()) > 0.5
    assert shown >= 4 and not annotated.skipped


def test_a_torn_annotation_is_passed_over_and_counted_once(tmp_path):
    library = open_library(pack.write_vos(tmp_path, clips=2))
    for file in (tmp_path / "train/JPEGImages/clip1").iterdir():
        file.write_bytes(b"torn")
    maker = CompositeMaker(library, (48, 64), 6)
    for seed in range(6):
        assert maker.make(np.random.default_rng(seed)).mask.any()
    assert len(library.skipped) == len(set(library.skipped)) >= 1


def test_large_frames_are_shrunk_when_read(tmp_path):
    library = open_library(pack.write_vos(tmp_path, clips=1, size=(96, 128)))
    maker = CompositeMaker(library, (16, 24), 4)
    assert maker._clip(library.clips[0]).shape == (6, 36, 48, 3)
    assert maker.make(np.random.default_rng(0)).frames.shape == (4, 16, 24, 3)


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_short_clips_are_played_forth_and_back(tmp_path, frames):
    """Each frame's brightness is its number, so that the order can be read from the picture."""
    folder = tmp_path / "train/JPEGImages/clip"
    folder.mkdir(parents=True)
    for t in range(frames):
        pack.cv2.imwrite(str(folder / f"{t}.png"), np.full((16, 24, 3), 20 * t, np.uint8))
    maker = CompositeMaker(open_library(tmp_path), (16, 24), 25)
    for seed in range(8):
        order = maker.background(np.random.default_rng(seed)).mean((1, 2, 3)) / 20
        assert len(order) == 25 and np.allclose(order, order.round()) and order.max() <= frames - 1
        assert np.abs(np.diff(order)).max() <= 2
