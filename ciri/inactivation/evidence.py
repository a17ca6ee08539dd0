"""What can be told about each pixel near a predicted mask: whether it shows the target, or what the target causes.

Two witnesses that the propagator did not hear. *Other frames*: what is behind the target can be seen in frames in which
it is elsewhere, so a pixel that differs from what they show there belongs to the target, or to its shadow, or to
something else that moves, or the copy is wrong. *Appearance*: how much a pixel looks like the painted target, and how
much like what the mask covers in this very frame. Neither is right by itself (moving neighbours, parallax,
look-alikes), which is why a network weighs them (:mod:`ciri.inactivation.attention_network`).

The sources of copies have to be free of the target, which masks that miss some of it would not see to. So nothing is
copied out of the masks' whole neighbourhood.

Dimensions: t frames, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.flow.addresses import Candidates, cues_of
from ciri.flow.propagate import propagate_pixels
from ciri.frames import grow_mask
from ciri.progress import OnStep, ignore
from ciri.propagation.appearance import AppearanceModel, pixel_features, placement

#: Levels of each colour that are told apart in a frame, and the width in levels by which their counts are blurred.
LEVELS, COLOUR_BLUR = 16, 0.8
#: Pixels by which the looks of a single one are averaged.
LOOKS_BLUR = 3


@dataclass
class Evidence:
    """Of n frames; float32 in [0, 1], 0 where nothing is known.

    Attributes:
        frame: (n, 3, h, w).
        before, after: (n, 3, h, w), copies from the past and from the future.
        cues: (n, 4, h, w), trust in either copy (0 = none), then the inverse distances to their sources in frames.
        looks: (n, 2, h, w), likeness to the painted target, and to what the mask covers in this frame; 0.5 = undecided.
        predicted: (n, 1, h, w), M_pred.
        region: (n, 1, h, w), 1 where the target, or what it causes, is sought.
    """

    frame: Tensor
    before: Tensor
    after: Tensor
    cues: Tensor
    looks: Tensor
    predicted: Tensor
    region: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Evidence:
        """The same with every tensor changed alike."""
        return Evidence(*(change(getattr(self, f.name)) for f in fields(self)))


class Witness:
    """Gathers the evidence of a clip, frame by frame.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1], on the CPU.
        predicted: float32 (T, 1, H, W) in [0, 1], M_pred.
        first_mask: float32 (1, H, W) in [0, 1], the annotation.
        first_frame: float32 (3, H, W) in [0, 1], the frame that was annotated.
        region: float32 (T, 1, H, W), 1 where the target, or what it causes, is sought; see :func:`neighbourhood`.
        on_step: progress callback; may raise to stop.
    """

    def __init__(
        self,
        frames: Tensor,
        predicted: Tensor,
        first_mask: Tensor,
        first_frame: Tensor,
        region: Tensor,
        *,
        on_step: OnStep = ignore,
    ) -> None:
        self.predicted, self.region = predicted, region
        self.candidates: Candidates = propagate_pixels(frames, region, passes=1, on_step=on_step)
        self._painted = AppearanceModel(pixel_features(_image(first_frame)), first_mask[0].numpy())

    def at(self, t: int) -> Evidence:
        """The evidence of one frame (n = 1)."""
        frame, predicted, region = self.candidates.frames[t], self.predicted[t], self.region[t]
        before, after = (self.candidates.copied(t, side) for side in ("before", "after"))
        cues, looks = cues_of(before, after), self._looks(frame, predicted, region)
        return Evidence(frame, before.colours, after.colours, cues, looks, predicted, region).map(lambda x: x[None])

    def _looks(self, frame: Tensor, predicted: Tensor, region: Tensor) -> Tensor:
        """float32 (2, h, w) in [0, 1]."""
        looks = torch.full((2, *frame.shape[1:]), 0.5)
        mask, asked = predicted[0].numpy(), region[0].numpy() > 0
        if asked.any():
            image = _image(frame)
            score = self._painted.score(pixel_features(image), placement(mask), asked)
            both = np.stack([score.clip(-1, 1) / 2 + 0.5, colour_share(image, mask, 1 - region[0].numpy())])
            both = np.stack([cv2.blur(x.astype(np.float32), (LOOKS_BLUR, LOOKS_BLUR)) for x in both])
            looks = torch.where(region > 0, torch.from_numpy(both), looks)
        return looks


def neighbourhood(masks: Tensor, reach: int) -> Tensor:
    """What is at most so many pixels from masks (T, 1, h, w) above 0.5: float32 (T, 1, h, w), 0 or 1."""
    # frame by frame: dilating by much takes several times the memory of what it works on
    return torch.cat([(grow_mask((mask[None] > 0.5).float(), reach) > 0.5).float() for mask in masks])


def colour_share(image: np.ndarray, mask: np.ndarray, background: np.ndarray) -> np.ndarray:
    """How much oftener each pixel's colour is seen in the mask than in the background: float32 (h, w) in [0, 1].

    Args:
        image: uint8 (h, w, 3).
        mask, background: float32 (h, w), weights of the pixels.
    """
    index = np.ravel_multi_index(tuple((image // (256 // LEVELS)).reshape(-1, 3).T), (LEVELS,) * 3)
    counts = []
    for weight in (mask, background):
        count = np.bincount(index, weight.ravel().astype(np.float64), LEVELS**3).reshape((LEVELS,) * 3)
        counts.append(_blurred(count / max(float(weight.sum()), 1e-6)))
    inside, outside = counts
    # a colour that is seen nowhere says nothing
    least = 1e-5
    share = ((inside + least) / (inside + outside + 2 * least)).ravel()[index]
    return share.reshape(mask.shape).astype(np.float32)


def _blurred(counts: np.ndarray) -> np.ndarray:
    """Blur (n, n, n) along all three axes."""
    x = np.arange(-2, 3)
    kernel = np.exp(-0.5 * (x / COLOUR_BLUR) ** 2)
    kernel /= kernel.sum()
    for axis in range(3):
        padded = np.pad(counts, [(2, 2) if a == axis else (0, 0) for a in range(3)])
        views = [padded.take(range(i, i + counts.shape[axis]), axis) for i in range(5)]
        counts = np.tensordot(kernel, np.stack(views), 1)
    return counts


def _image(frame: Tensor) -> np.ndarray:
    """(3, h, w) in [0, 1] to uint8 (h, w, 3)."""
    return (frame * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
