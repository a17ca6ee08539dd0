"""Follows one target from frame to frame: flow carries its mask, its appearance corrects it.

Dimensions: h w pixels of the working frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ciri.flow.dis import consistency, neighbour_flow, warp
from ciri.propagation.appearance import AppearanceModel, Placement, pixel_features, placement
from ciri.propagation.base import LOST_BELOW
from ciri.propagation.guided_filter import GuidedMask, guided_filter

Window = tuple[slice, slice]
#: A step looks this many pixels beyond the target.
MARGIN = 40
#: Features are taken at full resolution where the target's window has at most this many pixels, else at half.
FULL_DETAIL = 80_000
#: How far in pixels the edge may move beyond what flow says.
REACH = 24
#: Evidence is a sum: the carried mask, the appearance, and the distance to the carried edge.
MASK_WEIGHT, APPEARANCE_WEIGHT, EVIDENCE_GAIN = 1.0, 1.5, 2.0
GUIDE_RADIUS, GUIDE_EPSILON = 8, 1e-3
#: The filter's result is blurred by construction; this much contrast around 0.5 is given back.
SHARPEN = 1.5
#: Evidence of motion against the background's.
MOTION_WEIGHT = 1.0
#: Below this share of its annotated area the target counts as gone.
GONE_BELOW = 0.03
#: A cut: almost nowhere does flow agree with itself, and the colours of the frame change.
CUT_AGREEMENT, CUT_COLOUR_DISTANCE = 0.25, 0.4
#: A target that returns: at least this share of its area, this mean score, and nothing on the annotated frame like it.
RETURN_AREA, RETURN_SCORE = 0.1, 0.35


@dataclass(frozen=True)
class Pair:
    """Optical flow between two frames a and b, and how far each direction agrees with the other.

    Attributes:
        forward, backward: float32 (H, W, 2) in pixels, a -> b on a's pixels and b -> a on b's.
        forward_agreement, backward_agreement: float32 (H, W) in [0, 1].
    """

    forward: np.ndarray
    backward: np.ndarray
    forward_agreement: np.ndarray
    backward_agreement: np.ndarray


@dataclass
class Step:
    """The target in one frame.

    Attributes:
        mask: the mask as a function of the frame's colours, or None where the target is lost.
        confidence: in [0, 1].
        cut: whether a scene cut lies before this frame.
    """

    mask: GuidedMask | None
    confidence: float
    cut: bool = False


class TargetTracker:
    """Walks away from one annotated frame, a frame at a time."""

    def __init__(self, frame: np.ndarray, mask: np.ndarray) -> None:
        """Start on the annotated frame.

        Args:
            frame: uint8 RGB (H, W, 3).
            mask: float32 (H, W) in [0, 1].
        """
        self._frame, self._mask = frame, mask
        rows, columns = _window(mask)
        self._stride = 1 if mask[rows, columns].size <= FULL_DETAIL else 2
        features, key_mask = pixel_features(self._shrink(frame)), self._shrink(mask)
        self._appearance = AppearanceModel(features, key_mask)
        self._area = float((mask > 0.5).sum())
        self._colours = self._key_colours = _colour_histogram(frame)
        scores = self._appearance.score(features, placement(key_mask), np.ones(key_mask.shape, bool))
        self._calibrate(scores, key_mask)
        self._lost = self._other_shot = False
        self._pair: Pair | None = None

    def step(self, frame: np.ndarray, following: np.ndarray | None) -> Step:
        """Move on to the next frame.

        Args:
            frame: uint8 RGB (H, W, 3), the neighbour of the last one.
            following: the frame after it, or None at the end of the walk; how it moves on tells what it belongs to.
        """
        colours = _colour_histogram(frame)
        before = self._pair or flow_between(self._frame, frame)
        self._pair = None if following is None else flow_between(frame, following)
        colour_change = cv2.compareHist(colours, self._colours, cv2.HISTCMP_BHATTACHARYYA)
        cut = float(before.backward_agreement.mean()) < CUT_AGREEMENT and colour_change > CUT_COLOUR_DISTANCE
        self._frame, self._colours = frame, colours
        if cut:
            self._lost = self._other_shot = True
        step = self._find(frame) if self._lost else self._follow(frame, before, self._pair)
        step.cut = cut
        return step

    def _follow(self, frame: np.ndarray, before: Pair, after: Pair | None) -> Step:
        """Carry the mask along the flow and correct it."""
        carried = _sample(self._mask, before.backward)
        window = _window(carried)
        motion = _motion_evidence(carried, before, after, window)
        carried, agreement = carried[window], before.backward_agreement[window]
        features, small = pixel_features(self._shrink(frame[window])), self._shrink(carried)
        side = REACH // self._stride | 1
        region = cv2.dilate(small, np.ones((side, side), np.uint8)) > 0.3
        score = self._appearance.score(features, placement(small), region)
        evidence = (
            MASK_WEIGHT * agreement * (2 * carried - 1)
            + APPEARANCE_WEIGHT * np.clip(_resize(score, carried.shape), -1.5, 1.5)
            + np.clip(_signed_distance(carried) / REACH, -1.5, 1.5)
            + MOTION_WEIGHT * motion
        )
        raw = 1 / (1 + np.exp(-EVIDENCE_GAIN * evidence))
        return self._settle(frame, window, features, raw, score, agreement)

    def _settle(
        self,
        frame: np.ndarray,
        window: Window,
        features: np.ndarray,
        raw: np.ndarray,
        score: np.ndarray,
        agreement: np.ndarray,
    ) -> Step:
        """Move the edge onto the image's edges, judge the result, and learn from it unless it is lost.

        All but the frame are the window's content.
        """
        image = frame[window].astype(np.float32) / 255
        guided = sharpen(guided_filter(image, raw.astype(np.float32), GUIDE_RADIUS, GUIDE_EPSILON))
        mask = guided.on(image)
        target = mask > 0.5
        area = float(target.sum())
        confidence = self._confidence(target, score, agreement)
        if area < max(GONE_BELOW * self._area, 1) or confidence < LOST_BELOW:
            self._lost = True
            return Step(None, 0.0)
        self._lost = self._other_shot = False
        self._mask = np.zeros(frame.shape[:2], np.float32)
        self._mask[window] = mask
        small = self._shrink(mask)
        self._appearance.adapt(features, small, placement(small))
        return Step(_embed(guided, frame.shape[:2], window), confidence)

    def _shrink(self, image: np.ndarray) -> np.ndarray:
        """To the resolution of the features."""
        h, w = image.shape[:2]
        size = ((w + self._stride - 1) // self._stride, (h + self._stride - 1) // self._stride)
        return image if self._stride == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    def _confidence(self, target: np.ndarray, score: np.ndarray, agreement: np.ndarray) -> float:
        """How far appearance and flow support the mask: in [0, 1]."""
        if not target.any():
            return 0.0
        looks = float(np.clip(_resize(score, target.shape)[target], 0, 1).mean()) / self._typical_score
        return float(np.clip(0.7 * min(looks, 1) + 0.3 * agreement[target].mean(), 0, 1))

    def _calibrate(self, scores: np.ndarray, mask: np.ndarray) -> None:
        """On the annotated frame: how the target scores, and the largest background blob that scores like it."""
        target = mask > 0.5
        inside = np.clip(scores[target], 0, 1)
        self._typical_score = max(float(inside.mean()), 0.2) if inside.size else 1.0
        elsewhere = (scores > RETURN_SCORE * self._typical_score) & (cv2.dilate(mask, np.ones((5, 5))) < 0.1)
        self._largest_lookalike = _largest_blob(elsewhere)[1]

    def _find(self, frame: np.ndarray) -> Step:
        """Look for a lost target in the whole frame; take it up again only if nothing else could be meant."""
        if self._other_shot:
            change = cv2.compareHist(self._colours, self._key_colours, cv2.HISTCMP_BHATTACHARYYA)
            if change > CUT_COLOUR_DISTANCE / 2:
                return Step(None, 0.0)
        features = pixel_features(self._shrink(frame))
        h, w = features.shape[:2]
        everywhere = np.ones((h, w), bool)
        # no position: the target may come back anywhere
        score = self._appearance.score(features, Placement(w / 2, h / 2, 1e6), everywhere)
        blob, size = _largest_blob(score > RETURN_SCORE * self._typical_score)
        enough = max(RETURN_AREA * self._area / self._stride**2, 2.0 * self._largest_lookalike, 2)
        if size < enough or size > 2 * self._area / self._stride**2:
            return Step(None, 0.0)
        near = cv2.dilate(blob.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        raw = np.where(near, 1 / (1 + np.exp(-2 * EVIDENCE_GAIN * score)), 0)
        shape = frame.shape[:2]
        whole = slice(0, shape[0]), slice(0, shape[1])
        return self._settle(frame, whole, features, _resize(raw, shape), score, np.ones(shape, np.float32))


def sharpen(mask: GuidedMask) -> GuidedMask:
    """Raise the contrast around 0.5."""
    return GuidedMask(mask.slope * SHARPEN, (mask.offset - 0.5) * SHARPEN + 0.5)


def flow_between(before: np.ndarray, after: np.ndarray) -> Pair:
    """Optical flow between two frames, uint8 RGB (H, W, 3)."""
    pair = torch.from_numpy(np.stack([before, after])).permute(0, 3, 1, 2).float() / 255
    forward, backward = neighbour_flow(pair)
    agreement = consistency(forward, backward), consistency(backward, forward)
    return Pair(*(x[0].permute(1, 2, 0).numpy() for x in (forward, backward)), *(x[0, 0].numpy() for x in agreement))


def _motion_evidence(carried: np.ndarray, before: Pair, after: Pair | None, window: Window) -> np.ndarray:
    """Who moves like the background, -1, and who does not, 1; 0 where flow cannot say.

    What the target uncovers has no past; how it moves on into the following frame tells where it belongs.
    """
    evidence, known = _against_background(carried, before.backward, before.backward_agreement, window)
    if after is None:
        return evidence * known
    onward, known_onward = _against_background(carried, after.forward, after.forward_agreement, window)
    return evidence * known + (1 - known) * onward * known_onward


def _against_background(
    carried: np.ndarray, flow: np.ndarray, agreement: np.ndarray, window: Window
) -> tuple[np.ndarray, np.ndarray]:
    """Evidence in [-1, 1] from the motion left after the background's, and its weight in [0, 1], both (H, W)."""
    h, w = carried.shape
    rows, columns = np.mgrid[4:h:8, 4:w:8]
    outside = (agreement[rows, columns] > 0.5) & (cv2.dilate(carried, np.ones((9, 9)))[rows, columns] < 0.1)
    nothing = np.zeros_like(carried[window])
    if outside.sum() < 12:
        return nothing, nothing
    points = np.stack([columns[outside], rows[outside]], axis=-1).astype(np.float32)
    model, _ = cv2.estimateAffine2D(
        points, points + flow[rows, columns][outside], method=cv2.RANSAC, ransacReprojThreshold=1.0, maxIters=300
    )
    if model is None:
        return nothing, nothing
    rest = _residual(model.astype(np.float32), flow, window)
    sure = agreement[window] > 0.5
    target = (carried[window] > 0.5) & sure
    if target.sum() < 12:
        return nothing, nothing
    typical = float(np.median(rest[target]))
    moved = points @ model[:, :2].T + model[:, 2] - points - flow[rows, columns][outside]
    unrest = float(np.median(np.hypot(moved[:, 0], moved[:, 1])))
    # where the target hardly moves against the background, motion says nothing
    separable = np.clip(typical - 2 * unrest - 0.5, 0, 1)
    return np.clip(rest / (0.5 * typical + 1e-3) - 1, -1, 0), separable * agreement[window]


