"""Videos that are cut off or damaged are read as far as they go, and those that only look so are not complained of."""

import av
import pytest

from ciri import media, video_files
from ciri.errors import MediaError
from tests.ciri.videos import UNEVEN, cut_after, encode, mean_error, remuxed, smooth_clip, two_tones


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
