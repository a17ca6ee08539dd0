"""From a heat map to a mask: what the detector sees outside the mask, given the shape that the picture gives it.

A response map is blurred by half a dozen pixels and says "here", not "up to here". So strong responses are seeds,
faint ones count where they touch a seed and look like the target, and a guided filter moves the edge onto the frame's.
What is not connected with the mask is another thing and stays, and a mask may grow only so far.

Dimensions: h w pixels of the frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.frames import grow_mask
from ciri.propagation.guided_filter import guided_filter
from ciri.propagation.tracker import sharpen
from ciri.refinement.company import Company
from ciri.residue.base import Box
from ciri.residue.crops import search_window

GUIDE_RADIUS, GUIDE_EPSILON = 8, 1e-3
#: Half the width in pixels of a strip between mask and seeds that is taken for target too.
BRIDGED = 6
#: Response from this share of the threshold on counts where it touches a strong one and looks like the target.
FAINT = 0.4
#: A pixel looks like the target from this score on (trained to +1 on it, -1 off it).
ALIKE = 0.3
#: Log odds that the two opinions are worth.
RESPONSE_GAIN, LOOKS_GAIN = 4.0, 8.0
#: A seed's response is at least this share of the strongest that the fill hides within so many pixels.
SPILL, SPILL_REACH = 0.9, 10
#: A seed that is farther from the mask than this share of the box's side belongs to something else of the scene.
CONNECTED_WITHIN = 0.15
#: Seeds of fewer pixels, and of a smaller share of the box, are noise.
LEAST_SEED, LEAST_SEED_SHARE = 12, 0.004
#: A detector that answers in more than this share of its window outside the mask knows nothing.
EVERYWHERE = 0.5
#: How far a mask may grow: this share of what the target usually covers, and of its box.
MOST_GROWTH, GROWTH_OF_BOX = 0.35, 0.02

Part = tuple[slice, slice]


@dataclass(frozen=True)
class Growth:
    """A mask that covers the residue too.

    Attributes:
        mask: float32 (1, H, W) in [0, 1], nowhere below the given mask.
        reason: why nothing was added; empty if something was.
    """

    mask: Tensor
    reason: str = ""


def grow_over_residue(
    frame: Tensor,
    mask: Tensor,
    response: Tensor,
    hidden: Tensor,
    looks: np.ndarray,
    box: Box,
    *,
    threshold: float,
    most_area: float,
) -> Growth:
    """Grow a mask over what the detector found beside it.

    Args:
        frame: float32 (3, H, W) in [0, 1], as it was filmed.
        mask: float32 (1, H, W) in [0, 1].
        response: float32 (1, H, W) in [0, 1], the detector's.
        hidden: bool (1, H, W), pixels that the fill hides already: residue there is no lack of mask.
        looks: float32 (H, W), how much each pixel looks like the target: +1 very much, -1 not at all.
        box: the target's.
        threshold: of the detector.
        most_area: pixels that the new mask may cover.
    """
    part = _inside(search_window(box), (int(frame.shape[1]), int(frame.shape[2])))
    old, found = mask[0][part].numpy(), response[0][part].numpy()
    covered = hidden[0][part].numpy()
    if ((found > threshold) & ~covered).sum() > EVERYWHERE * (old <= 0.5).sum():
        return Growth(mask, "the detector answers almost everywhere, which says nothing")
    view = _View(old, found, covered, looks[part], threshold)
    seeds = _connected_seeds(view.seeds(), old > 0.5, box)
    if not seeds.any():
        return Growth(mask, "what is left lies inside the mask, is not connected with it, or does not look like it")
    image = frame[(slice(None), *part)].permute(1, 2, 0).numpy()
    soft = _bounded(_shaped(image, old, view.evidence(seeds), seeds), old, found, most_area)
    added = (soft > 0.5) & (old <= 0.5)
    # the bound may have cut a bridge
    apart = added & ~touching(added, old > 0.5, _gap(box))
    soft = np.where(apart, np.minimum(soft, 0.49), soft).astype(np.float32)
    if not ((soft > 0.5) & (old <= 0.5)).any():
        return Growth(mask, "the mask may not grow any further")
    grown = mask.clone()
    grown[0][part] = torch.from_numpy(np.maximum(soft, old))
    return Growth(grown)


def without_scene(grown: Tensor, mask: Tensor, t: int, company: Company) -> tuple[Tensor, str]:
    """Return a grown mask (1, H, W) without the parts that do not travel with the target, and why none is left.

    Args:
        grown, mask: float32 (1, H, W) in [0, 1].
        t: their frame.
        company: of the clip.
    """
    scene = company.staying_behind(t, ((grown > 0.5) & (mask <= 0.5))[0].numpy())
    if not scene.any():
        return grown, ""
    # their soft rim goes with them
    rim = cv2.dilate(scene.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    kept = torch.where(torch.from_numpy(rim), mask, grown)
    if not ((kept > 0.5) & (mask <= 0.5)).any():
        return mask, "what was found does not travel with the target"
    return kept, ""


def worth_asking(response: Tensor, threshold: float) -> Tensor:
    """bool (1, H, W): the pixels whose looks can matter, in and around the faint responses (1, H, W)."""
    faint = (response > FAINT * threshold)[0].numpy()
    return torch.from_numpy(_near(faint))[None]


def usual_area(masks: Tensor, annotated: Tensor) -> float:
    """What the target usually covers, in pixels: the median over the frames that show it, the annotated one included.

    A frame in which a third of the target was lost may grow to what its neighbours have.
    """
    areas = [*(masks > 0.5).flatten(1).sum(1).tolist(), int((annotated > 0.5).sum())]
    return float(np.median([area for area in areas if area] or [0]))


def most_area(area: float, usual: float, box: Box, strength: float = 1.0) -> float:
    """Pixels that a mask of so many may cover after it has grown."""
    return max(area, min(usual, 2 * area)) * (1 + MOST_GROWTH * strength) + GROWTH_OF_BOX * box.width * box.height


def touching(added: np.ndarray, mask: np.ndarray, reach: float) -> np.ndarray:
    """The components of ``added`` that come within ``reach`` pixels of the mask, or of another that does; bool."""
    if not added.any() or not mask.any():
        return np.zeros_like(added)
    half = max(1, int(reach / 2))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * half + 1, 2 * half + 1))
    # what touches once both are widened by half is at most so far apart
    _, labels = cv2.connectedComponents(cv2.dilate((added | mask).astype(np.uint8), disc))
    return added & np.isin(labels, np.unique(labels[mask]))


def _connected_seeds(seen: np.ndarray, mask: np.ndarray, box: Box) -> np.ndarray:
    """What is large enough, and near enough to the mask, to be a part of the target; bool (h, w)."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(seen.astype(np.uint8), connectivity=8)
    least = max(LEAST_SEED, LEAST_SEED_SHARE * box.width * box.height)
    large = np.isin(labels, [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= least])
    return touching(large & seen, mask, _gap(box))


