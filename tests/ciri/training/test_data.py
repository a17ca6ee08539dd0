import json

import cv2
import numpy as np
import pytest

from ciri.errors import TrainingError
from ciri.training.data import CutOut, open_library, read_still, resize_to_cover


def write_pack(root, scenes=4):
    rng = np.random.default_rng(0)
    for part in ("video", "images", "objects/still", "objects/seq"):
        (root / part).mkdir(parents=True)
    manifest = []
    for n in range(scenes):
        file = f"s{n}_0.mp4"
        writer = cv2.VideoWriter(str(root / "video" / file), cv2.VideoWriter_fourcc(*"mp4v"), 8, (48, 32))
        for _ in range(6):
            writer.write(rng.integers(0, 255, (32, 48, 3), np.uint8))
        writer.release()
        manifest.append({"file": file, "scene": f"s{n}"})
    (root / "video/manifest.json").write_text(json.dumps(manifest))
    cv2.imwrite(str(root / "images/a.png"), np.full((40, 60, 3), (255, 0, 0), np.uint8))
    (root / "images/manifest.json").write_text(json.dumps([{"file": "a.png"}, {"file": "gone.png"}]))
    cut = np.zeros((20, 12, 4), np.uint8)
    cut[4:16, 3:9] = 255
    cv2.imwrite(str(root / "objects/still/o.png"), cut)
    (root / "objects/still/manifest.json").write_text(json.dumps([{"file": "o.png"}]))
    (root / "objects/seq/dog").mkdir()
    for i in range(3):
        cv2.imwrite(str(root / f"objects/seq/dog/{i:03d}.png"), cut)
    (root / "objects/seq/manifest.json").write_text(json.dumps([{"name": "dog", "frames": 3}]))
    return root


def test_the_pack_is_read_and_missing_files_are_counted(tmp_path):
    library = open_library(write_pack(tmp_path))
    assert [c.scene for c in library.clips] == ["s0", "s1", "s2", "s3"]
    assert library.clips[0].frames().shape == (6, 32, 48, 3)
    assert len(library.skipped) == 1 and "gone.png" in library.skipped[0]
    assert [len(c.files) for c in library.cutouts] == [3, 1]
    assert library.cutouts[0].images().shape == (3, 20, 12, 4)


def test_colours_are_rgb(tmp_path):
    library = open_library(write_pack(tmp_path))
    assert read_still(library.stills[0])[0, 0].tolist() == [0, 0, 255]


def test_unreadable_files_are_skipped_and_counted(tmp_path):
    library = open_library(write_pack(tmp_path))
    library.clips[1].source.write_bytes(b"no video")
    loaded = library.read(library.clips, lambda clip: clip.frames())
    assert len(loaded) == 3 and "s1_0.mp4" in library.skipped[-1]


def test_a_split_keeps_scenes_apart(tmp_path):
    kept, held = open_library(write_pack(tmp_path)).split(every=2)
    assert "gone.png" in kept.skipped[0] and not held.skipped
    assert {c.scene for c in kept.clips} == {"s1", "s3"} and {c.scene for c in held.clips} == {"s0", "s2"}


def test_davis_and_youtube_vos_folders(tmp_path):
    for base in ("davis/{}/480p/bear", "vos/train/{}/bear"):
        for part, colour in (("JPEGImages", (0, 0, 255)), ("Annotations", (0, 0, 128))):
            folder = tmp_path / base.format(part)
            folder.mkdir(parents=True)
            for i in range(2):
                image = np.zeros((24, 32, 3), np.uint8)
                image[4:9, 5:9] = colour
                cv2.imwrite(str(folder / f"{i:05d}.png"), image)
    for name in ("davis", "vos"):
        (clip,) = open_library(tmp_path / name).clips
        assert clip.frames()[0, 5, 6].tolist() == [255, 0, 0]
        at, labels = clip.label_masks()
        assert at == [0, 1] and labels.sum() == 2 * 20 and labels.max() == 1


def write_vos(root, clips=2, frames=6, size=(48, 64)):
    """A YouTube-VOS folder: noise, with a red square that moves and a blue one that appears half way."""
    rng = np.random.default_rng(1)
    for clip in range(clips):
        noise = rng.integers(0, 255, (*size, 3), np.uint8)
        for t in range(frames):
            image, labels = noise.copy(), np.zeros((*size, 3), np.uint8)
            image[10:30, 6 + 3 * t : 26 + 3 * t], labels[10:30, 6 + 3 * t : 26 + 3 * t] = (0, 0, 255), (0, 0, 128)
            if t >= frames // 2:
                image[34:46, 4:20], labels[34:46, 4:20] = (255, 0, 0), (0, 128, 0)
            for part, picture in (("JPEGImages", image), ("Annotations", labels)):
                folder = root / "train" / part / f"clip{clip}"
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f"{5 * t:05d}.png"), picture)
    return root


