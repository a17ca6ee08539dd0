"""The sounds of a video: copied packet by packet, or encoded anew where the new file cannot hold it as it is."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

try:
    import av
except ImportError:  # OpenCV writes videos then, without sound
    av = None  # type: ignore[assignment]

#: Samples a second of sound that is encoded anew: all of the codecs take it, and nothing audible is above it.
_RATE = 48000
#: Bits a second and channel of sound that is encoded anew: more than enough for what was compressed before.
_BITS = 96000
#: What is said about a track, by whatever kind of file.
_NAMES = ("language", "title")


def count_sounds(path: Path) -> int:
    """How many tracks of sound a video has; 0 where it is not there any more."""
    try:
        with av.open(str(path)) as source:
            return len(source.streams.audio)
    except (av.error.FFmpegError, OSError):
        return 0


class CopiedSound:
    """Sound as it is in the source, written between the frames of the new video.

    Args:
        container: the new file, before its header is written.
        source: the open source, which no other track is read from.
        track: number of the sound among those of the source.
        offset: moment of the source, in seconds, at which the new video begins.

    Raises:
        av.error.FFmpegError, ValueError: here, later, or when the file is closed: it does not take the sound.
    """

    note = ""

    def __init__(self, container: Any, source: Any, track: int, offset: Fraction):
        self.container, self.offset = container, offset
        stream = source.streams.audio[track]
        self.stream = self._add_stream(container, stream)
        # a player names the tracks by their language and title
        self.stream.metadata.update({key: stream.metadata[key] for key in _NAMES if key in stream.metadata})
        self.pieces = self._read(source, stream)
        self.waiting = next(self.pieces, None)

    def write_until(self, seconds: Fraction) -> None:
        """Write what begins before this moment of the new video."""
        while self.waiting is not None and self.waiting.pts * self.waiting.time_base - self.offset < seconds:
            shift = round(self.offset / self.waiting.time_base)
            if self.waiting.pts >= shift:
                self._write(self.waiting, shift)
            self.waiting = next(self.pieces, None)

    def finish(self) -> None:
        """Write what was held back; there is nothing in copied sound."""

    def _add_stream(self, container: Any, stream: Any) -> Any:
        return container.add_stream_from_template(stream)

    def _read(self, source: Any, stream: Any) -> Iterator[Any]:
        """Yield pieces that have a ``pts`` and a ``time_base``."""
        return (packet for packet in source.demux(stream) if packet.pts is not None)

    def _write(self, packet: Any, shift: int) -> None:
        decoded = packet.pts if packet.dts is None else packet.dts
        packet.pts, packet.dts = packet.pts - shift, decoded - shift
        packet.stream = self.stream
        self.container.mux(packet)


class EncodedSound(CopiedSound):
    """The same sound as AAC, or Opus in WebM, which every file here takes."""

    def finish(self) -> None:
        self.container.mux(self.stream.encode(None))

    def _add_stream(self, container: Any, stream: Any) -> Any:
        codec = "libopus" if container.format.name == "webm" else "aac"
        if stream.codec_context is None:
            raise ValueError("a kind of sound that this FFmpeg does not know")
        was = stream.codec_context.codec.canonical_name
        self.note = (
            f"Sound was encoded anew as {codec} (it was {was}): this kind of file cannot hold all of it as it was."
        )
        channels = stream.codec_context.layout.nb_channels
        # a plain AVI or WAV says how many channels it has, and not what they are; Opus knows none "at the side"
        layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}.get(channels, stream.codec_context.layout)
        return container.add_stream(codec, rate=_RATE, layout=layout, bit_rate=_BITS * channels)

    def _read(self, source: Any, stream: Any) -> Iterator[Any]:
        return (frame for frame in source.decode(stream) if frame.pts is not None)

    def _write(self, frame: Any, shift: int) -> None:
        frame.pts -= shift
        self.container.mux(self.stream.encode(frame))
