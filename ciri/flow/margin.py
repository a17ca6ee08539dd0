"""Whether the margin around a target is free of it, measured on the clip itself.

Masks are grown before they are filled, since their edges are not exact. Where they are, what growing added shows
nothing of the target: then it may serve as a source for other frames, which need not look so far, or find what no frame
shows beyond the margin. Nobody can see that in one frame, but over a clip it can be measured: where other frames show
what is behind the margin, its pixels are a mixture of that and of the target,

    pixel = background + share * (target - background),

and the share is the slope of a regression over some thousand pixels. What other frames show is wrong in places, which
would look like a share of the target wherever it stands on both sides; as instrument for target - background
therefore serves the difference between the target and the nearest pixel beyond the margin, which knows nothing of
those errors.

A mean says little of single places: masks of trackers are right along most of their length and miss a hand somewhere.
So all rings have to be free, the innermost too.

Dimensions: h w pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

#: Rings of one pixel that are judged, from outside inwards: by so much removal grows masks by default.
RINGS = 4
#: Pixels from the edge of what is filled from which on a pixel is taken to show the target. Where masks are generous it
#: shows background still, and the margin is rarely found to be free.
DEEP = 6
#: A ring with less of the target is free. Under propagated masks the innermost ring of nine real sequences had 0.05 to
#: 0.23; under exact masks of composites it had -0.07 to 0.06, and down to -0.3 where what is copied is wrong.
FREE_BELOW = 0.02
#: Beyond this, a share below zero says that what the other frames show is wrong, and the measurement with it.
IMPLAUSIBLE = -0.15
#: Fewest pixels of a ring to judge it by.
FEWEST = 500

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


class MarginGauge:
    """Adds up what a clip's frames say about their margins."""

    def __init__(self) -> None:
        self._mixed, self._whole, self._count = np.zeros(RINGS), np.zeros(RINGS), np.zeros(RINGS, np.int64)

    def look(self, frame: Floats, background: Floats, shown: Bools, covered: Bools) -> None:
        """Take a frame into account.

        Args:
            frame: (3, h, w), as it was recorded.
            background: (3, h, w), with the covered pixels as other frames show them.
            shown: (h, w), where they do.
            covered: (h, w), what is to be filled: the target and the margin.
        """
        box = _box(covered)
        if box is None:
            return
        colours = (slice(None), *box)
        frame, background, shown, covered = frame[colours], background[colours], shown[box], covered[box]
        depth = _depth(covered)
        deep = depth >= DEEP
        if not deep.any() or covered.all():
            return
        target = _nearest(frame, deep)
        towards = target - _nearest(frame, ~covered)
        mixed = ((frame - background) * towards).sum(0)
        whole = ((target - background) * towards).sum(0)
        for ring in range(RINGS):
            here = shown & (depth > ring) & (depth <= ring + 1)
            self._mixed[ring] += mixed[here].sum(dtype=np.float64)
            self._whole[ring] += whole[here].sum(dtype=np.float64)
            self._count[ring] += here.sum()

    def __add__(self, other: MarginGauge) -> MarginGauge:
        """What both saw."""
        total = MarginGauge()
        total._mixed, total._whole = self._mixed + other._mixed, self._whole + other._whole
        total._count = self._count + other._count
        return total

    def shares(self) -> list[float]:
        """Share of the target in each ring, from outside inwards; nan where too little was seen to tell."""
        known = (self._count >= FEWEST) & (self._whole > 0)
        return [float(m / w) if k else float("nan") for m, w, k in zip(self._mixed, self._whole, known, strict=True)]

    def is_free(self) -> bool:
        """Whether no ring shows anything of the target."""
        # nan compares as false
        return all(IMPLAUSIBLE <= share < FREE_BELOW for share in self.shares())


def outer_rings(covered: Bools) -> Bools:
    """The covered pixels (h, w) that the rings are made of."""
    box = _box(covered)
    result = np.zeros_like(covered)
    if box is not None:
        depth = _depth(covered[box])
        result[box] = (depth > 0) & (depth <= RINGS)
    return result


def _box(covered: Bools) -> tuple[slice, slice] | None:
    """Rows and columns of the covered pixels and a pixel around; None if there are none."""
    ys, xs = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    if not len(ys):
        return None
    return slice(max(ys[0] - 1, 0), ys[-1] + 2), slice(max(xs[0] - 1, 0), xs[-1] + 2)


def _depth(covered: Bools) -> Floats:
    """Distance to the nearest pixel that is not covered; the picture's border is none."""
    return np.asarray(cv2.distanceTransform(covered.astype(np.uint8), cv2.DIST_L2, 5), np.float32)


def _nearest(image: Floats, chosen: Bools) -> Floats:
    """The colours (3, h, w) of the nearest chosen pixel, everywhere."""
    labels = cv2.distanceTransformWithLabels(
        (~chosen).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )[1]
    at = np.flatnonzero(chosen)
    place = np.zeros(int(labels.max()) + 1, np.int64)
    place[labels.reshape(-1)[at]] = at
    return image.reshape(3, -1)[:, place[labels]]
