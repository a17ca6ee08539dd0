"""Masks that dropped out are bridged: the propagator, given the masks on both sides, fills in what lies between.

Dimensions: T frames, n of them, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.numbering import ranges
from ciri.progress import OnStep, ignore, part
from ciri.propagation.base import Propagator
from ciri.refinement.dropouts import compact, dropouts, runs, short_runs
from ciri.refinement.growth import CONNECTED_WITHIN, LEAST_SEED, MOST_GROWTH, touching
from ciri.shots import shots

#: What is added has to fill this share of the target with discs; what is less is a rim, or a guess.
GAINED = 0.05
#: The propagator has to be so confident of a frame: where it lost the target, what it adds is as likely wrong as right.
CONFIDENT = 0.5
#: Masks on each side of a dropout that the propagator is given.
ANCHORS = 1
#: Of so many frames in a row, the one whose mask covers least is asked about first. Most of what only seems to have
#: dropped out is a limb that swings, and then one answer tells.
PROBED = 3
#: Masks are carried through what is around them: this share of their larger side, and so many pixels at least.
MARGIN, LEAST_MARGIN = 0.2, 24
#: Half the width in pixels of what is no more than a rim.
RIM = 1


def bridged_masks(
    frames: Tensor, masks: Tensor, propagator: Propagator, on_step: OnStep = ignore
) -> tuple[Tensor, list[str]]:
    """Return masks (T, 1, H, W) that are whole where they had dropped out, and sentences that say where.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1], as filmed.
        masks: float32 (T, 1, H, W) in [0, 1], of any origin.
        propagator: what carries masks.
        on_step: progress callback; may raise to stop.
    """
    found, said = mend(frames, masks, (), frozenset(), propagator, on_step)
    return torch.stack([found.get(t, mask) for t, mask in enumerate(masks)]), said


def mend(
    frames: Tensor,
    masks: Tensor,
    suspicious: Sequence[int],
    fixed: Set[int],
    propagator: Propagator | None,
    on_step: OnStep,
) -> tuple[dict[int, Tensor], list[str]]:
    """Carry masks into frames that dropped out, and into suspicious ones if the frames around them are not.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1], as filmed.
        masks: float32 (T, 1, H, W) in [0, 1].
        suspicious: frames in which something else says that a part is missing.
        fixed: frames whose masks stay.
        propagator: what carries them; None: it is only said which frames dropped out.
        on_step: progress callback; may raise to stop.

    Returns:
        As :func:`bridge`, and sentences for the person who started this.
    """
    dropped = set(dropouts(masks, fixed))
    if propagator is None:
        said = f"Masks seem to drop out in frames {ranges(sorted(dropped))}: with a propagator they would be bridged."
        return {}, [said] if dropped else []
    mended = bridge(frames, masks, dropped.union(short_runs(dropped.union(suspicious))), propagator, on_step)
    return mended, bridged_in(list(mended), propagator)


def bridged_in(frames: Sequence[int], propagator: Propagator) -> list[str]:
    """The sentence about frames, in order, whose masks were bridged; none where there are none."""
    said = f"Masks had dropped out in frames {ranges(frames)}: {propagator.name} bridged them from those around."
    return [said] if frames else []


def bridge(
    frames: Tensor, masks: Tensor, missing: Set[int], propagator: Propagator, on_step: OnStep
) -> dict[int, Tensor]:
    """Propagate masks into the frames between them; return those that cover clearly more than before.

    Nothing is carried from one shot into another.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1], as filmed.
        masks: float32 (T, 1, H, W) in [0, 1].
        missing: the frames whose masks are not to be trusted.
        propagator: what carries the others there.
        on_step: progress callback; may raise to stop.

    Returns:
        frame -> mask, float32 (1, H, W) in [0, 1], nowhere below the given one.
    """
    if not missing:
        return {}
    carrier = _Carrier(frames, masks, missing, propagator, on_step)
    long = [run for run in runs(sorted(missing), 1) if len(run) >= PROBED]
    in_vain: set[int] = set()
    for number, run in enumerate(long):
        if not carrier.probe(run, part(on_step, number / (2 * len(long)), (number + 1) / (2 * len(long)))):
            in_vain.update(run)
    rest = part(on_step, 0.5 if long else 0, 1)
    windows = list(_windows(sorted(missing - in_vain), len(frames)))
    found: dict[int, Tensor] = {}
    for number, window in enumerate(windows):
        found |= carrier.carry(window, part(rest, number / len(windows), (number + 1) / len(windows)))
    return found


class _Carrier:
    """Carries trusted masks into the frames between them; the arguments are those of :func:`bridge`."""

    def __init__(
        self, frames: Tensor, masks: Tensor, missing: Set[int], propagator: Propagator, on_step: OnStep
    ) -> None:
        self.frames, self.masks, self.missing, self.propagator = frames, masks, missing, propagator
        self.shots = shots(frames, on_step=part(on_step, 0, 0))

    def probe(self, run: Sequence[int], on_step: OnStep) -> bool:
        """Whether anything comes back in the frame of a run whose mask covers least."""
        least = min(run, key=lambda t: int((self.masks[t] > 0.5).sum()))
        at = [t for t in (run[0] - 1, least, run[-1] + 1) if 0 <= t < len(self.frames)]
        return bool(self.carry(at, on_step))

    def carry(self, at: Sequence[int], on_step: OnStep) -> dict[int, Tensor]:
        """Masks (1, H, W) of those of some frames, in order, that are missing and of which more is found."""
        alike = [[t for t in at if t in shot] for shot in self.shots]
        alike = [frames for frames in alike if not self.missing.isdisjoint(frames)]
        found: dict[int, Tensor] = {}
        for number, frames in enumerate(alike):
            found |= self._carry(frames, part(on_step, number / len(alike), (number + 1) / len(alike)))
        return found

    def _carry(self, at: Sequence[int], on_step: OnStep) -> dict[int, Tensor]:
        """As :meth:`carry`, within one shot."""
        masks = self.masks[list(at)]
        rows, columns = _neighbourhood(masks)
        near, frames = masks[:, :, rows, columns], self.frames[:, :, rows, columns][list(at)]
        # a mask that is empty or covers everything tells nothing
        keys = [i for i, t in enumerate(at) if t not in self.missing and (near[i] > 0.5).unique().numel() == 2]
        if not keys:
            return {}
        track = self.propagator.propagate(frames, near[keys], keys, on_step=on_step)
        found = {}
        for i, t in enumerate(at):
            if t in self.missing and float(track.confidence[i]) >= CONFIDENT:
                carried = torch.zeros_like(masks[i])
                carried[:, rows, columns] = track.probs[i].to(masks)
                bridged = _with_parts(masks[i], carried, masks[keys] > 0.5)
                if bridged is not None:
                    found[t] = bridged
        return found


def _neighbourhood(masks: Tensor) -> tuple[slice, slice]:
    """Rows and columns around everything that masks (n, 1, H, W) cover: what a mask is carried through."""
    shown = (masks > 0.5).any(0)[0]
    if not shown.any():
        return slice(None), slice(None)
    ends = [torch.nonzero(shown.any(axis))[[0, -1], 0].tolist() for axis in (1, 0)]
    margin = max(round(MARGIN * max(last - first for first, last in ends)), LEAST_MARGIN)
    rows, columns = (slice(max(first - margin, 0), last + 1 + margin) for first, last in ends)
    return rows, columns


def _with_parts(old: Tensor, new: Tensor, around: Tensor) -> Tensor | None:
    """The old mask (1, H, W) with the new one's parts that are more than a rim; None if they are too small or large.

    ``around`` are the masks that were carried, bool (k, 1, H, W).
    """
    areas = around.flatten(1).sum(1).float()
    area = float(areas.median())
    before = (old > 0.5)[0].cpu().numpy()
    more = (new > 0.5)[0].cpu().numpy() & ~before
    square = np.ones((2 * RIM + 1,) * 2, np.uint8)
    cores = cv2.morphologyEx(more.astype(np.uint8), cv2.MORPH_OPEN, square)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(cores, connectivity=8)
    large = np.isin(labels, [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= LEAST_SEED])
    # where there was nothing of the target before or after, there is nothing in between
    large = touching(large, before | around.any(0)[0].cpu().numpy(), CONNECTED_WITHIN * np.sqrt(area))
    kept = (cv2.dilate(large.astype(np.uint8), square) > 0) & more
    if compact(kept, area) < GAINED or (kept | before).sum() > (1 + MOST_GROWTH) * float(areas.max()):
        return None
    # the soft rim of what is kept comes along, but nothing else of what is not
    near = torch.from_numpy(cv2.dilate(kept.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0).to(old.device)
    left_out = torch.from_numpy(more & ~kept).to(old.device)
    return torch.where(near, torch.maximum(old, torch.where(left_out, new.clamp(max=0.49), new)), old)


def _windows(missing: Sequence[int], count: int) -> Iterator[range]:
    """Stretches of a clip of ``count`` frames around the missing ones, with anchors on both sides."""
    for run in runs(missing, 2 * ANCHORS):
        yield range(max(run[0] - ANCHORS, 0), min(run[-1] + 1 + ANCHORS, count))
