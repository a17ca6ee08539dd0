"""Synthesis of training clips with a known answer (paper 4.1): an object over a clip that does not contain it.

The background is a real clip, or a still image under a synthetic camera; the object is one that is annotated in
another clip (DAVIS, YouTube-VOS, OVIS), a moving cut-out, a still cut-out that is moved, or a random shape that shows
another picture. Now and then a second object is pasted *below*,
as a part of the answer: moving things behind the target are where copying goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from ciri.errors import TrainingError
from ciri.training.data import Clip, Library, read_still
from ciri.training.masks import Rng, random_blob, smooth_path

#: Share of opacity above which a pixel belongs to the target (its soft rim included).
OPAQUE = 0.02
#: No object covers more of the frame than this; larger ones are made smaller (paper 4.1).
LARGEST_SHARE = 0.5
#: Objects of annotated clips are left out if they cover less of the frame, or are seen in fewer frames (paper 4.1).
SMALLEST_SHARE, LEAST_SEEN = 0.005, 0.5
#: How many objects are sought in annotated clips before another kind is taken.
TRIES = 5
#: Frames are shrunk on reading to this many times the wanted size: film at 720p would fill the memory.
SPARE_SIZE = 2.0


@dataclass(frozen=True)
class Composite:
    """What a person has, and the answer.

    Attributes:
        frames: uint8 (T, H, W, 3), the object over the clip.
        clean: uint8 (T, H, W, 3), the clip without it.
        mask: bool (T, H, W), the object's true mask.
    """

    frames: np.ndarray
    clean: np.ndarray
    mask: np.ndarray


class CompositeMaker:
    """Makes composites from a library; the same generator state gives the same composite.

    Args:
        library: backgrounds and objects.
        size: (height, width) of the composites in pixels.
        length: frames T.
    """

    #: How far objects travel, in frames' widths: from standing still (what is behind them never shows) to crossing it.
    travels: tuple[float, ...] = (0.0, 0.04, 0.15, 0.4, 0.9)

    def __init__(self, library: Library, size: tuple[int, int], length: int) -> None:
        if not (library.clips or library.stills):
            raise TrainingError("There is no readable clip or still image to paste objects over.")
        self.library, self.size, self.length = library, size, length
        self._annotated = [clip for clip in library.clips if clip.labels is not None]
        # clips of a large library come back so rarely that keeping many is a waste
        self._clip = lru_cache(maxsize=48 if len(library.clips) < 500 else 4)(self._read)
        self._cutout = lru_cache(maxsize=256)(lambda cutout: cutout.images())

    def make(self, rng: Rng) -> Composite:
        """Return one composite whose object is visible in at least one frame.

        Raises:
            TrainingError: after many unreadable files or invisible objects in a row.
        """
        for _ in range(50):
            try:
                clean = self.background(rng)
                if rng.random() < 0.3:
                    clean, _ = self.paste(clean, rng)
                frames, mask = self.paste(clean, rng)
            except TrainingError as error:
                if str(error) not in self.library.skipped:
                    self.library.skipped.append(str(error))
                continue
            if mask.any():
                return Composite(frames, clean, mask)
        raise TrainingError(f"No composite could be made; last trouble: {(self.library.skipped or ['none'])[-1]}")

    # --------------------------------------------------------------------------------------- background

    def background(self, rng: Rng) -> np.ndarray:
        """Return uint8 (T, H, W, 3): a stretch of a clip, or a still, under a smoothly moving crop."""
        clips, stills = self.library.clips, self.library.stills
        if clips and (not stills or rng.random() < 0.75):
            source = self._stretch(clips[rng.integers(len(clips))], rng)
            moving = rng.random() < (0.35 if _is_moving(source) else 0.8)
        else:
            source = read_still(stills[rng.integers(len(stills))])[None].repeat(self.length, 0)
            moving = rng.random() < 0.9
        if rng.random() < 0.5:
            source = source[:, :, ::-1]
        return self._view(source, rng, moving=moving)

    def _stretch(self, clip: Clip, rng: Rng) -> np.ndarray:
        frames = self._clip(clip)
        step = int(rng.choice([1, 1, 1, 2]))
        order = np.arange(0, len(frames), step)
        if rng.random() < 0.5:
            order = order[::-1]
        start = int(rng.integers(max(1, len(order) - self.length + 1)))
        there_and_back = np.concatenate([order[start:], order[start:][-2:0:-1]]) if len(order) > 1 else order
        return frames[np.resize(there_and_back, self.length)]

    def _read(self, clip: Clip) -> np.ndarray:
        frames = clip.frames(limit=120)
        return _shrink(frames, self.size, cv2.INTER_AREA) if clip.source.is_dir() else frames

    def _view(self, source: np.ndarray, rng: Rng, *, moving: bool) -> np.ndarray:
        """Cut a crop of the wanted size out of each frame, at one scale, along a smooth path if the camera moves."""
        (h, w), (old_h, old_w) = self.size, source.shape[1:3]
        smallest = max(h / old_h, w / old_w)
        zoom = smallest * float(np.exp(rng.uniform(np.log(1.06 if moving else 1.0), np.log(max(1.1, 1.15 / smallest)))))
        size = (max(w, round(old_w * zoom)), max(h, round(old_h * zoom)))
        how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
        scaled = _once_per_picture(source, lambda image: cv2.resize(image, size, interpolation=how))
        room = np.array(size, float) - (w, h)
        corner = room * rng.random(2)
        if not moving:
            x, y = corner.astype(int)
            return np.ascontiguousarray(np.stack([image[y : y + h, x : x + w] for image in scaled]))
        reach = rng.uniform(0.02, 0.5) * np.array([w, h])
        path = np.stack([smooth_path(rng, self.length, r) for r in reach], 1) + corner
        turn = smooth_path(rng, self.length, rng.choice([0, 0.05, 0.15]))
        grow = np.exp(smooth_path(rng, self.length, rng.choice([0, 0.1, 0.3])))
        path = np.clip(path, 0, room)
        moves = [
            _similarity((w / 2, h / 2), p + np.array([w / 2, h / 2]), a, g)
            for p, a, g in zip(path, turn, grow, strict=True)
        ]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return np.stack(
            [
                cv2.warpAffine(image, move, (w, h), flags=flags, borderMode=cv2.BORDER_REFLECT)
                for image, move in zip(scaled, moves, strict=True)
            ]
        )

    # --------------------------------------------------------------------------------------- object

    def paste(self, clean: np.ndarray, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
        """Paste one moving object over uint8 (T, H, W, 3); return the frames and the object's bool (T, H, W) mask."""
        return over(clean, self.layers(rng))

    def layers(self, rng: Rng) -> np.ndarray:
        """Return one moving object as it lies over the frames: premultiplied float32 (T, H, W, 4) in [0, 1]."""
        images, fill = self._object(rng)
        moves = self._object_path(images.shape[1:3], fill, rng)
        h, w = self.size
        result = np.empty((len(moves), h, w, 4), np.float32)
        for t, move in enumerate(moves):
            colour = images[_there_and_back(t, len(images))]
            # colour x alpha is warped, so that nothing bleeds in from outside the object
            paint = cv2.warpAffine(colour, move, (w, h), flags=cv2.INTER_AREA)
            result[t] = cv2.GaussianBlur(paint, (3, 3), 0.7)
        return result

    def _object(self, rng: Rng) -> tuple[np.ndarray, float]:
        """Return premultiplied float32 (n, h, w, 4) in [0, 1], and about which share of the images it covers."""
        images = self._annotated_object(rng) if self._annotated and rng.random() < 0.7 else None
        fill = 0.5 if images is None else max(0.15, float(images[..., 3].mean() / 255))
        if images is None:
            images = self._cut_out(rng)
        rgba = images.astype(np.float32) / 255
        if rng.random() < 0.5:
            rgba = rgba[:, :, ::-1]
        rgb = np.clip((rgba[..., :3] - 0.5) * rng.uniform(0.8, 1.2) + 0.5 + rng.uniform(-0.1, 0.1), 0, 1)
        return np.concatenate([rgb * rgba[..., 3:], rgba[..., 3:]], -1).astype(np.float32), fill

    def _annotated_object(self, rng: Rng) -> np.ndarray | None:
        """Cut a stretch of an annotated object out of its clip, RGBA; None if none is found soon."""
        for _ in range(TRIES):
            clip = self._annotated[rng.integers(len(self._annotated))]
            try:
                files = clip.annotated_files()
                start = int(rng.integers(max(1, len(files) - self.length + 1)))
                found = clip.annotated(files[start : start + self.length])
            except TrainingError as error:
                if str(error) not in self.library.skipped:
                    self.library.skipped.append(str(error))
                continue
            images, labels = (
                _shrink(found[0], self.size, cv2.INTER_AREA),
                _shrink(found[1], self.size, cv2.INTER_NEAREST),
            )
            numbers = [n for n in range(1, int(labels.max()) + 1) if is_worth_it(labels == n)]
            if numbers:
                return cut_out(images, labels == numbers[rng.integers(len(numbers))])
        return None

    def _cut_out(self, rng: Rng) -> np.ndarray:
        """An object of the library, or a random shape, RGBA."""
        moving = [c for c in self.library.cutouts if len(c.files) > 1]
        still = [c for c in self.library.cutouts if len(c.files) == 1]
        draw = rng.random()
        if moving and draw < 0.35:
            return self._cutout(moving[rng.integers(len(moving))])
        if still and draw < 0.8:
            return self._cutout(still[rng.integers(len(still))])
        return self._textured_blob(rng)

    def _textured_blob(self, rng: Rng) -> np.ndarray:
        side = 160
        blob = random_blob(rng, side, side)
        if self.library.stills:
            picture = read_still(self.library.stills[rng.integers(len(self.library.stills))])
        else:
            picture = self._clip(self.library.clips[rng.integers(len(self.library.clips))])[0]
        return np.dstack([cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), blob])[None]

    def _object_path(self, shape: tuple[int, ...], fill: float, rng: Rng) -> list[np.ndarray]:
        """Return the object's placement, a 2 x 3 matrix per frame from object to frame pixels."""
        h, w = self.size
        area = min(LARGEST_SHARE, float(np.exp(rng.uniform(np.log(0.012), np.log(0.3)))))
        scale = np.sqrt(area * h * w / (fill * shape[0] * shape[1]))
        stretch = float(np.exp(rng.normal(0, 0.15)))
        travel = float(rng.choice(self.travels)) * rng.uniform(0.5, 1.2)
        centre = np.array([w, h]) * rng.uniform(0.2, 0.8, 2)
        path = np.stack([smooth_path(rng, self.length, travel * side) for side in (w, h * 0.6)], 1) + centre
        grow = scale * np.exp(smooth_path(rng, self.length, rng.choice([0, 0.1, 0.4])))
        turn = rng.normal(0, 0.12) + smooth_path(rng, self.length, rng.choice([0, 0.1, 0.5]))
        middle = (shape[1] / 2, shape[0] / 2)
        moves = [_similarity(middle, p, a, g) for p, a, g in zip(path, turn, grow, strict=True)]
        return [move @ np.array([[stretch, 0, 0], [0, 1 / stretch, 0], [0, 0, 1]]) for move in moves]


