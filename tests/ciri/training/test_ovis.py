"""Run-length masks against an encoder written from the format's description, and the folder layout."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciri.errors import TrainingError
from ciri.training.data import open_library
from ciri.training.ovis import decode_counts, decode_mask
from ciri.training.propagator_data import load_bank


def runs_of(mask):
    """Lengths of the runs down the columns, one pixel at a time; the first counts background and may be 0."""
    counts, current = [0], False
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if bool(mask[row, column]) != current:
                counts.append(0)
                current = not current
            counts[-1] += 1
    return counts


def compress(counts):
    """The string: signed numbers in 5-bit groups, low first, of which every one but the last has bit 6 set."""
    text = ""
    for i, count in enumerate(counts):
        number = count - counts[i - 2] if i > 2 else count
        # the fewest groups whose two's complement still holds the number
        groups = next(n for n in range(1, 12) if -(1 << (5 * n - 1)) <= number < 1 << (5 * n - 1))
        for group in range(groups):
            bits = (number >> (5 * group)) % 32
            text += chr(48 + bits + (32 if group < groups - 1 else 0))
    return text


masks = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32)).map(
    lambda made: np.random.default_rng(made[2]).random(made[:2]) < np.random.default_rng(made[2] + 1).random()
)


@given(masks)
def test_both_forms_of_a_mask_are_decoded(mask):
    size = list(mask.shape)
    assert (decode_mask({"size": size, "counts": runs_of(mask)}) == mask).all()
    assert (decode_mask({"size": size, "counts": compress(runs_of(mask))}) == mask).all()


def test_long_and_shrinking_runs():
    mask = np.zeros((300, 400), bool)
    mask[20:280, 30:390] = True
    mask[100:120, 200:220] = False
    counts = runs_of(mask)
    assert max(counts) > 1024 and min(np.diff(counts)) < -1000  # several groups, and negative differences
    assert (decode_mask({"size": [300, 400], "counts": compress(counts)}) == mask).all()


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=12))
def test_counts_come_back(counts):
    assert decode_counts(compress(counts)) == counts
    assert decode_counts(compress(counts).encode()) == counts


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ({"size": [2, 2], "counts": [1, 2]}, "add up to 3 pixels; expected 4"),
        ({"size": [2, 2], "counts": [5, -1]}, "add up to 4"),
        ({"size": [2, 2], "counts": "\x01"}, "none of its characters"),
        ({"size": [2, 2], "counts": "é"}, "none of its characters"),
        ({"size": [2, 2], "counts": "P"}, "middle of a number"),
        ({"size": [2, 2]}, "not run-length encoded"),
        ([[0, 0, 1, 1]], "not run-length encoded"),
    ],
)
def test_broken_masks_are_refused(segmentation, said):
    with pytest.raises(TrainingError, match=said):
        decode_mask(segmentation)


def write_ovis(root, clips=2, frames=4):
    """Clips with two objects: a square that moves, and one that is seen in the last frame only, in front of it."""
    videos, annotations = [], []
    for clip in range(clips):
        folder = root / "train" / f"clip{clip}"
        folder.mkdir(parents=True)
        names, tracks = [], ([], [])
        for t in range(frames):
            cv2.imwrite(str(folder / f"img_{t + 1:07d}.jpg"), np.full((24, 36, 3), 40 * clip + t, np.uint8))
            names.append(f"clip{clip}/img_{t + 1:07d}.jpg")
            moving, late = np.zeros((2, 24, 36), bool)
            moving[5:15, 3 + t : 15 + t] = True
            late[10:20, 10:20] = True
            tracks[0].append({"size": [24, 36], "counts": compress(runs_of(moving))})
            tracks[1].append({"size": [24, 36], "counts": runs_of(late)} if t == frames - 1 else None)
        videos.append({"id": clip + 7, "file_names": names, "height": 24, "width": 36, "length": frames})
        annotations += [{"id": len(annotations), "video_id": clip + 7, "segmentations": track} for track in tracks]
    file = root / "annotations_train.json"
    file.write_text(json.dumps({"videos": videos, "annotations": annotations, "categories": []}))
    return root


def test_a_folder_is_read(tmp_path):
    library = open_library(write_ovis(tmp_path))
    assert [clip.name for clip in library.clips] == ["clip0", "clip1"] and not library.skipped
    clip = library.clips[1]
    assert clip.frames().shape == (4, 24, 36, 3)
    files = clip.annotated_files()
    frames, labels = clip.annotated(files)
    assert frames.shape == (4, 24, 36, 3) and labels.shape == (4, 24, 36)
    assert [sorted(np.unique(x)) for x in labels] == [[0, 1]] * 3 + [[0, 1, 2]]
    assert labels[0, 5, 3] == 1 and labels[1, 5, 3] == 0 and (labels[3, 10:20, 10:20] == 2).all()
    assert (clip.label_masks(2)[1] == labels[:2]).all()


def test_missing_pictures_and_broken_files_are_skipped_and_counted(tmp_path):
    write_ovis(tmp_path)
    for file in (tmp_path / "train/clip0").iterdir():
        file.unlink()
    (tmp_path / "annotations_valid.json").write_text("[1, 2")
    library = open_library(tmp_path)
    assert [clip.name for clip in library.clips] == ["clip1"]
    assert len(library.skipped) == 2 and "clip0" in library.skipped[0] and "annotations_valid" in library.skipped[1]


def test_only_unusable_clips_say_so(tmp_path):
    write_ovis(tmp_path, clips=1)
    for file in (tmp_path / "train/clip0").iterdir():
        file.unlink()
    with pytest.raises(TrainingError, match="1 places were empty or unreadable; the first: No picture of clip clip0"):
        open_library(tmp_path)


@pytest.mark.parametrize(
    "spoil", [dict.clear, lambda video: video.update(height="tall"), lambda video: video.pop("id")]
)
def test_a_malformed_clip_does_not_take_the_others_along(tmp_path, spoil):
    file = write_ovis(tmp_path, clips=3) / "annotations_train.json"
    content = json.loads(file.read_text())
    spoil(content["videos"][1])
    file.write_text(json.dumps(content))
    library = open_library(tmp_path)
    assert [clip.name for clip in library.clips] == ["clip0", "clip2"]
    assert len(library.skipped) == 1 and "Clip 1 of" in library.skipped[0]


def test_a_mask_that_cannot_be_decoded_leaves_its_clip_as_background(tmp_path):
    file = write_ovis(tmp_path) / "annotations_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentations"][2]["counts"] = "~"
    file.write_text(json.dumps(content))
    bank = load_bank(open_library(tmp_path), [], height=32, width=48, device="cpu", workers=1)
    assert bank.clips == [(0, 4), (4, 4)] and {frame // 4 for frames, _ in bank.tracks for frame in frames} == {1}
    assert bank.skipped == ["A compressed mask holds '~', which is none of its characters."]
