"""The detector at work on one clip: fixed template, fixed boxes, and scores that a lucky crop cannot fake.

Dimensions: T frames, n of them, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ciri.progress import OnStep, ignore
from ciri.residue.base import Box, Removal, ResidueDetector
from ciri.residue.crops import paste_map, search_window
from ciri.residue.detect import Residue, in_batches
from ciri.residue.score import score

#: Share of the target's box that may answer beside the mask of the annotated frame, and the largest threshold.
FALSE_SHARE, HIGHEST_THRESHOLD = 0.01, 0.95
#: No mask is moved by a response below this, however sure of itself a detector is.
LEAST_THRESHOLD = 0.4
#: For judging, boxes are moved by at most this share of their size, and made larger or smaller by at most this one.
JITTER_SHIFT, JITTER_SCALE = 0.05, 0.06
#: A target with a shorter side is too small: enlarging it to the detector's input enlarges the noise.
LEAST_TARGET = 24

#: A frame is suspicious from this score on, or from the second if a neighbour reaches it too. In areas of the target
#: itself, not of its box, of which a rider on a bicycle fills a third; and for a residue that is seen for certain: what
#: a pixel can score at most is 1 - tau.
SUSPICIOUS, SUSPICIOUS_PAIR = 0.12, 0.06
#: The second counts only in clips where a frame reaches the first, or two in a row reach this: of a part that is really
#: left, more shows somewhere.
CERTAIN_PAIR = 0.09


@dataclass(frozen=True)
class Watch:
    """A detector that looks for one target in one clip.

    Attributes:
        detector: frozen.
        template: of the annotated target.
        boxes: where it looks in every frame; they do not change while masks do.
        removal: of the clip as it was given. It does not change either: a mask that grows must not be believed
            for having grown, only the picture counts.
        threshold: response below which nothing counts in this clip; at least the detector's own.
        seed: of the jitter.
    """

    detector: ResidueDetector
    template: Any
    boxes: list[Box]
    removal: Removal
    threshold: float
    seed: int = 0

    def look(self, frames: Tensor, at: Sequence[int], on_step: OnStep = ignore) -> Residue:
        """Return the residue in some frames (n, 3, H, W); the lists are n long, in the order of ``at``."""
        return self.residue(self.answers(frames, at, on_step), at)

    @torch.no_grad()
    def answers(self, frames: Tensor, at: Sequence[int], on_step: OnStep = ignore) -> list[Tensor]:
        """Return the detector's logits (1, h, w) for each of some frames (n, 3, H, W), on the CPU."""
        found: list[Tensor] = []

        def one(part: slice) -> None:
            found.extend(self.logits(frames[part], at[part]).cpu())

        in_batches(len(at), one, on_step=on_step)
        return found

    def residue(self, answers: Sequence[Tensor], at: Sequence[int]) -> Residue:
        """What the detector's answers to the frames ``at`` come to."""
        boxes = [self.boxes[t] for t in at]
        maps = torch.zeros(len(at), 1, *self.size)
        for i, (answer, box) in enumerate(zip(answers, boxes, strict=True)):
            maps[i] = paste_map(answer.sigmoid(), search_window(box), self.size)
        return Residue(maps, self.scores(answers, at), list(boxes))

    def scores(self, answers: Sequence[Tensor], at: Sequence[int]) -> Tensor:
        """The scores (n,) of :meth:`residue`: what is above the threshold of this clip."""
        found = [score(a[None], [self.boxes[t]], self.size, self.threshold) for a, t in zip(answers, at, strict=True)]
        return torch.cat(found) if found else torch.zeros(0)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the frames."""
        return self.removal.filmed.shape[2], self.removal.filmed.shape[3]

    @torch.no_grad()
    def judge(self, frames: Tensor, at: Sequence[int], on_step: OnStep = ignore) -> Tensor:
        """Return scores (n,) of pictures (n, 3, H, W), seen in other crops than :meth:`look` does.

        A mask that was made to fool one crop may not fool another. The crop of a frame is the same at every call.
        """
        scores = torch.zeros(len(at))
        boxes = [self._jittered(t) for t in at]

        def one(part: slice) -> None:
            logits = self.logits(frames[part], at[part], boxes[part])
            # in areas of the true box: a jittered one would change the unit
            unit = torch.tensor([_area(b) / _area(self.boxes[t]) for b, t in zip(boxes[part], at[part], strict=True)])
            scores[part] = score(logits, boxes[part], self.size, self.threshold).cpu() * unit

        in_batches(len(at), one, on_step=on_step)
        return scores

    def logits(self, frames: Tensor, at: Sequence[int], boxes: Sequence[Box] | None = None) -> Tensor:
        """The detector's answer, float32, to pictures of the frames ``at``; gradients flow to the pictures."""
        boxes = [self.boxes[t] for t in at] if boxes is None else boxes
        device = self.detector.device
        removal = Removal(*(x[list(at)].to(device) for x in self.removal))
        return self.detector.detect(self.template, frames.to(device), boxes, removal).float()

    def _jittered(self, t: int) -> Box:
        """The box of a frame, moved and scaled a little."""
        box = self.boxes[t]
        random = np.random.default_rng((self.seed, t, 0))
        dx, dy = random.uniform(-JITTER_SHIFT, JITTER_SHIFT, 2)
        scale = 1 + random.uniform(-JITTER_SCALE, JITTER_SCALE)
        width, height = max(1, round(box.width * scale)), max(1, round(box.height * scale))
        x = round(box.x + dx * box.width + (box.width - width) / 2)
        y = round(box.y + dy * box.height + (box.height - height) / 2)
        return Box(x, y, width, height)


