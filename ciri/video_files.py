"""Video files, through PyAV where it is installed and through OpenCV where it is not."""

from __future__ import annotations

import errno
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ciri.errors import MediaError
from ciri.replacing import replacing
from ciri.video_sound import CopiedSound, EncodedSound, count_sounds

try:
    import av
    from av.video.reformatter import Colorspace
except ImportError:  # OpenCV does it then, without sound and with a coarser codec
    av = None  # type: ignore[assignment]

#: Suffix -> OpenCV's code of the codec that it can always write into such a file.
_OPENCV_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG", ".webm": "VP80"}
VIDEO_SUFFIXES = tuple(_OPENCV_CODECS)

#: Constant rate factor: visually close to lossless, so that what was not touched stays what it was.
_QUALITY = {"libx264": {"crf": "16", "preset": "medium"}, "libvpx-vp9": {"crf": "20", "b": "0", "cpu-used": "2"}}

#: Gives the images of a video, uint8 (H, W, 3 | nothing); again and again, as a second try may be needed.
Images = Callable[[], Iterator[np.ndarray]]

#: Of a frame, how far its time may be off before frames count as not equally long.
_REGULAR = 0.25
#: A file is cut off where more than each of these is missing at its end: what healthy ones announce is off by a little.
_FRAMES_OFF, _SECONDS_OFF, _SHARE_OFF = 5, 0.25, 0.02
#: Unit of times that are not multiples of one frame: the clock of MPEG.
_TICK = Fraction(1, 90000)

#: Before it, PyAV reads every colour matrix as BT.601, and so stains what is in HD.
_OLDEST_PYAV = 17

_UNSPECIFIED = 2  # FFmpeg's number for "the file does not say"


@dataclass(frozen=True)
class VideoFacts:
    """What a written video takes over from the one that was read.

    Attributes:
        path: the file, whose sounds are copied; absolute, as FFmpeg takes what precedes a colon for a protocol.
        fps: frames per second.
        colour: FFmpeg's numbers for matrix, primaries and transfer.
        times: when each frame that was read is shown, in seconds on the file's own clock, which need not begin at 0;
            rising, and empty where the file does not say.
        pixel_aspect: width of a pixel over its height, upright; 1 where the file does not say.
        bits: of a colour; frames are read with 8.
    """

    path: Path
    fps: Fraction
    colour: tuple[int, int, int] = (_UNSPECIFIED, _UNSPECIFIED, _UNSPECIFIED)
    times: tuple[Fraction, ...] = ()
    pixel_aspect: Fraction = Fraction(1)
    bits: int = 8


def read_video(path: Path, start: int, count: int | None) -> tuple[list[np.ndarray], VideoFacts, list[str]]:
    """Return frames start, start + 1, ... as uint8 (H, W, 3) RGB, upright, the file's facts, and notes.

    Raises:
        MediaError: no video that can be decoded.
    """
    stop = None if count is None else start + count
    if _has_pyav():
        return _read_av(path, start, stop)
    # how long a file should be OpenCV only estimates
    return *_read_opencv(path, start, stop), []


def write_video(
    path: Path, images: Images, fps: Fraction, source: VideoFacts | None = None, start: int = 0
) -> list[str]:
    """Write a video; sides are made even by repeating the last row or column.

    Args:
        path: the suffix chooses the container.
        images: gives uint8 (H, W, 3) RGB or (H, W) grey, at least one; called again where the sounds need another try.
        fps: frames per second.
        source: the video whose colour space, shape of pixels, frame times and sounds are kept.
        start: number that the first image has in the source; counts only where the source has no times.

    Returns:
        Notes: what had to be changed.

    Raises:
        MediaError: it cannot be encoded.
    """
    height, width = next(images()).shape[:2]
    notes = []
    if height % 2 or width % 2:
        notes.append(
            f"{path.name} is {width + width % 2}x{height + height % 2}: video codecs take even sizes only, so the "
            "last row or column was repeated. Write to a folder to keep the size."
        )

    def even() -> Iterator[np.ndarray]:
        return map(_even, images())

    return notes + (_write_av(path, even, fps, source, start) if _has_pyav() else _write_opencv(path, even(), fps))


