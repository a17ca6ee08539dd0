"""ciri.media: folders of images, and what cannot be read or written."""

import av
import cv2
import numpy as np
import pytest
import torch

from ciri import mask_files, media
from ciri.errors import MediaError
from tests.ciri.videos import encode, two_tones


def test_png_folder_is_lossless(tmp_path):
    ramp = (torch.arange(256).reshape(1, 1, 16, 16) / 255).expand(2, 3, 16, 16)
    media.write_clip(tmp_path / "out", ramp)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["00000.png", "00001.png"]
    assert torch.equal(media.read_clip(tmp_path / "out").frames, ramp)


def test_colour_channels_are_not_swapped(tmp_path):
    red = torch.tensor([1.0, 0.5, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    media.write_clip(tmp_path / "out", red)
    by_opencv = cv2.imread(str(tmp_path / "out" / "00000.png"))
    assert by_opencv[0, 0].tolist() == [0, 128, 255]


def test_images_are_ordered_by_number_and_keep_their_names(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in (10, 9, 1, 100):
        media.write_png(folder / f"shot\u00b2_{number}.png", np.full((4, 4, 3), number, np.uint8))
    (folder / "notes.txt").write_text("no image")
    (folder / "._shot\u00b2_9.png").write_bytes(b"Mac OS X")  # what macOS leaves on disks that are not its own
    clip = media.read_clip(folder)
    assert (clip.frames[:, 0, 0, 0] * 255).round().tolist() == [1, 9, 10, 100]
    media.write_clip(tmp_path / "out", clip.frames, clip)
    assert {file.stem for file in (tmp_path / "out").iterdir()} == {f"shot\u00b2_{n}" for n in (1, 9, 10, 100)}
    assert (media.read_clip(folder, start=1, count=2).frames[:, 0, 0, 0] * 255).round().tolist() == [9, 10]


def test_grey_alpha_and_16_bit_images_become_three_channels(tmp_path):
    levels = np.arange(0, 256, dtype=np.uint16).reshape(16, 16)
    cv2.imwrite(str(tmp_path / "deep.png"), levels * 257)
    clip = media.read_clip(tmp_path / "deep.png")
    assert clip.frames.shape == (1, 3, 16, 16)
    assert torch.equal((clip.frames[0, 1] * 255).round().long(), torch.from_numpy(levels.astype(np.int64)))
    rgba = np.dstack([np.full((4, 4, 3), 200, np.uint8), np.zeros((4, 4), np.uint8)])
    media.write_png(tmp_path / "alpha.png", rgba)
    assert torch.equal(media.read_clip(tmp_path / "alpha.png").frames, torch.full((1, 3, 4, 4), 200 / 255))


def turned_photo(path):
    """Write a JPEG lying on its side, 24 x 16, red on its left: upright it is 16 x 24, red at the top."""
    image = np.full((16, 24, 3), 40, np.uint8)
    image[:, :12, 2] = 250
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    # EXIF with one entry, orientation (0x0112) = 6: to be turned clockwise by a right angle
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01" + entry + bytes(4)
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])


def test_photographs_are_read_upright(tmp_path):
    turned_photo(tmp_path / "photo.jpg")
    frame = media.read_clip(tmp_path / "photo.jpg").frames[0]
    assert frame.shape == (3, 24, 16)
    assert frame[0, :10].min() > 0.8 and frame[0, 14:].max() < 0.3
    assert mask_files.read_mask(tmp_path / "photo.jpg")[0].shape == (24, 16)


def test_the_bits_that_are_lost_are_told(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((16, 16, 3), 50000, np.uint16))
    clip = media.read_clip(tmp_path / "deep.png")
    notes = media.write_clip(tmp_path / "out", clip.frames, clip)
    assert len(notes) == 1 and "16" in notes[0]
    assert media.write_clip(tmp_path / "masks", clip.frames[:, :1], clip) == []


def bad_inputs(folder):
    (folder / "empty").mkdir()
    (folder / "text.mp4").write_text("this is no video")
    (folder / "nothing.mp4").write_bytes(b"")
    (folder / "text.png").write_text("this is no image")
    mixed = folder / "mixed"
    mixed.mkdir()
    media.write_png(mixed / "0.png", np.zeros((4, 4, 3), np.uint8))
    media.write_png(mixed / "1.png", np.zeros((4, 6, 3), np.uint8))
    cut = folder / "cut"
    cut.mkdir()
    media.write_png(cut / "0.png", np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    (cut / "0.png").write_bytes((cut / "0.png").read_bytes()[:60])
    cv2.imwrite(str(folder / "float.tiff"), np.zeros((4, 4), np.float32))
    (folder / "twice").mkdir()
    for name in ("0.png", "1.png", "1.jpg"):
        cv2.imwrite(str(folder / "twice" / name), np.zeros((4, 4, 3), np.uint8))
    return {
        "twice": "both 1.jpg and 1.png",
        "missing.mp4": "does not exist",
        "empty": "holds no image",
        "text.mp4": "no video that can be read",
        "nothing.mp4": "no video that can be read",
        "text.png": "no image that can be read",
        "mixed": "6x4 but 0.png is 4x4",
        "cut": "no image that can be read",
        "float.tiff": "8 or 16 bits",
    }


def test_bad_clips_are_refused_in_words(tmp_path):
    for name, words in bad_inputs(tmp_path).items():
        with pytest.raises(MediaError, match=words):
            media.read_clip(tmp_path / name)


def test_a_file_with_sound_only_is_no_clip(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        voice = container.add_stream("aac", rate=8000, layout="mono")
        block = av.AudioFrame.from_ndarray(two_tones(1)[None], format="s16", layout="mono")
        block.sample_rate = 8000
        container.mux(voice.encode(block))
        container.mux(voice.encode())
    with pytest.raises(MediaError, match="holds no video"):
        media.read_clip(tmp_path / "song.mp4")


def test_a_video_that_changes_its_size_is_refused_and_its_parts_are_read(tmp_path):
    parts = [encode(tmp_path / f"{width}.ts", [[200] * 3] * 4, width=width) for width in (64, 32)]
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(MediaError, match="from 64x16 to 32x16 at frame 4"):
        media.read_clip(both)
    for start, count, width in ((0, 4, 64), (4, None, 32)):
        frames = media.read_clip(both, start=start, count=count).frames
        assert frames.shape == (4, 3, 16, width) and (frames - 200 / 255).abs().max() < 0.01


@pytest.mark.parametrize(
    ("start", "count", "words"),
    [
        (6, None, "no frame 6"),
        (100, 2, "no frame 100"),
        (-1, None, "from -1; expected"),
        (-1, 2, "from -1, 2 of them; expected"),
        (0, 0, "from 0, 0 of them; expected"),
    ],
)
def test_frames_outside_the_clip(video, start, count, words):
    with pytest.raises(MediaError, match=words):
        media.read_clip(video, start=start, count=count)


def test_an_image_is_a_clip_of_one_frame(tmp_path):
    media.write_png(tmp_path / "7.png", np.zeros((4, 6, 3), np.uint8))
    assert media.read_clip(tmp_path / "7.png", count=5).frames.shape == (1, 3, 4, 6)
    with pytest.raises(MediaError, match="no frame 2"):
        media.read_clip(tmp_path / "7.png", start=2)


@pytest.mark.parametrize("name", ["out.gif", "out.txt", "out.png"])
def test_unknown_output(tmp_path, name):
    with pytest.raises(MediaError, match="expected a video"):
        media.check_output(tmp_path / name)


def test_output_that_is_something_else(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(MediaError, match="is a file"):
        media.check_output(tmp_path / "file")
    with pytest.raises(MediaError, match="is a folder"):
        media.check_output(tmp_path / "folder.mp4")


@pytest.mark.parametrize("name", ["out", "out.mp4", "more/out.mp4"])
def test_output_below_a_file_cannot_be_written(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(MediaError, match="file is no folder"):
        media.check_output(tmp_path / "file" / name)


@pytest.mark.parametrize("name", ["", "out", "out.mp4", "more/out.mp4", "link.mp4"])
def test_output_where_nothing_may_be_written(tmp_path, monkeypatch, name):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "link.mp4").symlink_to(tmp_path / "ours.mp4")
    monkeypatch.setattr(media.os, "access", lambda path, mode: path != folder)
    if name == "link.mp4":  # written where it leads
        media.check_output(folder / name)
        return
    with pytest.raises(MediaError, match="theirs may not be written to"):
        media.check_output(folder / name)


def test_images_that_there_is_no_room_for(tmp_path):
    resource = pytest.importorskip("resource", reason="only Unix limits the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(MediaError, match="out cannot be written: File too large"):
            media.write_clip(tmp_path / "out", torch.rand(1, 3, 64, 64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
