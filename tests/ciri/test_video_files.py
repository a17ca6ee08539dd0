"""ciri.video_files: what is written is read back, and what was there is kept."""

import enum
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import torch

from ciri import mask_files, media, video_files
from ciri.errors import MediaError
from tests.ciri.videos import UNEVEN, encode, mean_error, pitch, smooth_clip, times, turned_film, two_tones


def test_video_keeps_pictures_rate_and_count(video):
    clip = media.read_clip(video)
    assert clip.frames.shape == (6, 3, 48, 64) and clip.fps == 30
    assert mean_error(clip.frames, smooth_clip()) < 4
    # FFmpeg's default conversion would darken the clip by one grey level or more
    assert (clip.frames - smooth_clip()).mean((0, 2, 3)).mul(255).tolist() == pytest.approx([0, 0, 0], abs=0.6)


def test_part_of_a_video(video):
    part = media.read_clip(video, start=2, count=3)
    assert torch.equal(part.frames, media.read_clip(video).frames[2:5]) and part.start == 2


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".webm"])
def test_every_suffix_can_be_written(tmp_path, suffix):
    media.write_clip(tmp_path / f"clip{suffix}", smooth_clip())
    assert mean_error(media.read_clip(tmp_path / f"clip{suffix}").frames, smooth_clip()) < 4


def test_odd_sides_are_made_even_with_a_note(tmp_path):
    odd = smooth_clip(height=37, width=53)
    notes = media.write_clip(tmp_path / "odd.mp4", odd)
    assert len(notes) == 1 and "54x38" in notes[0]
    written = media.read_clip(tmp_path / "odd.mp4").frames
    assert written.shape[2:] == (38, 54)
    assert mean_error(written, torch.nn.functional.pad(odd, (0, 1, 0, 1), mode="replicate")) < 4


def test_masks_are_written_as_grey_video(tmp_path):
    mask = torch.zeros(3, 1, 32, 32)
    mask[:, :, 8:24, 8:24] = 1
    media.write_clip(tmp_path / "mask.mp4", mask)
    again, _ = mask_files.read_masks(tmp_path / "mask.mp4")
    assert again.shape == mask.shape and torch.equal((again > 0.5).float(), mask)


def test_the_colour_matrix_of_a_file_is_used_and_kept(tmp_path):
    # BT.709 read as BT.601 would be wrong by 14 levels in red and 16 in green
    source = encode(tmp_path / "hd.mp4", [(200, 30, 60)] * 3, tag=1)
    clip = media.read_clip(source)
    assert clip.frames[1, :, 8, 8].mul(255).tolist() == pytest.approx([200, 30, 60], abs=2)
    media.write_clip(tmp_path / "again.mp4", clip.frames, clip)
    again = media.read_clip(tmp_path / "again.mp4")
    assert again.video.colour[0] == 1
    assert again.frames[1, :, 8, 8].mul(255).tolist() == pytest.approx([200, 30, 60], abs=3)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".webm"])
def test_pixels_that_are_not_square_stay_so(tmp_path, suffix):
    source = encode(tmp_path / "dv.mp4", [(90, 90, 90)] * 3, aspect=Fraction(16, 15))
    clip = media.read_clip(source)
    notes = media.write_clip(tmp_path / f"out{suffix}", clip.frames, clip)
    if suffix == ".webm":
        assert len(notes) == 1 and "square" in notes[0]
    else:
        assert notes == [] and media.read_clip(tmp_path / f"out{suffix}").video.pixel_aspect == Fraction(16, 15)


def test_a_video_of_10_bits_is_told_to_become_8(tmp_path):
    source = encode(tmp_path / "hdr.mkv", [(90, 90, 90)] * 3, pixels="yuv420p10le")
    clip = media.read_clip(source)
    for name in ("out.mp4", "out"):
        notes = media.write_clip(tmp_path / name, clip.frames, clip)
        assert len(notes) == 1 and "8 bits" in notes[0] and "10" in notes[0]


def test_a_phone_video_is_turned_upright(tmp_path, video):
    lying = media.read_clip(video).frames
    turned_film(video, tmp_path / "phone.mp4")
    upright = media.read_clip(tmp_path / "phone.mp4").frames
    assert torch.equal(upright, torch.rot90(lying, -1, (2, 3)))
    by_opencv = cv2.VideoCapture(str(tmp_path / "phone.mp4")).read()[1]
    assert by_opencv.shape[:2] == upright.shape[2:]
    expected = torch.from_numpy(by_opencv[..., ::-1].copy()).permute(2, 0, 1) / 255
    assert mean_error(upright[0], expected) < 6


def test_pixels_of_a_turned_video_are_turned_along(tmp_path):
    source = encode(tmp_path / "wide.mp4", [(90, 90, 90)] * 3, aspect=Fraction(4, 3))
    assert media.read_clip(source).video.pixel_aspect == Fraction(4, 3)
    turned_film(source, tmp_path / "phone.mp4")
    assert media.read_clip(tmp_path / "phone.mp4").video.pixel_aspect == Fraction(3, 4)


@pytest.mark.parametrize("pyav", [True, False])
@pytest.mark.parametrize("name", ["call 12:30.mp4", "call:1.mp4", "file:1.mp4"])
def test_a_colon_in_the_name_of_a_video_makes_no_protocol_of_it(tmp_path, monkeypatch, name, pyav):
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "loud.mp4", [(90, 90, 90)] * 48, sound=two_tones()).rename(tmp_path / name)
    if not pyav:
        monkeypatch.setattr(video_files, "av", None)
    clip = media.read_clip(name)
    assert len(clip.frames) == 48
    media.write_clip("out.mp4", clip.frames, clip)
    assert not pyav or pitch(tmp_path / "out.mp4")[1] == pytest.approx(2, abs=0.2)


