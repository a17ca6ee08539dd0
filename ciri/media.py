"""Clips on disk: videos, folders of numbered images, and single images (masks: :mod:`ciri.mask_files`).

PyAV reads and writes videos where it is installed (every ComfyUI has it): H.264 at constant quality, with the sounds
kept. OpenCV does it otherwise. Clips are float32 (T, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.errors import MediaError
from ciri.video_files import VIDEO_SUFFIXES, VideoFacts, read_video, write_video

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass
class Clip:
    """A clip that was read, and what is needed to write another one like it.

    Attributes:
        frames: float32 (T, 3, H, W) in [0, 1].
        fps: frames per second.
        names: file names without suffix where the frames were numbered images, else empty.
        start: number of the first frame that was read.
        video: facts of the video file that it came from, or None.
        bits: of a colour in the source.
        total: how many frames the folder that it came from holds; None for a video.
        notes: sentences for the person who reads it (what a damaged video lacks).
    """

    frames: Tensor
    fps: float = 24.0
    names: list[str] = field(default_factory=list)
    start: int = 0
    video: VideoFacts | None = None
    bits: int = 8
    total: int | None = None
    notes: list[str] = field(default_factory=list)


# --------------------------------------------------------------------------------------------- reading


def read_clip(path: str | Path, *, start: int = 0, count: int | None = None) -> Clip:
    """Read a video file or a folder of numbered images.

    Args:
        path: a video, or a folder whose images are taken in the order of the numbers in their names.
        start: skip this many frames.
        count: read at most this many (default: to the end).

    Raises:
        MediaError: nothing there, not readable, frames of different sizes, or no frame in the range.
    """
    path = Path(path)
    if start < 0 or (count is not None and count < 1):
        asked = f"Frames from {start}" + (f", {count} of them" if count is not None else "")
        raise MediaError(f"{asked}; expected a start of 0 or more and at least one frame.")
    if path.is_dir():
        return _read_folder(path, start, count)
    if not path.is_file():
        raise MediaError(f"{path} does not exist; expected a video file or a folder of numbered images.")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        if start:
            raise MediaError(f"{path} is one image; there is no frame {start}.")
        image, bits = _read_colour(path)
        return Clip(_to_tensor([image]), names=[path.stem], bits=bits)
    images, facts, notes = read_video(path, start, count)
    if not images:
        raise MediaError(f"{path} has no frame {start}; it ends before.")
    # recordings of calls and of screens may change their size on the way
    for index, image in enumerate(images, start):
        if image.shape != images[0].shape:
            raise MediaError(
                f"{path} changes from {_size(images[0])} to {_size(image)} at frame {index}; all frames of a clip must "
                "have one size. Encode it anew in one size, or read a part that has one."
            )
    return Clip(_to_tensor(images), fps=float(facts.fps), start=start, video=facts, bits=facts.bits, notes=notes)


def image_files(folder: Path) -> list[Path]:
    """The images in a folder, ordered by the numbers in their names.

    Raises:
        MediaError: there is none, or two of one name but for the suffix: which is the frame?
    """
    files = [file for file in folder.iterdir() if _is_image(file)]
    if not files:
        raise MediaError(f"{folder} holds no image; expected numbered {', '.join(IMAGE_SUFFIXES)} files.")
    files = sorted(files, key=lambda file: (natural_order(file), file.name))
    for file, other in itertools.pairwise(files):
        if file.stem == other.stem:
            raise MediaError(f"{folder} holds both {file.name} and {other.name}; expected one image for each frame.")
    return files


def _is_image(file: Path) -> bool:
    # macOS lays ._NAME beside a file on disks that are not its own: no image, whatever the suffix says
    return not file.name.startswith("._") and file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()


def natural_order(file: Path) -> list[tuple[int, int | str]]:
    """A key that puts frame 10 after frame 9."""
    parts = re.split(r"(\d+)", file.stem)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def _read_folder(folder: Path, start: int, count: int | None) -> Clip:
    files = image_files(folder)
    chosen = files[start:][:count]
    if not chosen:
        raise MediaError(f"{folder} holds {len(files)} images; there is no frame {start}.")
    images, bits = zip(*map(_read_colour, chosen), strict=True)
    for file, image in zip(chosen, images, strict=True):
        if image.shape != images[0].shape:
            raise MediaError(
                f"{file} is {_size(image)} but {chosen[0].name} is {_size(images[0])}; "
                "all images of a clip must have one size."
            )
    return Clip(_to_tensor(images), names=[file.stem for file in chosen], start=start, bits=max(bits), total=len(files))


#: Without alpha, and turned upright as the camera says; cv2.IMREAD_UNCHANGED does neither.
_UPRIGHT = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR


def decode_image(file: Path, how: int = _UPRIGHT) -> np.ndarray:
    """Any image as OpenCV decodes it, 8 or 16 bits: (H, W) or (H, W, 3 | 4), BGR.

    Args:
        file: the image.
        how: OpenCV's flags; as they are, alpha is dropped, and photographs are turned upright.

    Raises:
        MediaError: no readable image, or values of another kind.
    """
    # not cv2.imread: it writes warnings to the terminal, and does not take every file name on Windows
    try:
        data = np.fromfile(file, np.uint8)
    except OSError as error:
        raise MediaError(f"{file} cannot be read: {error.strerror}.") from None
    try:
        image = cv2.imdecode(data, how) if data.size else None
    except cv2.error:
        image = None
    if image is None:
        raise MediaError(
            f"{file} is no image that can be read; it may be damaged or of another kind than its name says."
        )
    if image.dtype not in (np.uint8, np.uint16):
        raise MediaError(f"{file} holds {image.dtype} values; expected an image of 8 or 16 bits.")
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image


def _read_colour(file: Path) -> tuple[np.ndarray, int]:
    """An image as uint8 (H, W, 3), RGB, and the bits of a colour in the file; alpha is dropped."""
    image = decode_image(file)
    bits = 8 * image.itemsize
    if bits == 16:
        image = (image / 257 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(np.stack([image] * 3, -1) if image.ndim == 2 else image[..., 2::-1]), bits


def _to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) arrays to float32 (T, 3, H, W), one frame at a time: the clip exists only once in float."""
    frames = torch.empty(len(images), 3, *images[0].shape[:2])
    for frame, image in zip(frames, images, strict=True):
        torch.div(torch.from_numpy(image).permute(2, 0, 1), 255, out=frame)
    return frames


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


