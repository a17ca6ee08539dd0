"""What a new mask, and the picture that comes of it, have to show before they are taken.

A detector is a network with a gradient: masks can be found that silence it and remove nothing. So masks are bounded
before they are painted, every added part has to make its own residue go, and the frame as a whole is judged on crops
that the optimisation did not see.

Dimensions: h w pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from ciri.frames import grow_mask
from ciri.refinement.growth import CONNECTED_WITHIN, touching
from ciri.residue.base import Box

#: Pixels by which the old mask is eroded, and the share of what is left that a new mask may lose.
CORE_EROSION, CORE_LOSS = 3, 0.02
#: An added part stays if what is left of its residue is at most this share.
PART_REMAINS = 0.6
#: A picture is taken if its score falls to this share, and by at least so much (in target areas, seen for certain).
#: True residue falls to a tenth; what fell to two thirds was the scene's (held-back composites).
FALLS_TO, FALLS_BY = 0.5, 0.007
#: A picture of an unchanged mask may score this much more than before.
TOLERATED = 0.003


def mask_fault(new: Tensor, old: Tensor, box: Box, most_area: float, *, bridged: bool = False) -> str:
    """Say what is wrong with a new mask (1, H, W); empty if nothing is.

    A bridged one was carried from frames around: the old one may be empty there, or lack a part that is not connected.
    """
    hard, before = new > 0.5, old > 0.5
    if not hard.any() or not (before.any() or bridged):
        return "the mask is empty"
    if int(hard.sum()) > most_area:
        return "the mask would grow too far"
    core = grow_mask(before.float()[None], -CORE_EROSION)[0] > 0.5
    if core.any() and int((core & ~hard).sum()) > CORE_LOSS * int(core.sum()):
        return "the mask would lose what it surely covers"
    added = (hard & ~before)[0].numpy()
    near = touching(added, before[0].numpy(), CONNECTED_WITHIN * np.sqrt(box.width * box.height))
    if not bridged and (added & ~near).any():
        return "the mask would take in something that is not connected with it"
    return ""


def useful_growth(new: Tensor, old: Tensor, before: Tensor, after: Tensor, threshold: float) -> Tensor:
    """Return the new mask (1, H, W) without the added parts, and pixels, whose residue stayed when painted over.

    Args:
        new, old: (1, H, W) masks.
        before, after: (1, H, W) responses with the old and with the new mask.
        threshold: of the detector.
    """
    added = ((new > 0.5) & (old <= 0.5))[0].numpy()
    count, labels = cv2.connectedComponents(added.astype(np.uint8), connectivity=8)
    was, left = ((r[0].numpy() - threshold).clip(min=0) for r in (before, after))
    useless = np.zeros_like(added)
    for label in range(1, count):
        here = cv2.dilate((labels == label).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        if was[here].sum() == 0 or left[here].sum() > PART_REMAINS * was[here].sum():
            useless |= labels == label
    # and within a part that helped, the pixels that it did not help
    useless |= added & (left > PART_REMAINS * was) & (left > 0)
    if not useless.any():
        return new
    # their soft rim goes with them
    rim = cv2.dilate(useless.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    kept = cv2.dilate((added & ~useless).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    return torch.where(torch.from_numpy(useless | (rim & ~kept & ~added)), old, new)


def falls_enough(before: float, after: float, threshold: float) -> bool:
    """Whether a detector's score fell so far that the frame is better for it."""
    return after <= FALLS_TO * before and after <= before - FALLS_BY * (1 - threshold)