def _gap(box: Box) -> float:
    return CONNECTED_WITHIN * math.sqrt(box.width * box.height)


@dataclass(frozen=True)
class _View:
    """The search window of a frame: mask, response, hidden pixels, looks (h, w each), and the detector's threshold."""

    old: np.ndarray
    found: np.ndarray
    hidden: np.ndarray
    looks: np.ndarray
    threshold: float

    def belief(self) -> np.ndarray:
        """How surely each pixel is target, from response and looks together: float32 (h, w) in [0, 1]."""
        faint = FAINT * self.threshold
        response = np.clip((self.found - faint) / (self.threshold - faint), 0, 1.5)
        odds = RESPONSE_GAIN * (response - 0.5) + LOOKS_GAIN * np.clip(self.looks, -1.5, 1.5)
        return np.where(self.found > faint, 1 / (1 + np.exp(-odds)), 0).astype(np.float32)

    def seeds(self) -> np.ndarray:
        """bool (h, w): strong visible responses that look like the target, and what is likely and touches them."""
        reach = np.ones((2 * SPILL_REACH + 1,) * 2, np.uint8)
        within = cv2.dilate(np.where(self.hidden, self.found, 0).astype(np.float32), reach)
        # a response that is stronger under the fill is the fill's, and only spills over
        strong = (self.found > self.threshold) & (self.looks > ALIKE) & ~self.hidden & (self.found >= SPILL * within)
        likely = strong | ((self.belief() > 0.5) & ~self.hidden)
        _, labels = cv2.connectedComponents(likely.astype(np.uint8))
        return likely & np.isin(labels, np.unique(labels[strong]))

    def evidence(self, seeds: np.ndarray) -> np.ndarray:
        """How surely each pixel beside the mask is target, given the accepted seeds: float32 (h, w) in [0, 1]."""
        # between mask and seeds the fill hides a strip of the target, in which nothing can be found
        target = self.old > 0.5
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * BRIDGED + 1, 2 * BRIDGED + 1))
        closed = cv2.morphologyEx((seeds | target).astype(np.uint8), cv2.MORPH_CLOSE, disc) > 0
        strip = closed & self.hidden & ~target & (self.looks > ALIKE)
        return np.where(_near(seeds), np.where(strip, 1, self.belief()), 0).astype(np.float32)


def _shaped(image: np.ndarray, old: np.ndarray, evidence: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The old mask and the evidence together, their edge on the picture's edges: float32 (h, w) in [0, 1]."""
    together = np.maximum(evidence, old).astype(np.float32)
    guided = sharpen(guided_filter(image.astype(np.float32), together, GUIDE_RADIUS, GUIDE_EPSILON)).on(image)
    sure = np.maximum(seeds, evidence >= 1) * np.maximum(evidence, 0.51)
    return np.where(_near(seeds), np.maximum(guided, sure), old).astype(np.float32)


def _near(seeds: np.ndarray) -> np.ndarray:
    """bool: within reach of the guided filter."""
    return cv2.dilate(seeds.astype(np.uint8), np.ones((2 * GUIDE_RADIUS + 1,) * 2, np.uint8)) > 0


def _bounded(soft: np.ndarray, old: np.ndarray, found: np.ndarray, most: float) -> np.ndarray:
    """Leave out the least certain of what was added until the mask covers at most so many pixels."""
    added = np.flatnonzero((soft > 0.5) & (old <= 0.5))
    room = max(0, int(most) - int((old > 0.5).sum()))
    if len(added) <= room:
        return soft
    # many are certain alike; then the response decides
    order = np.argsort(-(soft.ravel()[added] + found.ravel()[added]), kind="stable")
    left_out = added[order[room:]]
    soft = soft.copy()
    soft.ravel()[left_out] = np.minimum(soft.ravel()[left_out], 0.49)
    return soft


def _inside(window: Box, size: tuple[int, int]) -> Part:
    rows = slice(max(window.y, 0), max(0, min(window.y + window.height, size[0])))
    return rows, slice(max(window.x, 0), max(0, min(window.x + window.width, size[1])))


def shown_by(mask: Tensor, grow: int) -> Tensor:
    """bool: the pixels that the fill hides wholly for masks (n, 1, H, W)."""
    return grow_mask((mask > 0.5).to(mask), grow) > 0.5