# --------------------------------------------------------------------------------------------- writing


def check_output(path: str | Path) -> None:
    """Refuse what :func:`write_clip` could not write, before minutes of work are spent on it.

    Raises:
        MediaError: a suffix that is no video's, a name that is taken by something else, or a place where nothing may
            be written.
    """
    path = Path(path)
    if path.suffix and not path.is_dir() and path.suffix.lower() not in VIDEO_SUFFIXES:
        raise MediaError(
            f"{path} ends in {path.suffix}; expected a video ({', '.join(VIDEO_SUFFIXES)}) or a folder for PNG images."
        )
    if not path.suffix and path.is_file():
        raise MediaError(f"{path} is a file; expected the name of a video or of a folder.")
    if path.suffix.lower() in VIDEO_SUFFIXES and path.is_dir():
        raise MediaError(f"{path} is a folder, but its name is a video's.")
    # links are followed; folders that are missing on the way will be made
    wanted = path.resolve() if path.is_dir() else path.resolve().parent
    there = next(folder for folder in (wanted, *wanted.parents) if folder.exists())
    if not there.is_dir():
        raise MediaError(f"{path} cannot be written: {there} is no folder. Give another place.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise MediaError(f"{path} cannot be written: {there} may not be written to. Give another place.")


def check_apart(outputs: Mapping[str, Path], inputs: Mapping[str, Path]) -> None:
    """Refuse outputs that would take the place of an input, or of one another.

    Args:
        outputs, inputs: path of each argument, by the name that the message calls it.

    Raises:
        MediaError: two of them are one file or folder, or an input is an image in a folder that is written to.
    """
    for name, output in outputs.items():
        for other, path in inputs.items():
            inside = path.suffix.lower() in IMAGE_SUFFIXES and _same(output, path.parent)
            if inside or _same(output, path):
                where = "lies in the folder" if inside else "is the file or folder"
                raise MediaError(
                    f"{other} ({path}) {where} that {name} ({output}) would write to, which would destroy it; "
                    f"give {name} another name."
                )
    for (name, output), (other, path) in itertools.combinations(outputs.items(), 2):
        if _same(output, path):
            raise MediaError(f"{name} and {other} both write to {output}; give each a name of its own.")


def check_leftovers(path: Path, clip: Clip) -> None:
    """Refuse a folder whose images :func:`write_clip` would leave beside those of a clip like this one.

    Raises:
        MediaError: images of other names, as an earlier run on more frames leaves them.
    """
    if not path.is_dir():
        return
    written = {f"{name}.png" for name in _names(clip, len(clip.frames))}
    left = sorted(file.name for file in path.iterdir() if _is_image(file) and file.name not in written)
    if left:
        raise MediaError(
            f"{path} holds {left[0]}, and {len(left)} images in all, that are not of this clip and would be taken for "
            "frames of the result; empty the folder, or give another."
        )


def _names(clip: Clip, count: int) -> list[str]:
    """The names of images, without suffix, that so many frames of a clip are written to."""
    return clip.names or [f"{clip.start + index:05d}" for index in range(count)]


def _same(a: Path, b: Path) -> bool:
    """Whether two paths lead to one place, by whatever links and spellings."""
    return a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b))