def over(frames: np.ndarray, layers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lay premultiplied layers, float32 (T, H, W, 4), over uint8 (T, H, W, 3); return the result and bool (T, H, W)."""
    result, masks = np.empty_like(frames), np.zeros(frames.shape[:3], bool)
    for t, layer in enumerate(layers):  # a clip of floats would be four times as large
        alpha = layer[..., 3:]
        result[t] = np.clip(frames[t] * (1 - alpha) + layer[..., :3] * 255 + 0.5, 0, 255)
        masks[t] = alpha[..., 0] > OPAQUE
    return result, masks


def is_worth_it(mask: np.ndarray) -> bool:
    """Whether an object, bool (T, H, W), is neither very small nor seen too briefly to be worth removing."""
    areas = mask.mean((1, 2))
    seen = areas > 0
    return seen.mean() >= LEAST_SEEN and float(areas[seen].mean()) >= SMALLEST_SHARE


def cut_out(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Cut uint8 (T, H, W, 3) along a mask, bool (T, H, W), to the box of all frames: uint8 (T, h, w, 4), RGBA.

    One box for all frames keeps the object's own motion.
    """
    rows, columns = (np.nonzero(mask.any((0, axis)))[0] for axis in (2, 1))
    box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return np.concatenate([images[box], mask[box][..., None] * np.uint8(255)], -1)


def _shrink(images: np.ndarray, size: tuple[int, int], how: int) -> np.ndarray:
    """Shrink frames (T, H, W, ...) to what covers a few times the size; smaller ones stay as they are."""
    height, width = images.shape[1:3]
    scale = SPARE_SIZE * max(size[0] / height, size[1] / width)
    if scale >= 1:
        return images
    small = (round(width * scale), round(height * scale))
    return np.stack([cv2.resize(image, small, interpolation=how) for image in images])


def _similarity(source: tuple[float, float], target: np.ndarray, angle: float, scale: float) -> np.ndarray:
    """The 2 x 3 matrix that turns and scales about ``source`` and carries it to ``target``."""
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[c, -s], [s, c]])
    return np.concatenate([linear, (np.asarray(target) - linear @ source)[:, None]], 1)


def _there_and_back(t: int, count: int) -> int:
    """Index of a short sequence that is played forth and back."""
    k = t % max(1, 2 * count - 2)
    return k if k < count else 2 * count - 2 - k


def _is_moving(clip: np.ndarray) -> bool:
    small = clip[:: max(1, len(clip) // 4), ::4, ::4].astype(np.float32)
    return len(small) > 1 and float(np.abs(np.diff(small, axis=0)).mean()) > 4


def _once_per_picture(source: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """Map over frames, reusing the result where a still is repeated."""
    if source.strides[0] == 0 or (len(source) > 1 and np.array_equal(source[0], source[-1])):
        return [change(np.ascontiguousarray(source[0]))] * len(source)
    return [change(np.ascontiguousarray(image)) for image in source]
