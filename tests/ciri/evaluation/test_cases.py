"""Cases on disk: the layouts, and what is said of cases that cannot be used."""

import shutil

import cv2
import numpy as np
import pytest

from ciri import media
from ciri.errors import EvaluationError
from ciri.evaluation.cases import find_cases, load
from tests.ciri.evaluation.conftest import COUNT, HEIGHT, WIDTH, write_case


def only(cases, name="alpha"):
    return next(case for case in find_cases(cases) if case.name == name)


def test_own_layout(cases):
    assert [case.name for case in find_cases(cases)] == ["alpha", "beta"]
    assert [case.name for case in find_cases(cases / "beta")] == ["beta"]
    material = load(only(cases))
    assert material.frames.shape == (COUNT, 3, HEIGHT, WIDTH) == material.clean.shape
    assert material.fully_annotated and material.first == 0
    assert material.masks.unique().tolist() == [0, 1] and material.masks[0].sum() == 14 * 14
    assert len(load(only(cases), limit=4).frames) == 4


@pytest.mark.parametrize(
    ("images", "labels"),
    [("JPEGImages/480p", "Annotations/480p"), ("JPEGImages", "Annotations"), ("valid/JPEGImages", "valid/Annotations")],
)
def test_benchmark_layouts(cases, tmp_path, images, labels):
    root = tmp_path / "benchmark"
    for name in ("alpha", "beta"):
        shutil.copytree(cases / name / "frames", root / images / name)
        shutil.copytree(cases / name / "masks", root / labels / name)
    found = find_cases(root)
    assert [case.name for case in found] == ["alpha", "beta"] and found[0].clean is None
    assert (load(found[0]).masks == load(only(cases)).masks).all()


def test_annotations_of_some_frames_and_of_several_objects(tmp_path):
    """YouTube-VOS annotates every fifth frame, in colours."""
    write_case(tmp_path / "JPEG", count=11, clean=False)
    frames, labels = tmp_path / "y/JPEGImages/clip", tmp_path / "y/Annotations/clip"
    shutil.copytree(tmp_path / "JPEG/frames", frames)
    labels.mkdir(parents=True)
    for t in (5, 10):
        picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        picture[5:9, 5:9] = (200, 0, 0)
        picture[20:24, 20:24] = (0, 120, 0)
        media.write_png(labels / f"{t:05d}.png", picture)
    material = load(find_cases(tmp_path / "y")[0])
    assert material.annotated == [5, 10] and material.first == 5 and not material.fully_annotated
    assert material.masks[5].sum() == 32 and material.masks[4].sum() == 0
    assert any("2 of 11" in note for note in material.notes)


def refused(cases, *words, name="alpha"):
    with pytest.raises(EvaluationError) as caught:
        load(only(cases, name))
    for word in (name, *words):
        assert word in str(caught.value)


def test_a_wholly_transparent_mask_is_empty_where_the_others_are_white_on_transparent(cases):
    for t in range(COUNT):
        file = cases / "alpha" / "masks" / f"{t:05d}.png"
        shape = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) * (t != 2)
        cv2.imwrite(str(file), np.dstack([np.full_like(shape, 255)] * 3 + [shape]))
    areas = load(only(cases)).masks.sum((1, 2, 3)).tolist()
    assert areas == [14 * 14 * (t != 2) for t in range(COUNT)]


def test_no_case(tmp_path):
    with pytest.raises(EvaluationError, match="does not exist"):
        find_cases(tmp_path / "nothing")
    with pytest.raises(EvaluationError, match="CASE/frames"):
        find_cases(tmp_path)


def test_missing_frame(cases):
    for part in ("frames", "masks", "clean"):
        (cases / "alpha" / part / "00003.png").unlink()
    refused(cases, "frame 3 is missing")


def test_missing_mask_and_clean_frame(cases):
    (cases / "alpha/clean/00002.png").unlink()
    refused(cases, "5 images and frames has 6", "00002")
    (cases / "beta/masks/00004.png").unlink()
    refused(cases, "frame 00004 has no mask", name="beta")


def test_no_masks_folder(cases):
    shutil.rmtree(cases / "alpha/masks")
    refused(cases, "no masks")


def test_masks_of_other_frames(cases):
    for file in (cases / "alpha/masks").iterdir():
        file.rename(file.with_name(f"m{file.name}"))
    refused(cases, "named like a frame", "m0000")


def test_no_target_in_any_frame(cases):
    for file in (cases / "alpha/masks").iterdir():
        media.write_png(file, np.zeros((HEIGHT, WIDTH), np.uint8))
    refused(cases, "no mask shows a target")


def test_sizes_that_differ(cases):
    for file in (cases / "alpha/clean").iterdir():
        media.write_png(file, np.zeros((HEIGHT, WIDTH + 2, 3), np.uint8))
    refused(cases, "the clean clip is 66x48")
    for file in (cases / "beta/masks").iterdir():
        media.write_png(file, np.full((WIDTH, HEIGHT), 255, np.uint8))
    refused(cases, "48x64", "64x48", name="beta")


def test_unreadable_image(cases):
    (cases / "alpha/frames/00001.png").write_bytes(b"not an image")
    refused(cases, "00001.png")


def test_later_target_and_one_frame(tmp_path):
    folder = write_case(tmp_path / "late")
    cv2.imwrite(str(folder / "masks/00000.png"), np.zeros((HEIGHT, WIDTH), np.uint8))
    assert load(find_cases(folder)[0]).first == 1
    assert len(load(find_cases(write_case(tmp_path / "one", count=1))[0]).frames) == 1