def _has_pyav() -> bool:
    """Whether PyAV is there; OpenCV does it otherwise.

    Raises:
        MediaError: it is too old to be trusted with colours.
    """
    if av and int(av.__version__.split(".")[0]) < _OLDEST_PYAV:
        raise MediaError(
            f"PyAV {av.__version__} reads the colours of some videos wrongly; {_OLDEST_PYAV} or newer is needed: "
            f"{sys.executable} -m pip install --upgrade av"
        )
    return bool(av)


def _even(image: np.ndarray) -> np.ndarray:
    image = np.stack([image] * 3, -1) if image.ndim == 2 else image
    return np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")


# --------------------------------------------------------------------------------------------- PyAV


#: How colours are converted (bicubic, full chroma both ways, accurate rounding): by default FFmpeg's conversion darkens
#: a clip by one to two grey levels. In FFmpeg's numbers: PyAV has names for them since 18 only.
EXACT = 0x4 | 0x2000 | 0x4000 | 0x40000


def _read_av(path: Path, start: int, stop: int | None) -> tuple[list[np.ndarray], VideoFacts, list[str]]:
    images: list[np.ndarray] = []
    times: list[Fraction | None] = []
    notes: list[str] = []
    try:
        with av.open(str(path.absolute())) as container:
            if not container.streams.video:
                raise MediaError(f"{path} holds no video.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            facts = VideoFacts(path.absolute(), Fraction(stream.average_rate or stream.guessed_rate or 24))
            for frame in itertools.islice(container.decode(stream), start, stop):
                # phones store upright video lying on its side
                turns = round(frame.rotation / 90)
                if not images:
                    facts = _with_looks(facts, stream, frame, turns)
                times.append(None if _reordered(container, stream) else _shown_at(frame))
                image = frame.to_ndarray(format="rgb24", interpolation=EXACT)
                images.append(np.ascontiguousarray(np.rot90(image, turns)))
            if images and (stop is None or start + len(images) < stop):
                missing = _missing_after(frame, _announced_end(container, stream), facts.fps)
                if missing:
                    notes.append(
                        f"{path.name} lacks its last {missing:.1f} s, as files do that are cut off or damaged; what is "
                        "there was read. Fetch or export it again if you need the rest."
                    )
    except (av.error.FFmpegError, OSError) as error:
        why = getattr(error, "strerror", error)
        if images:
            raise MediaError(
                f"{path} is damaged after frame {start + len(images) - 1} ({why}). Fetch or export it again, or read "
                "only what precedes."
            ) from None
        raise MediaError(f"{path} is no video that can be read ({why}).") from None
    return images, replace(facts, times=_trusted(times)), notes


def _missing_after(last: Any, end: Fraction | None, fps: Fraction) -> float:
    """Seconds from the last frame that a file holds to the end that it announces; 0 where they are few.

    Frames are not counted: containers estimate how many there are, or count those that a trimmed file does not show.
    """
    shown, length = _shown_at(last), last.duration
    if end is None or shown is None or length is None:
        return 0.0
    missing = float(end - shown - max(length * last.time_base, 1 / fps))
    return missing if missing > max(_FRAMES_OFF / float(fps), _SECONDS_OFF, _SHARE_OFF * float(end)) else 0.0


def _announced_end(container: Any, stream: Any) -> Fraction | None:
    """When a file says that its picture ends, in seconds on its clock; None where it does not say."""
    if container.format.name == "avi":  # what FFmpeg calls its duration goes by how large the file is
        return stream.frames / stream.average_rate if stream.average_rate else None
    # from an index, or from those of the fragments that were read; durations without one may be estimates
    if stream.duration and (stream.frames or container.format.name.startswith("mov,")):
        return ((stream.start_time or 0) + stream.duration) * stream.time_base
    # what Matroska and WebM say of the whole file may be the length of a sound
    said = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if said is None:
        return None
    hours, minutes, seconds = map(Fraction, said.groups())
    return 3600 * hours + 60 * minutes + seconds


def _with_looks(facts: VideoFacts, stream: Any, frame: Any, turns: int) -> VideoFacts:
    """Add what the first frame tells; ``turns`` by a right angle make it upright."""
    # 0 or nothing where the file does not say
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    return replace(
        facts,
        colour=(int(frame.colorspace), int(frame.color_primaries), int(frame.color_trc)),
        pixel_aspect=1 / aspect if turns % 2 else aspect,
        bits=max(component.bits for component in frame.format.components),
    )


def _trusted(times: list[Fraction | None]) -> tuple[Fraction, ...]:
    """The times, or nothing where some are missing or run backwards."""
    known = tuple(time for time in times if time is not None)
    forward = all(earlier < later for earlier, later in itertools.pairwise(known))
    return known if forward and len(known) == len(times) else ()


def _reordered(container: Any, stream: Any) -> bool:
    """Whether what the file calls times is the order in which frames are decoded: AVI has no others."""
    return container.format.name == "avi" and bool(stream.codec_context.has_b_frames)


def _shown_at(frame: Any) -> Fraction | None:
    return None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base


#: In which form the sounds are written, and how many of them.
_Sounds = tuple[type[CopiedSound], int] | None


def _write_av(path: Path, images: Images, fps: Fraction, source: VideoFacts | None, start: int) -> list[str]:
    """Write with the sounds as they are, else encoded anew, else without: a finished picture is never lost for them.

    Whether a file takes a sound is known only once it is closed, so every failure is put down to the sounds first.
    """
    tracks = count_sounds(source.path) if source else 0
    # one odd track among several costs the others, but not the first
    numbers = dict.fromkeys([tracks, 1]) if tracks else {}
    tries: list[_Sounds] = [(kind, number) for number in numbers for kind in (CopiedSound, EncodedSound)]
    refused: list[str] = []
    for sounds in [*tries, None]:
        try:
            notes = _encode(path, images(), fps, source, start, sounds)
            break
        except (av.error.FFmpegError, ValueError) as error:
            refused.append(getattr(error, "strerror", None) or str(error))
            if sounds is None or getattr(error, "errno", None) == errno.ENOSPC:
                raise MediaError(f"{path} cannot be encoded: {refused[-1]}.") from None
    if tries and sounds is None:
        notes.append(f"The sound was left out: {path.name} takes it neither as it is nor encoded anew ({refused[-1]}).")
    if sounds and sounds[1] < tracks:
        notes.append(f"Only the first of {tracks} sounds was kept: {path.name} does not take them all ({refused[1]}).")
    return notes


def _encode(
    path: Path,
    images: Iterator[np.ndarray],
    fps: Fraction,
    source: VideoFacts | None,
    start: int,
    sounds: _Sounds,
) -> list[str]:
    """Write the file once, with the sounds in one form or without."""
    first = next(images)
    colour = source.colour if source else VideoFacts.colour
    moments, fps, notes = _timing(path, source, fps)
    with ExitStack() as stack:
        options = {"movflags": "faststart"} if path.suffix.lower() in (".mp4", ".m4v", ".mov") else {}
        part = stack.enter_context(replacing(path, path.suffix))
        container = stack.enter_context(av.open(str(part), "w", options=options))
        stream = _picture_stream(container, path, first, fps, colour)
        if source and source.pixel_aspect != 1:
            stream.codec_context.sample_aspect_ratio = source.pixel_aspect
            if path.suffix.lower() == ".webm":
                # PyAV has no way to say it to the container, and VP9 does not say it itself
                notes.append(f"{path.name} is shown with square pixels; those of {source.path.name} are not square.")
        if moments:
            stream.codec_context.time_base = _TICK
        heard = []
        if source and sounds:
            begin = source.times[0] if source.times else start / source.fps
            for track in range(sounds[1]):
                opened = stack.enter_context(av.open(str(source.path)))
                heard.append(sounds[0](container, opened, track, begin))
        for index, image in enumerate(itertools.chain([first], images)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=_matrix(colour[0]), interpolation=EXACT)
            moment = moments[index] if moments else index / fps
            frame.time_base = _TICK if moments else 1 / fps
            frame.pts = round(moment / frame.time_base)
            container.mux(stream.encode(frame))
            for sound in heard:
                sound.write_until(moment + 1 / fps)
        container.mux(stream.encode())
        for sound in heard:
            sound.finish()
    return notes + list(dict.fromkeys(sound.note for sound in heard if sound.note))


def _timing(path: Path, source: VideoFacts | None, fps: Fraction) -> tuple[list[Fraction], Fraction, list[str]]:
    """When each image is shown, the average rate, and notes; no moments where one follows the other at that rate."""
    if source is None or len(source.times) < 2:
        return [], fps, []
    moments = [time - source.times[0] for time in source.times]
    average = ((len(moments) - 1) / moments[-1]).limit_denominator(1001)
    for rate in (fps, average):
        # containers round times, some of them to milliseconds
        if all(abs(moment * rate - index) < _REGULAR for index, moment in enumerate(moments)):
            return [], rate, []
    if path.suffix.lower() != ".avi":
        return moments, average, []
    note = f"{path.name} shows all frames equally long, as AVI files do; in {source.path.name} they are not."
    return [], average, [note]


def _picture_stream(container: Any, path: Path, first: np.ndarray, fps: Fraction, colour: tuple[int, int, int]) -> Any:
    codec = "libvpx-vp9" if path.suffix.lower() == ".webm" else "libx264"
    stream: Any = container.add_stream(codec, rate=fps, options=_QUALITY[codec])
    stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
    # What the source does not say stays unsaid: both conversions then use the same matrix, and a player that
    # guesses guesses alike for both.
    if _matrix(colour[0]) is not None:
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = colour
    return stream


def _matrix(number: int) -> Any:
    """The colour matrix that a file names, or None where it names none that can be written."""
    if number == 6:  # SMPTE 170M is BT.601 under another number
        return Colorspace.ITU601
    return Colorspace(number) if number in {int(known) for known in Colorspace} else None


# --------------------------------------------------------------------------------------------- OpenCV


def _read_opencv(path: Path, start: int, stop: int | None) -> tuple[list[np.ndarray], VideoFacts]:
    capture = cv2.VideoCapture(str(path.absolute()))
    try:
        if not capture.isOpened():
            raise MediaError(f"{path} is no video that can be read.")
        images, index = [], 0
        while (stop is None or index < stop) and capture.grab():
            if index >= start:
                images.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
            index += 1
        fps = capture.get(cv2.CAP_PROP_FPS) or 24.0
    finally:
        capture.release()
    return images, VideoFacts(path.absolute(), Fraction(fps).limit_denominator(1001))


def _write_opencv(path: Path, images: Iterator[np.ndarray], fps: Fraction) -> list[str]:
    first = next(images)
    codec = _OPENCV_CODECS[path.suffix.lower()]
    with replacing(path, path.suffix) as part:
        writer = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*codec), float(fps), first.shape[1::-1])
        try:
            if not writer.isOpened():
                raise MediaError(
                    f"{path} cannot be written with OpenCV; install PyAV (pip install av) or write to a folder."
                )
            for image in itertools.chain([first], images):
                writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        finally:
            writer.release()
    return [f"{path.name} was written without PyAV: no sound, and a coarser codec ({codec})."]