def _residual(model: np.ndarray, flow: np.ndarray, window: Window) -> np.ndarray:
    """Length in pixels of what is left of the flow in the window without the background's affine motion (2, 3)."""
    rows, columns = window
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None, :]
    rest_x = x * (model[0, 0] - 1) + y * model[0, 1] + model[0, 2] - flow[window][..., 0]
    rest_y = x * model[1, 0] + y * (model[1, 1] - 1) + model[1, 2] - flow[window][..., 1]
    return np.hypot(rest_x, rest_y)


def _window(mask: np.ndarray) -> Window:
    """The rows and columns around the target (H, W) that a step looks at; everything if there is no target."""
    rows, columns = (np.flatnonzero((mask > 0.1).any(axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    top, left = max(int(rows[0]) - MARGIN, 0), max(int(columns[0]) - MARGIN, 0)
    bottom, right = (min(int(x[-1]) + 1 + MARGIN, n) for x, n in zip((rows, columns), mask.shape, strict=True))
    return slice(top, bottom), slice(left, right)


def _embed(mask: GuidedMask, shape: tuple[int, ...], window: Window) -> GuidedMask:
    """The mask of a window as one of the whole frame, 0 outside."""
    slope, offset = np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32)
    slope[window], offset[window] = mask.slope, mask.offset
    return GuidedMask(slope, offset)


def _sample(mask: np.ndarray, flow: np.ndarray) -> np.ndarray:
    field = torch.from_numpy(flow).permute(2, 0, 1)[None]
    return warp(torch.from_numpy(mask)[None, None], field)[0, 0].numpy()


def _resize(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return cv2.resize(image.astype(np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Distance to the edge in pixels: positive inside, negative outside."""
    inside = (mask > 0.5).astype(np.uint8)
    if not inside.any():
        return np.full(mask.shape, -float(sum(mask.shape)), np.float32)
    return cv2.distanceTransform(inside, cv2.DIST_L2, 3) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 3)


def _colour_histogram(frame: np.ndarray) -> np.ndarray:
    histogram = cv2.calcHist([frame], [0, 1, 2], None, [8, 8, 8], [0, 256] * 3)
    return histogram / histogram.sum()


def _largest_blob(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The largest connected part of a boolean (H, W) mask, and its area."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return np.zeros_like(mask), 0
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return labels == largest, int(stats[largest, cv2.CC_STAT_AREA])
