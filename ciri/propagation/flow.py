"""The classical propagator: no weights, no training, any processor.

Optical flow carries the mask from each annotated frame in both directions; a classifier of colours and gradients,
trained on the annotated frame and adapted on the way, corrects it, so that errors do not add up; a guided filter
moves the edge onto the image's. A target that leaves, and a scene cut, are reported instead of guessed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.errors import CiriError
from ciri.frames import check_annotation, check_key_frames
from ciri.numbering import ranges
from ciri.progress import OnStep, ignore
from ciri.propagation.base import MaskTrack
from ciri.propagation.tracker import Step, TargetTracker


@dataclass(frozen=True)
class Walk:
    """From an annotated frame ``start`` to, but not including, frame ``end``; ``end`` may lie before it.

    ``shared`` says that another annotated frame waits at the end, so that two walks meet here.
    """

    key: int
    start: int
    end: int
    shared: bool

    @property
    def frames(self) -> range:
        """The frames after the annotated one, in the order of walking."""
        step = 1 if self.end > self.start else -1
        return range(self.start + step, self.end, step)

    def weight(self, frame: int) -> float:
        """1 at the annotated frame, falling to 0 at the next one; constant where there is none."""
        return 1 - abs(frame - self.start) / abs(self.end - self.start) if self.shared else 1.0


class FlowPropagator:
    """Propagates a mask with optical flow and colour models (see the module's text)."""

    name = "flow"

    def __init__(self, working_size: int = 480) -> None:
        """
        Args:
            working_size: longer side in pixels at which the target is followed; larger frames are shrunk to it, and
                the mask's edge is then found on the full-size frame. Time grows with its square.

        Raises:
            CiriError: a size below 64.
        """
        if working_size < 64:
            raise CiriError(f"The working size is {working_size} pixels; choose at least 64 (480 is the usual one).")
        self.working_size = working_size

    def parameters_to_refine(self) -> Iterable[torch.nn.Parameter]:
        """Nothing: there are no weights."""
        return []

    def propagate(
        self, frames: Tensor, key_masks: Tensor, key_frames: Sequence[int], *, on_step: OnStep = ignore
    ) -> MaskTrack:
        """Return the target's mask in every frame (see :meth:`ciri.propagation.base.Propagator.propagate`).

        Raises:
            MaskError: a key mask is empty or full, or the key frames do not fit the masks or the clip.
        """
        check_annotation(key_masks)
        keys = check_key_frames(key_frames, len(key_masks), len(frames))
        count, _, height, width = frames.shape
        probs = torch.zeros(count, 1, height, width)
        confidence, weight = torch.zeros(count), torch.zeros(count)
        cuts: set[int] = set()
        walks = _plan(keys, count)
        total = max(sum(len(walk.frames) for walk in walks), 1)
        done = 0
        for walk in walks:
            for index, step in self._follow(walk, frames, key_masks[walk.key, 0]):
                if step.cut:
                    cuts.add(max(index, index + (walk.start > walk.end)))
                share = walk.weight(index) * (step.confidence + 1e-3)
                weight[index] += share
                confidence[index] += share * step.confidence
                if step.mask is not None:
                    probs[index, 0] += share * torch.from_numpy(step.mask.on(_to_numpy(frames[index])))
                done += 1
                on_step(done, total)
        probs /= weight.clamp(min=1e-6)[:, None, None, None]
        confidence /= weight.clamp(min=1e-6)
        for mask, index in zip(key_masks, keys, strict=True):
            probs[index], confidence[index] = mask, 1.0
        if not walks:
            on_step(1, 1)
        track = MaskTrack(probs.clamp_(0, 1).to(frames.device), confidence.to(frames.device))
        track.notes = _notes(track, sorted(cuts))
        return track

    def _follow(self, walk: Walk, frames: Tensor, mask: Tensor) -> Iterator[tuple[int, Step]]:
        """Yield each frame of the walk and what the tracker says of it; two frames are held at a time."""
        load = self._loader(frames)
        tracker = TargetTracker(load(walk.start), _shrink(mask.cpu().numpy(), self._scale(frames)))
        frame = load(walk.frames[0])
        for index, after in itertools.zip_longest(walk.frames, walk.frames[1:]):
            following = None if after is None else load(after)
            yield index, tracker.step(frame, following)
            if following is not None:
                frame = following

    def _scale(self, frames: Tensor) -> float:
        return min(1.0, self.working_size / max(frames.shape[2:]))

    def _loader(self, frames: Tensor) -> Callable[[int], np.ndarray]:
        """A function that gives one frame at the working size, uint8 RGB (H, W, 3)."""
        scale = self._scale(frames)

        def load(index: int) -> np.ndarray:
            return np.rint(_shrink(_to_numpy(frames[index]), scale) * 255).astype(np.uint8)

        return load


def _plan(keys: Sequence[int], count: int) -> list[Walk]:
    """The walks that reach every frame of the clip, from both sides where it lies between two annotated frames."""
    order = sorted(range(len(keys)), key=lambda k: keys[k])
    walks = [Walk(order[0], keys[order[0]], -1, shared=False)]
    for left, right in itertools.pairwise(order):
        walks.append(Walk(left, keys[left], keys[right], shared=True))
        walks.append(Walk(right, keys[right], keys[left], shared=True))
    walks.append(Walk(order[-1], keys[order[-1]], count, shared=False))
    return [walk for walk in walks if len(walk.frames)]


def _notes(track: MaskTrack, cuts: list[int]) -> list[str]:
    notes = []
    if cuts:
        notes.append(
            f"A scene cut was found before frame {ranges(cuts)}; annotate a frame of each scene that shows the target."
        )
    lost = track.lost_frames()
    if lost:
        notes.append(f"The target is gone or was lost in frames {ranges(lost)}; their masks are empty.")
    return notes


def _to_numpy(frame: Tensor) -> np.ndarray:
    """(3, H, W) to (H, W, 3)."""
    return frame.permute(1, 2, 0).contiguous().cpu().numpy()


def _shrink(image: np.ndarray, scale: float) -> np.ndarray:
    if scale >= 1:
        return image
    h, w = image.shape[:2]
    return cv2.resize(image, (max(round(w * scale), 1), max(round(h * scale), 1)), interpolation=cv2.INTER_AREA)
