"""The last word on a refinement: which masks, parts of masks and pictures of a clip are taken, and which are not.

Dimensions: T frames, n of them, H W pixels.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ciri.progress import OnStep, parts
from ciri.refinement import acceptance
from ciri.refinement.clock import Clock
from ciri.refinement.product import shown_under
from ciri.refinement.settings import RefinementSettings
from ciri.refinement.watch import SUSPICIOUS_PAIR, Watch, updated
from ciri.residue.detect import Residue


@dataclass(frozen=True)
class Pictures:
    """A clip before and after it was painted again.

    Attributes:
        frames: float32 (T, 3, H, W), as filmed.
        masks: float32 (T, 1, H, W), the old masks.
        inpainted: float32 (T, 3, H, W), filled with the old masks.
        grown: float32 (T, 1, H, W), masks that cover the residue.
        painted: float32 (T, 3, H, W), filled with these.
    """

    frames: Tensor
    masks: Tensor
    inpainted: Tensor
    grown: Tensor
    painted: Tensor


class Judge:
    """Decides frame by frame.

    Args:
        watch: the detector.
        before: the residue of the clip as it was given.
        pictures: what there is to choose from.
        settings: how masks are grown and feathered for a picture.
        clock: ends the work when the time budget is spent.
        known: frame -> map (1, H, W) and score of its painted picture, where it was looked at already.
        vouched: frames whose new mask the masks of their neighbours speak for; there the detector, which sees little of
            what is thin, may only object: if it calls the new picture suspicious.
        share: of its box that the target fills (:func:`ciri.residue.crops.share_of_box`).
    """

    def __init__(
        self,
        watch: Watch,
        before: Residue,
        pictures: Pictures,
        settings: RefinementSettings,
        clock: Clock,
        known: dict[int, tuple[Tensor, Tensor]],
        vouched: Collection[int] = (),
        share: float = 1.0,
    ) -> None:
        self.watch, self.before, self.pictures, self.known = watch, before, pictures, known
        self.settings, self.clock = settings, clock
        self.vouched, self.share = set(vouched), share
        given, painted = pictures.inpainted, pictures.painted
        self.touched = [t for t in range(len(given)) if not torch.equal(painted[t], given[t])]
        self.row = {t: row for row, t in enumerate(self.touched)}

    def decide(
        self, refined: Tensor, most: dict[int, float], reasons: dict[int, str], on_step: OnStep
    ) -> tuple[Tensor, Tensor, Residue]:
        """Return masks, pictures and residue of the clip with everything that stood the test.

        Args:
            refined: float32 (T, 1, H, W), the new masks, nowhere beyond the grown ones.
            most: frame -> pixels that its mask may cover.
            reasons: frame -> why it is not changed; empty where it may be. Updated.
            on_step: progress callback.
        """
        masks = self._masks_that_hold(refined, most, reasons)
        new = self._show(self.touched, masks)
        first, second, third = (self.clock.watched(step) for step in parts(on_step, 3))
        seen = self._look(new, masks, first)
        seen = self._parts_that_help(masks, new, seen, reasons, second)
        changed = [t for t in self.touched if not torch.equal(masks[t], self.pictures.masks[t])]
        keep = self._pictures_that_hold(new, changed, seen, reasons, third)
        for t in changed:
            if t not in keep:
                masks[t] = self.pictures.masks[t]
        inpainted = self.pictures.inpainted.clone()
        inpainted[keep] = new[self._rows(keep)]
        after = updated(self.before, keep, Residue(seen.maps[keep], seen.scores[keep], []))
        on_step(1, 1)
        return masks, inpainted, after

    def _look(self, new: Tensor, masks: Tensor, on_step: OnStep) -> Residue:
        """The residue of the clip with all new pictures; no picture is looked at twice."""
        p = self.pictures
        same = [t for t in self.known if t in self.touched and torch.equal(masks[t], p.grown[t])]
        seen = self.before
        if same:
            maps, scores = zip(*(self.known[t] for t in same), strict=True)
            seen = updated(seen, same, Residue(torch.stack(maps), torch.stack(scores), []))
        at = [t for t in self.touched if t not in same]
        return updated(seen, at, self.watch.look(new[self._rows(at)], at, on_step))

    def _rows(self, at: list[int]) -> list[int]:
        """Where the new pictures of some touched frames are."""
        return [self.row[t] for t in at]

    def _show(self, at: list[int], masks: Tensor) -> Tensor:
        """The painted pictures (n, 3, H, W), shown under these masks only."""
        p = self.pictures
        return shown_under(p.frames, p.painted, p.grown, masks, at, self.settings)

    def _masks_that_hold(self, refined: Tensor, most: dict[int, float], reasons: dict[int, str]) -> Tensor:
        masks = self.pictures.masks.clone()
        for t in [t for t, reason in reasons.items() if not reason]:
            reasons[t] = acceptance.mask_fault(
                refined[t], masks[t], self.watch.boxes[t], most[t], bridged=t in self.vouched
            )
            if t not in self.touched:
                reasons[t] = "painting over it changed nothing"
            if not reasons[t]:
                masks[t] = refined[t]
        return masks

    def _parts_that_help(
        self, masks: Tensor, new: Tensor, seen: Residue, reasons: dict[int, str], on_step: OnStep
    ) -> Residue:
        """Take back every added part that was painted over in vain, in the masks and the pictures, in place."""
        trimmed = []
        for t in [t for t, reason in reasons.items() if not reason and t not in self.vouched]:
            old = self.pictures.masks[t]
            kept = acceptance.useful_growth(masks[t], old, self.before.maps[t], seen.maps[t], self.watch.threshold)
            if not ((kept > 0.5) & (old <= 0.5)).any():
                kept, reasons[t] = old, "painting over it did not make the residue go"
            if not torch.equal(kept, masks[t]):
                masks[t] = kept
                trimmed.append(t)
        if not trimmed:
            return seen
        again = self._show(trimmed, masks)
        new[self._rows(trimmed)] = again
        return updated(seen, trimmed, self.watch.look(again, trimmed, on_step))

    def _pictures_that_hold(
        self, new: Tensor, changed: list[int], seen: Residue, reasons: dict[int, str], on_step: OnStep
    ) -> list[int]:
        """The frames whose new picture is taken."""
        threshold = self.watch.threshold
        tolerated = acceptance.TOLERATED * (1 - threshold)
        was, now = self.before.scores.tolist(), seen.scores.tolist()
        keep = [t for t in self.touched if t not in changed and now[t] <= was[t] + tolerated]
        quiet = SUSPICIOUS_PAIR * (1 - threshold) * self.share
        vouched = [t for t in changed if t in self.vouched and now[t] <= max(was[t] + tolerated, quiet)]
        tried = [t for t in changed if t not in self.vouched]
        falling = [t for t in tried if acceptance.falls_enough(was[t], now[t], threshold)]
        if falling:
            pictures = self.pictures.inpainted[falling], new[self._rows(falling)]
            steps = parts(on_step, 2)
            old, left = (self.watch.judge(x, falling, step).tolist() for x, step in zip(pictures, steps, strict=True))
            falling = [
                t for t, a, b in zip(falling, old, left, strict=True) if acceptance.falls_enough(a, b, threshold)
            ]
        taken = falling + vouched
        for t in changed:
            if t not in taken:
                reasons[t] = (
                    "the finished picture looks suspicious to the detector"
                    if t in self.vouched
                    else "the residue did not fall enough in the finished picture"
                )
        # without a mask that changed there is nothing that a neighbour's picture could follow from
        return sorted(keep + taken) if taken else []
