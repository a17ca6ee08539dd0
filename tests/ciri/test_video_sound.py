"""The sounds of a video: kept, encoded anew where a file cannot hold them, or left out with a note."""

from fractions import Fraction

import av
import numpy as np
import pytest

from ciri import media, video_files, video_sound
from ciri.errors import MediaError
from tests.ciri.videos import UNEVEN, encode, pitch, times, two_tones


def test_sound_is_kept_from_the_first_frame_that_was_read(tmp_path):
    source = encode(tmp_path / "loud.mp4", [(90, 90, 90)] * 48, sound=two_tones())
    assert pitch(source)[1] == pytest.approx(2, abs=0.2)
    second_half = media.read_clip(source, start=24)
    assert media.write_clip(tmp_path / "half.mp4", second_half.frames, second_half) == []
    frequency, length = pitch(tmp_path / "half.mp4")
    assert frequency == pytest.approx(1000, abs=20) and length == pytest.approx(1, abs=0.2)
    first_half = media.read_clip(source, count=24)
    media.write_clip(tmp_path / "first.mp4", first_half.frames, first_half)
    frequency, length = pitch(tmp_path / "first.mp4")
    assert frequency == pytest.approx(400, abs=20) and length == pytest.approx(1, abs=0.2)


def test_sound_is_found_where_the_clock_of_a_file_does_not_begin_at_0(tmp_path):
    late = [10 + index / 24 for index in range(48)]
    source = encode(tmp_path / "loud.mkv", [(90, 90, 90)] * 48, sound=two_tones(), shown=late)
    assert times(source)[0] == 10
    for start, expected in ((0, 400), (24, 1000)):
        clip = media.read_clip(source, start=start, count=24)
        assert media.write_clip(tmp_path / "out.mp4", clip.frames, clip) == []
        assert times(tmp_path / "out.mp4")[0] == 0
        frequency, length = pitch(tmp_path / "out.mp4")
        assert frequency == pytest.approx(expected, abs=20) and length == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_frames_of_different_length_keep_their_times_and_the_sound_its_place(tmp_path, suffix):
    source = encode(tmp_path / "phone.mp4", [(90, 90, 90)] * 36, sound=two_tones(), shown=UNEVEN)
    assert times(source) == pytest.approx(UNEVEN, abs=2e-3)
    clip = media.read_clip(source)
    media.write_clip(tmp_path / f"out{suffix}", clip.frames, clip)
    assert times(tmp_path / f"out{suffix}") == pytest.approx(UNEVEN, abs=2e-3)
    second = media.read_clip(source, start=12)
    media.write_clip(tmp_path / f"half{suffix}", second.frames, second)
    frequency, length = pitch(tmp_path / f"half{suffix}")
    assert frequency == pytest.approx(1000, abs=20) and length == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("source", "codec", "result"),
    [
        ("loud.mkv", "aac", "out.webm"),  # refused as soon as it is asked for
        ("loud.mkv", "flac", "out.mov"),  # when the header is written
        ("loud.mkv", "libopus", "out.mov"),
        ("loud.ts", "aac", "out.avi"),  # at its first packet
        ("loud.avi", "pcm_s16le", "out.mp4"),  # when the file is closed
    ],
)
def test_sound_that_the_container_cannot_hold_is_encoded_anew_with_a_note(tmp_path, source, codec, result):
    stereo = np.stack([two_tones()] * 2)
    source = encode(tmp_path / source, [(90, 90, 90)] * 48, sound=stereo, sound_codec=codec)
    second_half = media.read_clip(source, start=24)
    notes = media.write_clip(tmp_path / result, second_half.frames, second_half)
    assert len(notes) == 1 and "encoded anew" in notes[0] and codec.removeprefix("lib") in notes[0]
    assert len(media.read_clip(tmp_path / result).frames) == 24
    frequency, length = pitch(tmp_path / result)
    assert frequency == pytest.approx(1000, abs=20) and length == pytest.approx(1, abs=0.2)


def test_sound_that_cannot_even_be_encoded_anew_is_left_out_with_a_note(tmp_path, monkeypatch):
    source = encode(tmp_path / "loud.mkv", [(90, 90, 90)] * 24, sound=two_tones(1))
    clip = media.read_clip(source)

    def refuse(*_):
        raise ValueError("no such encoder")

    monkeypatch.setattr(video_sound.EncodedSound, "_add_stream", refuse)
    notes = media.write_clip(tmp_path / "out.webm", clip.frames, clip)
    assert len(notes) == 1 and "sound was left out" in notes[0] and "no such encoder" in notes[0]
    assert len(media.read_clip(tmp_path / "out.webm").frames) == 24


def test_sound_that_nobody_knows_is_left_out_with_a_note(tmp_path):
    source = encode(tmp_path / "loud.mkv", [(90, 90, 90)] * 24, sound=two_tones(1), sound_codec="libopus")
    source.write_bytes(source.read_bytes().replace(b"A_OPUS", b"A_OPUZ"))
    clip = media.read_clip(source)
    notes = media.write_clip(tmp_path / "out.mp4", clip.frames, clip)
    assert len(notes) == 1 and "sound was left out" in notes[0] and "does not know" in notes[0]
    assert len(media.read_clip(tmp_path / "out.mp4").frames) == 24


