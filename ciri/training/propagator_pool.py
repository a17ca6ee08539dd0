"""Clips with the masks that the classical propagator carried through them: what the small propagator learns to correct.

Carrying a mask through a whole clip takes longer than a step of training, so clips are made once, kept, and drawn
from many times: other frames, another window, other mistakes.

Dimensions: b clips, t frames, h w pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.errors import CiriError
from ciri.propagation.base import Propagator
from ciri.propagation.flow import FlowPropagator
from ciri.training.film import Dice, film
from ciri.training.propagator_data import SMALLEST, Bank
from ciri.training.synth_vos import CLIPS, Recipe, Sample, synthesise

#: Frames of the clips that are made: errors of the classical propagator need time to build up.
LENGTH = 16
#: Share of clips in which an annotated object is followed through the real frames of its clip.
REAL = 0.2
#: Longest stretch of real frames.
STRETCH = 40
#: Slower than for training without hints: an object should not leave before the clip ends.
COMPOSITES = replace(CLIPS, frames=LENGTH, speed=9.0, spacing=2, annotated=0.4, leave=0.2, company=0.6)
#: Share of drawn clips without any hint, and with a spoiled one.
UNGUIDED, SPOILED = 0.1, 0.3


@dataclass
class HintedClip:
    """One clip; hints start from the true mask of frame 0.

    Attributes:
        frames: uint8 (t, 3, h, w).
        masks: uint8 (t, h, w), 255 = target.
        hints: uint8 (t, h, w), what was carried to each frame, 255 = certain.
        certainty: float32 (t,).
    """

    frames: Tensor
    masks: Tensor
    hints: Tensor
    certainty: Tensor


def hinted_clip(bank: Bank, dice: Dice, propagator: Propagator, *, recipe: Recipe = COMPOSITES) -> HintedClip | None:
    """Make a clip and carry its first mask through it; None if the first frame hardly shows a target."""
    real = [track for track in bank.tracks if len(track[0]) > 2]
    share = REAL if 0 < recipe.annotated < 1 else recipe.annotated
    if real and dice.chance(share):
        frames, masks, known = _stretch(bank, real[dice.below(len(real))], dice)
    else:
        sample = synthesise(bank, recipe, 1, dice)
        frames, masks, known = sample.frames[0], sample.masks[0], list(range(recipe.frames))
    if float(masks[0].sum()) < SMALLEST or float(masks[0].mean()) > 0.7:
        return None
    with torch.no_grad():
        try:
            track = propagator.propagate(frames.cpu(), masks[:1].cpu(), [0])
        except CiriError:
            return None
    return HintedClip(
        _bytes(frames[known]),
        _bytes(masks[:, 0]),
        _bytes(track.probs[known, 0]).to(frames.device),
        track.confidence[known].to(frames.device),
    )


def _stretch(bank: Bank, track: tuple[list[int], list[int]], dice: Dice) -> tuple[Tensor, Tensor, list[int]]:
    """A stretch of the real clip around an annotated object, in either direction.

    Returns all its frames (t, 3, h, w), the masks (n, 1, h, w) of those that are annotated, and which these are.
    """
    index, mask = track
    start = dice.below(len(index) - 2)
    end = start + 1
    while end + 1 < len(index) and index[end + 1] - index[start] <= STRETCH:
        end += 1
    at, masks = index[start : end + 1], mask[start : end + 1]
    if dice.chance(0.5):
        at, masks = at[::-1], masks[::-1]
    step = 1 if at[-1] > at[0] else -1
    frames = bank.frames[list(range(at[0], at[-1] + step, step))].float() / 255
    shown = (bank.masks[masks][:, None] > 127).float()
    if dice.chance(0.5):
        frames, shown = frames.flip(-1), shown.flip(-1)
    return film(frames[None], dice)[0], shown, [step * (i - at[0]) for i in at]


class HintedPool:
    """Recent clips, drawn from again and again while new ones are made.

    Args:
        bank: the material.
        seed: of everything; clip n is a function of the seed and n.
        start: number of the first clip.
        capacity: clips held; the oldest leave first.
        reuse: draws of a clip before the next one is made.
        workers: threads that make clips; 0: made between steps, reproducibly.
    """

    def __init__(
        self, bank: Bank, *, seed: int, start: int = 0, capacity: int = 400, reuse: int = 12, workers: int = 0
    ) -> None:
        self.bank, self.seed, self.reuse = bank, seed, reuse
        self.clips: deque[HintedClip] = deque(maxlen=capacity)
        self.made, self.drawn = 0, 0
        self._next = start
        self._propagator = FlowPropagator()
        self._threads = ThreadPoolExecutor(workers) if workers else None
        self._running: deque[Future[HintedClip | None]] = deque()
        self._workers = workers

    def fill(self, count: int) -> None:
        """Make clips until so many are held."""
        while len(self.clips) < min(count, self.clips.maxlen or count):
            self._take()

    def draw(
        self, batch: int, times: int, window: tuple[int, int], dice: Dice, *, enlarge: float = 1.0
    ) -> tuple[Sample, Tensor]:
        """Return a batch and its hints (b, t, 2, h, w).

        The first frame is the clip's; the others are chosen from the rest, in order. Clips are cut to a window that
        the target of the first frame is in.

        Args:
            batch: clips.
            times: frames per clip.
            window: (height, width); at most the bank's size.
            dice: decides everything.
            enlarge: clips are enlarged by 1 to so much, as the propagator enlarges small frames.
        """
        self.drawn += batch
        while self.drawn > self.reuse * self.made:
            self._take()
        drawn = [_window(self.clips[dice.below(len(self.clips))], times, window, dice, enlarge) for _ in range(batch)]
        frames, masks, hints = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        usable = masks[:, 0].sum((1, 2, 3)) >= SMALLEST
        return Sample(frames, masks, usable), spoil(masks, hints, dice)

    def close(self) -> None:
        """Stop making clips."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _make(self, number: int) -> HintedClip | None:
        dice = Dice(self.seed * 1_000_003 + number, self.bank.frames.device)
        return hinted_clip(self.bank, dice, self._propagator)

    def _take(self) -> None:
        """Add one more clip, if what was made is one."""
        if self._threads is None:
            made = self._make(self._next)
            self._next += 1
        else:
            while len(self._running) < 2 * self._workers:
                self._running.append(self._threads.submit(self._make, self._next))
                self._next += 1
            made = self._running.popleft().result()
        self.made += 1
        if made is not None:
            self.clips.append(made)


