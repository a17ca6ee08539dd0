"""Putting overlapping windows together: every frame is predicted by two or three of them.

Dimensions: l local frames of a window, h w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ciri.inpainting.windows import Window


class Blend(Protocol):
    """Collects the predictions of a frame's windows."""

    def add(self, window: Window, predictions: Tensor, frames: Tensor, masks: Tensor) -> None:
        """Take one window's predictions for its local frames.

        Args:
            window: which frames they are.
            predictions: (l, 3, h, w) in [-1, 1].
            frames: (l, 3, h, w) in [0, 1], the input.
            masks: (l, 1, h, w) in [0, 1], what is filled.
        """
        ...

    def finish(self, before: int) -> list[tuple[int, Tensor]]:
        """Return (index, frame (3, h, w) in [0, 1]) of all collected frames below an index, and forget them."""
        ...


class PublishedBlend:
    """The composition of the published test programs, to the bit.

    Each prediction is truncated to 8 bit and composited with the binary mask; a later window counts half and all
    earlier ones together the other half, so with three windows the weights are 1/4, 1/4, 1/2; the result is truncated
    again.
    """

    def __init__(self) -> None:
        self._frames: dict[int, Tensor] = {}

    def add(self, window: Window, predictions: Tensor, frames: Tensor, masks: Tensor) -> None:
        levels = ((predictions.float() + 1) / 2 * 255).to(torch.uint8).float()
        composed = torch.where(masks > 0, levels, (frames * 255).round())
        for index, frame in zip(window.local, composed, strict=True):
            old = self._frames.get(index)
            self._frames[index] = frame if old is None else 0.5 * old + 0.5 * frame

    def finish(self, before: int) -> list[tuple[int, Tensor]]:
        return [(i, self._frames.pop(i).floor() / 255) for i in _ready(self._frames, before)]


class SmoothBlend:
    """A centred weighting without rounding: a window counts most at its centre and fades to its ends.

    With two windows over every frame the transition from one to the next is linear in time, where the published
    running average switches at the centres (a visible beat every ``stride`` frames).
    """

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self._sums: dict[int, Tensor] = {}
        self._weights: dict[int, float] = {}

    def add(self, window: Window, predictions: Tensor, frames: Tensor, masks: Tensor) -> None:
        values = ((predictions.float() + 1) / 2).clamp(0, 1)
        for index, value in zip(window.local, values, strict=True):
            # 0 at the neighbouring centres: every frame is nearer than that to some centre
            weight = float(self.stride - abs(index - window.centre))
            if weight <= 0:
                continue
            self._sums[index] = self._sums[index] + weight * value if index in self._sums else weight * value
            self._weights[index] = self._weights.get(index, 0.0) + weight

    def finish(self, before: int) -> list[tuple[int, Tensor]]:
        return [(i, self._sums.pop(i) / self._weights.pop(i)) for i in _ready(self._sums, before)]


def _ready(collected: dict[int, Tensor], before: int) -> Sequence[int]:
    return sorted(index for index in collected if index < before)