def test_surround_sound_is_encoded_for_webm(tmp_path):
    six = np.stack([two_tones(1)] * 6)
    source = encode(tmp_path / "film.mkv", [(90, 90, 90)] * 24, sound=six, sound_codec="flac")
    with av.open(str(source)) as container:
        assert container.streams.audio[0].layout.name == "5.1(side)"  # which Opus refuses
    clip = media.read_clip(source)
    notes = media.write_clip(tmp_path / "out.webm", clip.frames, clip)
    assert len(notes) == 1 and "encoded anew" in notes[0]
    with av.open(str(tmp_path / "out.webm")) as container:
        assert container.streams.audio[0].layout.nb_channels == 6


def with_sounds(path, codecs, names=()):
    """A grey film of a second with a sound of each codec: 400 Hz, then 1000 Hz, the further ones a multiple of it."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=24)
        picture.width, picture.height, picture.pix_fmt = 32, 16, "yuv420p"
        voices = [container.add_stream(codec, rate=8000, layout="mono") for codec in codecs]
        for voice, name in zip(voices, names, strict=False):
            voice.metadata.update(name)
        for _ in range(24):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(np.full((16, 32, 3), 90, np.uint8))))
        container.mux(picture.encode())
        for number, voice in enumerate(voices):
            sound = two_tones(1 + number)[None, :: 1 + number]
            for begin in range(0, 8000, 800):
                samples = np.ascontiguousarray(sound[:, begin : begin + 800])
                block = av.AudioFrame.from_ndarray(samples, format="s16p", layout="mono")
                block.sample_rate, block.time_base, block.pts = 8000, Fraction(1, 8000), begin
                container.mux(voice.encode(block))
            container.mux(voice.encode())
    return path


def sounds_of(folder, path):
    """Codec and strongest frequency of each sound of a file, and what each is called."""
    found = []
    with av.open(str(path)) as container:
        count = len(container.streams.audio)
    for number in range(count):
        with av.open(str(path)) as container, av.open(str(folder / f"{number}.wav"), "w") as alone:
            stream = container.streams.audio[number]
            plain = alone.add_stream("pcm_s16le", rate=stream.rate, layout="mono")
            for frame in container.decode(stream):
                alone.mux(plain.encode(frame))
            found.append((stream.codec_context.codec.canonical_name, dict(stream.metadata)))
    return [(codec, pitch(folder / f"{n}.wav")[0], names) for n, (codec, names) in enumerate(found)]


@pytest.mark.parametrize(
    ("codecs", "result", "kept"),
    [
        (("aac", "aac"), "out.mp4", ("aac", "aac")),
        (("aac", "flac", "aac"), "out.mkv", ("aac", "flac", "aac")),
        (("aac", "flac"), "out.webm", ("opus", "opus")),
        (("aac", "aac"), "out.avi", ("aac", "aac")),
    ],
)
def test_every_sound_is_kept(tmp_path, codecs, result, kept):
    names = [{"language": language} for language in ("eng", "chi", "fre")]
    clip = media.read_clip(with_sounds(tmp_path / "film.mkv", codecs, names), start=12)
    notes = media.write_clip(tmp_path / result, clip.frames, clip)
    assert len(notes) == len(set(codecs)) * (kept != codecs), notes
    found = sounds_of(tmp_path, tmp_path / result)
    assert tuple(codec for codec, _, _ in found) == kept
    for number, (_, frequency, named) in enumerate(found):
        assert frequency == pytest.approx(1000 * (1 + number), rel=0.03)
        if not result.endswith("avi"):
            assert named["language"] == names[number]["language"]


def test_a_further_sound_that_nobody_knows_does_not_cost_the_first(tmp_path):
    source = with_sounds(tmp_path / "film.mkv", ("aac", "libopus"))
    source.write_bytes(source.read_bytes().replace(b"A_OPUS", b"A_OPUZ"))
    clip = media.read_clip(source)
    notes = media.write_clip(tmp_path / "out.mp4", clip.frames, clip)
    assert len(notes) == 1 and "Only the first of 2 sounds was kept" in notes[0]
    assert [codec for codec, _, _ in sounds_of(tmp_path, tmp_path / "out.mp4")] == ["aac"]


def test_what_is_wrong_with_the_picture_is_not_put_down_to_the_sound(tmp_path, monkeypatch):
    source = encode(tmp_path / "loud.mkv", [(90, 90, 90)] * 24, sound=two_tones(1))
    clip = media.read_clip(source)

    def refuse(*_):
        raise ValueError("no such picture")

    monkeypatch.setattr(video_files, "_picture_stream", refuse)
    with pytest.raises(MediaError, match="cannot be encoded: no such picture"):
        media.write_clip(tmp_path / "out.mp4", clip.frames, clip)
    assert [file.name for file in tmp_path.iterdir()] == ["loud.mkv"]
