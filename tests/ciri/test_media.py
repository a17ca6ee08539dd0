"""ciri.media and ciri.video_files: what is written is read back, and what was there is kept."""

import enum
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import torch

from ciri import mask_files, media, video_files, video_sound
from ciri.errors import MediaError


def smooth_clip(count=6, height=48, width=64, seed=0):
    """A clip that a codec can keep: large soft patches of every colour, another in each frame."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").clamp(0, 1)


def mean_error(a, b):
    """Mean absolute difference in grey levels; two frames of ``smooth_clip`` differ by about 60."""
    return float((a - b).abs().mean() * 255)


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.mp4"
    media.write_clip(path, smooth_clip(), media.Clip(torch.empty(0), fps=30))
    return path


# ---------------------------------------------------------------------------------------------- folders of images


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


# ---------------------------------------------------------------------------------------------- videos


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


LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1(side)"}


def encode(
    path, rgb, tag=None, sound=None, sound_codec="aac", rate=24, shown=None, aspect=None, pixels="yuv420p", width=32
):
    """A video of one colour per frame by PyAV alone.

    tag: colour matrix; sound: int16 (n,) or (channels, n), at 8 kHz; shown: seconds of each frame, the first also the
    sound's; aspect: width of a pixel over its height.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = width, 16, pixels
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if tag:
            stream.codec_context.colorspace = tag
        if sound is not None:
            voice = container.add_stream(sound_codec, rate=8000, layout=LAYOUTS[sound.size // sound.shape[-1]])
        if shown:
            stream.codec_context.time_base = Fraction(1, 90000)
        for index, colour in enumerate(rgb):
            image = np.broadcast_to(np.uint8(colour), (16, width, 3)).copy()
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format=pixels, dst_colorspace=tag)
            if shown:
                frame.pts, frame.time_base = round(shown[index] * 90000), Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            for start in range(0, sound.shape[-1], 800):
                samples = np.ascontiguousarray(sound[..., start : start + 800].reshape(-1, 800))
                block = av.AudioFrame.from_ndarray(samples, format="s16p", layout=voice.layout)
                block.sample_rate, block.time_base = 8000, Fraction(1, 8000)
                block.pts = start + (round(shown[0] * 8000) if shown else 0)
                container.mux(voice.encode(block))
            container.mux(voice.encode())
    return path


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


def turned_film(source, result):
    """The same MP4, with a note that players have to turn it clockwise by a right angle."""
    data = bytearray(source.read_bytes())
    # the display matrix of the track header: identity becomes a quarter turn
    matrix = data.index(b"tkhd") + 4 + 40
    one, turned = (1 << 16).to_bytes(4, "big"), (-(1 << 16) & 0xFFFFFFFF).to_bytes(4, "big")
    zero, corner = bytes(4), (1 << 30).to_bytes(4, "big")
    assert data[matrix : matrix + 4] == one
    data[matrix : matrix + 36] = zero + one + zero + turned + zero + zero + zero + zero + corner
    result.write_bytes(data)


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


def pitch(path):
    """The strongest frequency of a file's sound, in Hz, and its length in seconds."""
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]).astype(np.float64)
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4]
    strongest = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax()
    return strongest * rate / len(middle), len(samples) / rate


def two_tones(seconds=2):
    time = np.arange(8000 * seconds) / 8000
    return np.int16(9000 * np.sin(2 * np.pi * np.where(time < seconds / 2, 400, 1000) * time))


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


def times(path):
    """When each frame of a file is shown, in seconds."""
    with av.open(str(path)) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]


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


def test_an_avi_tells_no_times_of_reordered_frames(tmp_path):
    source = encode(tmp_path / "loud.avi", [(i, 90, 255 - i) for i in range(0, 240, 5)], sound=two_tones())
    clip = media.read_clip(source, start=24)
    assert clip.video.times == ()
    assert media.write_clip(tmp_path / "half.mp4", clip.frames, clip) == []
    assert times(tmp_path / "half.mp4") == pytest.approx([index / 24 for index in range(24)], abs=1e-6)
    frequency, length = pitch(tmp_path / "half.mp4")
    assert frequency == pytest.approx(1000, abs=20) and length == pytest.approx(1, abs=0.2)


#: 12 frames in the first second, 24 in the next.
UNEVEN = [index / 12 for index in range(12)] + [1 + index / 24 for index in range(24)]


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


# ---------------------------------------------------------------------------------------------- files that are cut off


def cut_after(source, result, number):
    """The first bytes of a file, up to the end of a packet of its picture: what is left of a download that stopped."""
    with av.open(str(source)) as container:
        places = sorted((packet.pos, packet.size) for packet in container.demux(video=0) if packet.size)
    result.write_bytes(source.read_bytes()[: sum(places[number])])


def remuxed(source, result, change, **options):
    """The same packets in another file, each as ``change(packet, whether it is the last)`` leaves it."""
    with av.open(str(source)) as read, av.open(str(result), "w", options=options) as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.dts is not None]
        for packet in packets:
            change(packet, packet is packets[-1])
            packet.stream = stream
            written.mux(packet)
    return result