def _window(
    clip: HintedClip, times: int, size: tuple[int, int], dice: Dice, enlarge: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Frames (t, 3, h, w), masks (t, 1, h, w) and hints (t, 2, h, w) of one drawn clip."""
    count = len(clip.frames)
    if dice.chance(0.3) and count > times:
        # neighbours, late in the clip
        begin = 1 + dice.below(count - times + 1)
        later = list(range(begin, begin + times - 1))
    else:
        later = sorted((1 + torch.randperm(count - 1, generator=dice.host)[: times - 1]).tolist())
        later += [later[-1]] * (times - 1 - len(later))
    at = [0, *later]
    factor = float(dice.uniform(1, low=1.0, high=enlarge)) if enlarge > 1 else 1.0
    h, w = (round(side / factor) for side in size)
    full_h, full_w = clip.frames.shape[-2:]
    ys, xs = torch.nonzero(clip.masks[0] > 127, as_tuple=True)
    chosen = dice.below(len(ys))
    top = min(max(int(ys[chosen]) - dice.below(h), 0), full_h - h)
    left = min(max(int(xs[chosen]) - dice.below(w), 0), full_w - w)
    cut = (slice(top, top + h), slice(left, left + w))
    frames = clip.frames[at][..., cut[0], cut[1]].float() / 255
    masks = (clip.masks[at][:, None, cut[0], cut[1]] > 127).float()
    probs = clip.hints[at][:, None, cut[0], cut[1]].float() / 255
    if factor > 1:
        frames, masks, probs = (
            F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in (frames, masks, probs)
        )
        masks = (masks > 0.5).float()
    sure = clip.certainty[at].view(-1, 1, 1, 1).expand_as(probs)
    hints = torch.cat([probs, sure], 1)
    if dice.chance(0.5):
        frames, masks, hints = frames.flip(-1), masks.flip(-1), hints.flip(-1)
    return frames, masks, hints


def spoil(masks: Tensor, hints: Tensor, dice: Dice) -> Tensor:
    """Take hints away from some clips and make those of others worse: memory has to be listened to as well.

    Args:
        masks: (b, t, 1, h, w), the truth.
        hints: (b, t, 2, h, w).
        dice: decides.

    Returns:
        New hints of the same shape.
    """
    spoiled = hints.clone()
    for clip in range(len(hints)):
        fate = float(torch.rand((), generator=dice.host))
        if fate < UNGUIDED:
            spoiled[clip] = 0
        elif fate < UNGUIDED + SPOILED:
            spoiled[clip, :, :1] = _mistake(masks[clip], hints[clip, :, :1], dice)
    # a frame that claims nothing has lost the target
    spoiled[:, :, 1:] *= (spoiled[:, :, :1].amax((3, 4), keepdim=True) > 0.5).float()
    return spoiled


def _mistake(truth: Tensor, hint: Tensor, dice: Dice) -> Tensor:
    """One of the mistakes that propagators make, in all frames (t, 1, h, w) of a clip."""
    h, w = truth.shape[-2:]
    shift = (dice.below(25) - 12, dice.below(33) - 16)
    kind = dice.below(5)
    if kind == 0:  # it lags behind, or clings to what is beside
        return torch.roll(hint, shift, (-2, -1))
    if kind == 1:  # it leaks
        return torch.maximum(hint, torch.roll(truth, (2 * shift[0], 2 * shift[1]), (-2, -1)))
    if kind == 2:  # a part is missing
        rows = torch.linspace(-1, 1, h, device=truth.device)[:, None]
        columns = torch.linspace(-1, 1, w, device=truth.device)[None]
        a, b = dice.uniform(2, low=-1.0).tolist()
        middle = (truth * (a * rows + b * columns)).sum((-2, -1), keepdim=True) / truth.sum((-2, -1), keepdim=True)
        return hint * (a * rows + b * columns > middle.nan_to_num() + 0.1 * a)
    radius = 2 + dice.below(5)
    if kind == 3:  # too wide
        return F.max_pool2d(hint, 2 * radius + 1, 1, radius)
    return 1 - F.max_pool2d(1 - hint, 2 * radius + 1, 1, radius)


def _bytes(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round().byte()


def stack(clips: Sequence[HintedClip], length: int) -> tuple[Sample, Tensor]:
    """The first ``length`` frames of clips as a sample and its hints, whole frames, nothing spoiled."""
    frames = torch.stack([c.frames[:length] for c in clips]).float() / 255
    masks = (torch.stack([c.masks[:length] for c in clips])[:, :, None] > 127).float()
    probs = torch.stack([c.hints[:length] for c in clips])[:, :, None].float() / 255
    sure = torch.stack([c.certainty[:length] for c in clips])[..., None, None, None].expand_as(probs)
    return Sample(frames, masks, masks[:, 0].sum((1, 2, 3)) >= SMALLEST), torch.cat([probs, sure], 2)