def least_threshold(detector: ResidueDetector) -> float:
    """The detector's threshold, but no faint one: what it hardly notices may be shown, but moves no mask."""
    return max(detector.threshold, LEAST_THRESHOLD)


def threshold_of(detector: ResidueDetector, residue: Residue, known: int, hidden: Tensor) -> float:
    """The response from which on something counts in this clip.

    In the annotated frame the mask is true, so every response beside it is a false alarm: something of the scene that
    the detector takes for the target. What is no stronger elsewhere does not count either.

    Args:
        detector: what looked.
        residue: of the clip.
        known: the annotated frame.
        hidden: bool (1, H, W), what the fill hides there.
    """
    beside = residue.maps[known][~hidden]
    box, least = residue.boxes[known], least_threshold(detector)
    if box is None or not len(beside):
        return least
    # single pixels may answer by chance
    rank = max(1, round(FALSE_SHARE * box.width * box.height))
    false = float(beside.topk(min(rank, len(beside))).values[-1])
    return max(least, min(false, HIGHEST_THRESHOLD))


def _area(box: Box) -> int:
    return box.width * box.height


def suspects(residue: Residue, threshold: float = 0.0, share: float = 1.0) -> list[int]:
    """Frames whose score says that something is left: clearly, or a little in two frames running of such a clip.

    Args:
        residue: of the clip.
        threshold: of the detector that found it.
        share: of its box that the target fills (:func:`ciri.residue.crops.share_of_box`).
    """
    scores = (residue.scores / (1 - threshold) / share).tolist()
    clear = {t for t, score in enumerate(scores) if score > SUSPICIOUS}
    if not (clear or _pairs(scores, CERTAIN_PAIR)):
        return []
    return sorted(clear | _pairs(scores, SUSPICIOUS_PAIR))


def _pairs(scores: Sequence[float], least: float) -> set[int]:
    """The frames above a score that have a neighbour above it."""
    above = {t for t, score in enumerate(scores) if score > least}
    return {t for t in above if above & {t - 1, t + 1}}


def updated(residue: Residue, at: Sequence[int], new: Residue) -> Residue:
    """The residue of a clip with that of some frames replaced."""
    maps, scores = residue.maps.clone(), residue.scores.clone()
    maps[list(at)], scores[list(at)] = new.maps, new.scores
    return replace(residue, maps=maps, scores=scores)