def write_clip(path: str | Path, frames: Tensor, like: Clip | None = None) -> list[str]:
    """Write a clip to a video file, or losslessly to a folder of PNG images.

    Args:
        path: a video file by its suffix, else a folder.
        frames: float32 (T, C, H, W) in [0, 1]; one channel is written as grey.
        like: where frame rate, file names, colour space and sound come from.

    Returns:
        Notes: what could not be kept.

    Raises:
        MediaError: it cannot be written.
    """
    path, like = Path(path), like or Clip(frames)
    check_output(path)
    notes = []
    # of masks nothing is lost
    if like.bits > 8 and frames.shape[1] == 3:
        notes.append(f"{path.name} has 8 bits a colour; the clip that was read has {like.bits}.")
    try:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            path.parent.mkdir(parents=True, exist_ok=True)
            rate = like.video.fps if like.video else Fraction(like.fps).limit_denominator(1001)
            video = like.video
            if video and len(video.times) != len(frames):
                # not the frames that were read: what is known is where they begin
                video = replace(video, times=video.times[:1])
            return notes + write_video(path, lambda: _to_images(frames), rate, video, like.start)
        path.mkdir(parents=True, exist_ok=True)
        for name, image in zip(_names(like, len(frames)), _to_images(frames), strict=True):
            write_png(path / f"{name}.png", image)
    except OSError as error:
        raise MediaError(f"{path} cannot be written: {error.strerror or error}.") from None
    return notes


def write_png(file: Path, image: np.ndarray) -> None:
    """Write uint8 (H, W), (H, W, 3) RGB or (H, W, 4) RGBA."""
    order = {2: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[2 if image.ndim == 2 else image.shape[2]]
    done, data = cv2.imencode(".png", image if order is None else cv2.cvtColor(image, order))
    if not done:
        raise MediaError(f"{file} cannot be encoded as PNG.")
    # not data.tofile: where there is no room, it does not say so
    file.write_bytes(data.tobytes())


def _to_images(frames: Tensor) -> Iterator[np.ndarray]:
    """Yield uint8 (H, W, 3), or (H, W) where there is one channel; exact for frames that were read from 8 bits."""
    for frame in frames:
        image = (frame.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        yield np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image)