def test_an_object_keeps_its_number_when_others_come_and_go(tmp_path):
    clip = open_library(write_vos(tmp_path)).clips[0]
    _, labels = clip.label_masks()
    red = labels[0, 20, 10]
    assert [x[20, 10 + 3 * t] for t, x in enumerate(labels)] == [red] * 6
    assert [set(np.unique(x)) for x in labels] == [{0, red}] * 3 + [{0, 1, 2}] * 3


def test_annotated_frames_are_found_by_name(tmp_path):
    clip = open_library(write_vos(tmp_path)).clips[0]
    (tmp_path / "train/Annotations/clip0/00005.png").unlink()
    (tmp_path / "train/Annotations/clip0/00015.png").write_bytes(b"torn")
    files = clip.annotated_files()
    assert [file.stem for file in files] == ["00000", "00010", "00015", "00020", "00025"]
    frames, labels = clip.annotated(files[1:4])
    assert len(frames) == len(labels) == 2
    assert (frames[0, 20, 14] == (255, 0, 0)).all() and labels[0, 20, 14] and (labels[1] > 0).sum() == 400 + 192
    with pytest.raises(TrainingError, match="no frames with annotations"):
        clip.annotated(files[2:3])
    assert clip.label_masks()[0] == [0, 2, 4, 5] and clip.label_masks(4)[0] == [0, 2]


def test_empty_clip_folders_are_named(tmp_path):
    (tmp_path / "train/JPEGImages/bear").mkdir(parents=True)
    with pytest.raises(TrainingError, match="1 places were empty or unreadable; the first: .*bear holds no image"):
        open_library(tmp_path)


def test_a_folder_without_data_says_what_was_expected(tmp_path):
    with pytest.raises(TrainingError, match=r"video/manifest\.json"):
        open_library(tmp_path)
    with pytest.raises(TrainingError, match="does not exist"):
        open_library(tmp_path / "nowhere")


def test_resize_to_cover_keeps_the_centre_and_the_aspect_ratio():
    image = np.zeros((1, 100, 300, 3), np.uint8)
    image[:, :, 140:160] = 255
    out = resize_to_cover(image, 50, 60)
    assert out.shape == (1, 50, 60, 3)
    columns = np.nonzero(out[0, 25, :, 0] > 128)[0]
    assert columns.tolist() == list(range(25, 35))


@pytest.mark.parametrize("content", ["[1, 2]", '{"file": "x"}', '[{"name": "s0_0.mp4"}]', "[3", "7"])
def test_a_manifest_of_another_form_is_passed_over_and_named(tmp_path, content):
    write_pack(tmp_path)
    (tmp_path / "video/manifest.json").write_text(content)
    library = open_library(tmp_path)
    assert not library.clips and len(library.stills) == 1
    assert "video/manifest.json" in library.skipped[0]


def test_annotations_that_differ_in_size_are_refused(tmp_path):
    clip = open_library(write_vos(tmp_path)).clips[0]
    cv2.imwrite(str(tmp_path / "train/Annotations/clip0/00005.png"), np.zeros((8, 8), np.uint8))
    with pytest.raises(TrainingError, match="annotations of clip clip0 differ in size"):
        clip.label_masks()


def test_what_bytes_cannot_hold_is_refused(tmp_path):
    deep = np.full((8, 8, 4), 65535, np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    with pytest.raises(TrainingError, match="deep.png is not a readable RGBA image of 8 bits"):
        CutOut("deep", (tmp_path / "deep.png",)).images()
    clip = open_library(write_vos(tmp_path)).clips[0]
    ramp = np.stack([*np.divmod(np.arange(20 * 30).reshape(20, 30), 256), np.zeros((20, 30))], -1)
    cv2.imwrite(str(tmp_path / "train/Annotations/clip0/00005.png"), ramp.astype(np.uint8))
    with pytest.raises(TrainingError, match="Annotations have [56].. colours; expected one for each object"):
        clip.label_masks()


def test_frames_are_in_the_order_of_their_numbers_and_what_macos_lays_beside_them_is_none(tmp_path):
    folder = tmp_path / "JPEGImages/480p/mine"
    folder.mkdir(parents=True)
    for number in (10, 9, 100, 1):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((8, 8, 3), number, np.uint8))
    (folder / "._9.png").write_bytes(b"resource fork")
    (clip,) = open_library(tmp_path).clips
    assert clip.frames()[:, 0, 0, 0].tolist() == [1, 9, 10, 100]