def test_an_avi_tells_no_times_of_reordered_frames(tmp_path):
    source = encode(tmp_path / "loud.avi", [(i, 90, 255 - i) for i in range(0, 240, 5)], sound=two_tones())
    clip = media.read_clip(source, start=24)
    assert clip.video.times == ()
    assert media.write_clip(tmp_path / "half.mp4", clip.frames, clip) == []
    assert times(tmp_path / "half.mp4") == pytest.approx([index / 24 for index in range(24)], abs=1e-6)
    frequency, length = pitch(tmp_path / "half.mp4")
    assert frequency == pytest.approx(1000, abs=20) and length == pytest.approx(1, abs=0.2)


def test_avi_cannot_keep_the_times_and_says_so(tmp_path):
    source = encode(tmp_path / "phone.mp4", [(90, 90, 90)] * 36, shown=UNEVEN)
    clip = media.read_clip(source)
    notes = media.write_clip(tmp_path / "out.avi", clip.frames, clip)
    assert len(notes) == 1 and "equally long" in notes[0]
    with av.open(str(tmp_path / "out.avi")) as container:
        assert container.duration / av.time_base == pytest.approx(2, abs=0.1)


def test_times_that_a_container_rounded_are_written_evenly(tmp_path):
    source = encode(tmp_path / "even.mkv", [(90, 90, 90)] * 48)  # milliseconds: 0, 42, 83, 125, ...
    clip = media.read_clip(source)
    media.write_clip(tmp_path / "out.mp4", clip.frames, clip)
    assert times(tmp_path / "out.mp4") == pytest.approx([index / 24 for index in range(48)], abs=1e-6)
    assert media.read_clip(tmp_path / "out.mp4").fps == 24


def test_without_pyav_opencv_reads_and_writes(tmp_path, video, monkeypatch):
    with_pyav = media.read_clip(video)
    monkeypatch.setattr(video_files, "av", None)
    clip = media.read_clip(video, start=1, count=4)
    assert clip.fps == 30 and mean_error(clip.frames, with_pyav.frames[1:5]) < 6
    notes = media.write_clip(tmp_path / "plain.mp4", clip.frames, clip)
    assert "without PyAV" in notes[0]
    assert mean_error(media.read_clip(tmp_path / "plain.mp4").frames, clip.frames) < 5
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(MediaError, match="text"):
        media.read_clip(tmp_path / "text.mp4")


def test_an_old_pyav_is_refused_in_words(tmp_path, video, monkeypatch):
    """It would change the colours of all that is in HD."""
    monkeypatch.setattr(av, "__version__", "16.1.0")
    for work in (lambda: media.read_clip(video), lambda: media.write_clip(tmp_path / "out.mp4", smooth_clip())):
        with pytest.raises(MediaError, match="PyAV 16.1.0 .* 17 or newer is needed: .* -m pip install --upgrade av"):
            work()


def test_conversion_needs_no_names_that_only_the_newest_pyav_has(video, monkeypatch):
    """Python 3.10 has PyAV 17, which names no flags of FFmpeg's conversion."""
    expected = media.read_clip(video).frames
    old = enum.IntEnum("Interpolation", {"BICUBIC": 4})
    for module in (video_files, av.video.reformatter):
        monkeypatch.setattr(module, "Interpolation", old, raising=False)
    assert torch.equal(media.read_clip(video).frames, expected)


def test_conversion_is_what_the_newest_pyav_calls_exact():
    names = av.video.reformatter.Interpolation
    if not hasattr(names, "ACCURATE_RND"):
        pytest.skip("PyAV before 18")
    flags = names.BICUBIC | names.ACCURATE_RND | names.FULL_CHR_H_INT | names.FULL_CHR_H_INP
    assert int(flags) == video_files.EXACT


def test_a_video_may_take_the_place_of_its_source(tmp_path):
    # 6 MB of sound, more than is read at once
    noise = np.random.default_rng(0).integers(-9999, 9999, 400 * 8000, np.int16)
    source = encode(tmp_path / "loud.mkv", [(90, 90, 90)] * 400, sound=noise, sound_codec="flac", rate=1)
    clip = media.read_clip(source)
    assert media.write_clip(source, clip.frames, clip) == []
    assert len(media.read_clip(source).frames) == 400
    assert pitch(source)[1] == pytest.approx(400, abs=1)
    assert [file.name for file in tmp_path.iterdir()] == ["loud.mkv"]


@pytest.mark.parametrize("pyav", [True, False])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, video, monkeypatch, failure, pyav):
    before = video.read_bytes()

    def images():
        # more than encoders look ahead, so that some of it is in the file
        yield from [np.zeros((48, 64, 3), np.uint8)] * 80
        raise failure

    if not pyav:
        monkeypatch.setattr(video_files, "av", None)
    with pytest.raises(failure):
        video_files.write_video(video, images, Fraction(24))
    assert video.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [video.name]


def test_a_video_is_written_where_a_link_leads(tmp_path, video):
    (tmp_path / "link.mp4").symlink_to(video)
    media.write_clip(tmp_path / "link.mp4", smooth_clip(3))
    assert (tmp_path / "link.mp4").is_symlink() and len(media.read_clip(video).frames) == 3