@pytest.mark.parametrize("pyav", [True, False])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".webm"])
def test_a_video_that_is_cut_off_is_read_as_far_as_it_goes_with_a_note(tmp_path, monkeypatch, suffix, pyav):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    with monkeypatch.context() as changed:
        if not pyav:
            changed.setattr(video_files, "av", None)
        media.write_clip(whole, smooth_clip(60))
    assert len(media.read_clip(whole).frames) == 60 and media.read_clip(whole).notes == []
    cut_after(whole, cut, 40)
    if not pyav and suffix in (".mp4", ".mov"):  # OpenCV writes the index last
        with pytest.raises(MediaError, match="no video that can be read"):
            media.read_clip(cut)
        return
    clip = media.read_clip(cut)
    assert 20 < len(clip.frames) < 45 and mean_error(clip.frames[:20], smooth_clip(60)[:20]) < 4
    assert len(clip.notes) == 1 and f"cut{suffix} lacks its last " in clip.notes[0]
    missing = float(clip.notes[0].partition("last ")[2].partition(" s,")[0])
    assert missing == pytest.approx((60 - len(clip.frames)) / 24, abs=0.15)
    # what is asked for is there
    assert media.read_clip(cut, count=20).notes == []
    assert len(media.read_clip(cut, start=10, count=50).notes) == 1


def test_a_video_that_is_damaged_within_says_where(tmp_path):
    media.write_clip(tmp_path / "clip.mp4", smooth_clip(60))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        place, size = sorted((packet.pos, packet.size) for packet in container.demux(video=0) if packet.size)[40]
    data = bytearray((tmp_path / "clip.mp4").read_bytes())
    data[place : place + size] = bytes(size)
    (tmp_path / "clip.mp4").write_bytes(data)
    with pytest.raises(MediaError, match="is damaged after frame") as caught:
        media.read_clip(tmp_path / "clip.mp4", start=2)
    last = int(str(caught.value).partition("after frame ")[2].split()[0])
    assert 5 < last < 45
    assert len(media.read_clip(tmp_path / "clip.mp4", start=2, count=last - 1).frames) == last - 1


def test_a_fragment_that_is_cut_off_is_told(tmp_path):
    """As screen recorders and streams write them: without an index of the whole file."""
    media.write_clip(tmp_path / "clip.mp4", smooth_clip(60))
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    remuxed(tmp_path / "clip.mp4", whole, lambda *packet: None, movflags="frag_keyframe+empty_moov")
    assert len(media.read_clip(whole).frames) == 60 and media.read_clip(whole).notes == []
    cut_after(whole, cut, 40)
    clip = media.read_clip(cut)
    assert 20 < len(clip.frames) < 45 and ["cut.mp4 lacks its last" in note for note in clip.notes] == [True]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi"])
def test_a_sound_that_goes_on_after_the_picture_is_no_damage(tmp_path, suffix):
    source = encode(tmp_path / f"song{suffix}", [(90, 90, 90)] * 24, sound=two_tones(6))
    with av.open(str(source)) as container:
        assert container.duration / av.time_base > 5
    assert len(media.read_clip(source).frames) == 24 and media.read_clip(source).notes == []


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_frames_of_different_length_are_no_damage(tmp_path, suffix):
    phone = encode(tmp_path / "phone.mp4", [(90, 90, 90)] * 36, shown=UNEVEN)
    assert media.read_clip(phone).notes == []
    clip = media.read_clip(phone)
    media.write_clip(tmp_path / f"out{suffix}", clip.frames, clip)
    assert media.read_clip(tmp_path / f"out{suffix}").notes == []
    if suffix != ".webm":
        assert media.read_clip(remuxed(phone, tmp_path / f"copy{suffix}", lambda *packet: None)).notes == []


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_a_last_frame_that_stays_is_no_damage(tmp_path, monkeypatch, suffix):
    with monkeypatch.context() as changed:
        changed.setattr(video_files, "av", None)  # OpenCV's codec does not reorder frames
        media.write_clip(tmp_path / "source.mp4", smooth_clip(24))

    def stay(packet, last):
        if last:
            packet.duration = round(5 / packet.time_base)

    source = remuxed(tmp_path / "source.mp4", tmp_path / f"slide{suffix}", stay)
    with av.open(str(source)) as container:
        assert container.duration / av.time_base > 5
        if max(packet.duration or 0 for packet in container.demux(video=0)) < 5 / container.streams.video[0].time_base:
            pytest.skip("this FFmpeg does not read how long a frame of this file stays")
    clip = media.read_clip(source)
    assert len(clip.frames) == 24 and clip.notes == []


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_trimmed_video_is_no_damage(tmp_path, suffix):
    whole = encode(tmp_path / "whole.mp4", [(90, 90, 90)] * 60)

    def earlier(packet, last):
        packet.pts -= round(1 / packet.time_base)
        packet.dts -= round(1 / packet.time_base)

    trimmed = remuxed(whole, tmp_path / f"trimmed{suffix}", earlier)
    with av.open(str(trimmed)) as container:
        assert container.streams.video[0].frames == 60  # the first 24 are there and not shown
    clip = media.read_clip(trimmed)
    assert len(clip.frames) == 36 and clip.notes == []


# ---------------------------------------------------------------------------------------------- what goes wrong


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
