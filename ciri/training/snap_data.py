"""Pictures with a target and its mask, synthesised once and drawn from many times, each time painted anew.

Dimensions: b pictures, h w pixels.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.errors import TrainingError
from ciri.training.film import Dice
from ciri.training.painting import painted
from ciri.training.propagator_data import SMALLEST, Bank
from ciri.training.synth_vos import CLIPS, Recipe, synthesise

#: Single pictures, as often of objects in place, whose edges are real, as of pasted ones.
PICTURES = replace(CLIPS, frames=1, annotated=0.5, leave=0.0, blur=0.4)
#: Pictures that are made at once.
AT_ONCE = 4
#: So many are made before it is said that they show nothing.
PATIENCE = 50
#: No target fills more than this share of its frame.
LARGEST = 0.6


@dataclass
class Batch:
    """Pictures (b, 3, h, w), what was painted and the truth, (b, 1, h, w), all float32 in [0, 1]."""

    frames: Tensor
    painted: Tensor
    truth: Tensor


class Pictures:
    """Recent pictures; the oldest leave first.

    Args:
        bank: the material.
        seed: of everything; picture n is a function of the seed and n.
        start: number of the first pictures.
        capacity: pictures held.
        reuse: draws of a picture before the next one is made.
        recipe: how they are made.
    """

    def __init__(
        self, bank: Bank, *, seed: int, start: int = 0, capacity: int = 400, reuse: int = 4, recipe: Recipe = PICTURES
    ) -> None:
        self.bank, self.seed, self.reuse, self.recipe = bank, seed, reuse, recipe
        self.held: deque[tuple[Tensor, Tensor]] = deque(maxlen=capacity)
        self.made, self.drawn, self._next = 0, 0, start

    def fill(self, count: int) -> None:
        """Make pictures until so many are held.

        Raises:
            TrainingError: hardly any shows a target.
        """
        tries, made = count + PATIENCE, self.made
        while len(self.held) < min(count, self.held.maxlen or count):
            if tries == 0:
                raise TrainingError(
                    f"Of {self.made - made} pictures made of this data, nearly all show no target of {SMALLEST} pixels "
                    f"or more, or one that fills over {LARGEST:.0%} of the frame; give data with other objects."
                )
            self._make()
            tries -= 1

    def draw(self, batch: int, window: tuple[int, int], enlarged: tuple[float, float], dice: Dice) -> Batch:
        """Windows of random pictures, enlarged, each painted in a way of its own.

        Args:
            batch: how many.
            window: (height, width) of what comes out.
            enlarged: least and most that pictures are enlarged by.
            dice: decides everything.
        """
        self.drawn += batch
        while self.drawn > self.reuse * self.made:
            self._make()
        rng = np.random.default_rng(dice.below(2**31))
        chosen = [self.held[dice.below(len(self.held))] for _ in range(batch)]
        return joined([_window(picture, window, rng.uniform(*enlarged), rng) for picture in chosen])

    def _make(self) -> None:
        sample = synthesise(self.bank, self.recipe, AT_ONCE, Dice(self.seed * 1_000_003 + self._next, "cpu"))
        self._next += 1
        self.made += AT_ONCE
        for frame, mask in zip(sample.frames[:, 0], sample.masks[:, 0, 0] > 0.5, strict=True):
            if mask.sum() >= SMALLEST and float(mask.float().mean()) < LARGEST:
                self.held.append(((frame.clamp(0, 1) * 255).round().byte(), mask))


def joined(pictures: list[Batch]) -> Batch:
    """Several pictures as one batch."""
    return Batch(*(torch.cat([getattr(p, name) for p in pictures]) for name in ("frames", "painted", "truth")))


def _window(picture: tuple[Tensor, Tensor], size: tuple[int, int], factor: float, rng: np.random.Generator) -> Batch:
    """One window around a pixel of the target, (1, ...), enlarged and painted."""
    frame, mask = picture
    full = mask.shape
    h, w = (min(round(side / factor), most) for side, most in zip(size, full, strict=True))
    ys, xs = torch.nonzero(mask, as_tuple=True)
    chosen = int(rng.integers(len(ys)))
    top = min(max(int(ys[chosen]) - int(rng.integers(h)), 0), full[0] - h)
    left = min(max(int(xs[chosen]) - int(rng.integers(w)), 0), full[1] - w)
    # painted as a whole, then cut: an edge of the window is no edge of the target
    paint = torch.from_numpy(painted(mask.numpy(), rng, min(full) / 240))
    cut = (slice(top, top + h), slice(left, left + w))
    both = torch.stack([paint[cut], mask[cut]]).float()
    parts = [frame[None, :, cut[0], cut[1]].float() / 255, both[None]]
    image, masks = (F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in parts)
    if rng.random() < 0.5:
        image, masks = image.flip(-1), masks.flip(-1)
    masks = (masks > 0.5).float()
    return Batch(image, masks[:, :1], masks[:, 1:])
