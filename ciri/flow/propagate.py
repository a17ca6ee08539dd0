"""Following completed flow from a hidden pixel to the nearest frame, before or after, that shows what is behind.

Instead of warping pictures again and again (which blurs them a little more each time), every hidden pixel carries
the address of its source: a frame and a sub-pixel position in it. Addresses are handed from frame to frame in one
sweep per direction, and the source frame is sampled once, at the end.

Dimensions: t frames, n covered pixels of one frame, h w pixels. Positions and flows are (x, y) in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.flow.addresses import SMALLEST_SHARE, Addresses, Candidates
from ciri.flow.agreement import agree
from ciri.flow.completion import complete_flow, membrane
from ciri.flow.contrast import flow_confidence, noise_contrast
from ciri.flow.dis import SMALLEST_SIDE, Preset, consistency, grey, grey_flow
from ciri.flow.margin import MarginGauge, outer_rings
from ciri.flow.sampling import PixelTable, bilinear, interpolate
from ciri.frames import Box
from ciri.parallel import both
from ciri.progress import OnStep, ignore, part

#: Pixels above this are given a fill; paste-back blends by the map itself.
COVERED_ABOVE = 0.05
#: Pixels above this show the target, not the background, and are no source; unless the clip shows that the outermost of
#: them, by which masks were grown, are free of it (:mod:`ciri.flow.margin`).
HIDDEN_ABOVE = 0.5
#: How far around the target DIS mixes its motion into the background's, in pixels: in the clip as it is, and
#: after the target has been taken out.
WIDE_MARGIN, NARROW_MARGIN = 12, 3
#: Pixels around the target in which the flow that counts is measured at full resolution.
SURROUNDINGS = 16
#: Flows completed at a time; small pictures cost mostly calls, large ones memory.
BATCH = 8
#: What a step along the flow is taken to miss even where both directions agree, in pixels.
DRIFT = 0.05


def propagate_pixels(frames: Tensor, inactivation: Tensor, *, passes: int = 2, on_step: OnStep = ignore) -> Candidates:
    """Find, for every covered pixel, where the nearest frames before and after show what is behind the target.

    Flow near a moving target is partly the target's own. A first, rough round therefore takes the target out; the
    flow that counts is measured on the clip without it, at full resolution around what is covered. How the background
    moves behind the target is told by where pictures have contrast (:mod:`ciri.flow.contrast`). In the end the two
    sides are brought into agreement (:mod:`ciri.flow.agreement`).

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        inactivation: float32 (T, 1, H, W) in [0, 1]; above :data:`COVERED_ABOVE` a pixel gets candidates, above
            :data:`HIDDEN_ABOVE` it cannot be one, but for a margin that turns out to be free.
        passes: 2 as said above; 1 measures once, at half the resolution, as the target moves, and judges no margin: in
            half the time.
        on_step: called for every frame of every pass; may raise to stop.
    """
    frames, inactivation = frames.cpu(), inactivation.cpu()
    visible = inactivation[:, 0] <= HIDDEN_ABOVE
    covered = [torch.nonzero(m.flatten() > COVERED_ABOVE).flatten() for m in inactivation]
    noise = noise_contrast(frames, ~visible, on_step=part(on_step, 0.0, 0.0))

    def search(
        greys: Iterable[np.ndarray],
        visible: Tensor,
        table: PixelTable,
        margin: int,
        closely: Sequence[Box | None],
        on_step: OnStep,
    ) -> Candidates:
        """Measure flow on a clip, complete it around the target, and follow it to the sources."""
        shape = (len(frames), *frames.shape[2:])
        told: list[Tensor] = []

        def looked_at() -> Iterator[np.ndarray]:
            for picture, mask in zip(greys, inactivation, strict=True):
                hidden = (mask[0] > COVERED_ABOVE).numpy()
                told.append(torch.from_numpy(flow_confidence(picture[: shape[1], : shape[2]], hidden, noise)))
                yield picture

        # beyond what is looked at closely, only the flow's course counts
        preset: Preset = "fast" if closely else "medium"
        forward, backward = grey_flow(
            looked_at(), shape, preset=preset, closely=closely, on_step=part(on_step, 0.0, 0.6)
        )
        trust = torch.stack(told)[:, None]
        complete_neighbour_flow(forward, backward, inactivation, margin, trust, on_step=part(on_step, 0.6, 0.8))
        after, before = both(
            lambda tick: follow(forward, backward, visible, covered, ahead=True, on_step=tick),
            lambda tick: follow(backward, forward, visible, covered, ahead=False, on_step=tick),
            part(on_step, 0.8, 1.0),
        )
        return Candidates(frames, visible, table, covered, before, after, forward, backward)

    greys: Iterable[np.ndarray] = (grey(frame) for frame in frames)
    margin, table, closely = WIDE_MARGIN, PixelTable(frames, visible), list[Box | None]()
    if passes > 1:
        # what the rough round found is let go before the next one begins: it is as large
        greys, free = _without_target(
            search(greys, visible, table, margin, closely, part(on_step, 0.0, 0.45)), part(on_step, 0.45, 0.5)
        )
        margin, closely = NARROW_MARGIN, _surroundings(inactivation)
        if free:
            visible = torch.stack([v | torch.from_numpy(outer_rings(~v.numpy())) for v in visible])
            table = PixelTable(frames, visible)
    searched = 1.0 if passes == 1 else 0.95
    found = search(greys, visible, table, margin, closely, part(on_step, 1 - 1 / passes, searched))
    for source in (*found.before, *found.after):
        # an address shifted along a seam can end up among hidden pixels
        _, share = table.sample(source.frame, source.position)
        source.frame[share <= SMALLEST_SHARE] = -1
    if passes > 1:
        agree(found, on_step=part(on_step, searched, 1.0))
    return found


def _surroundings(inactivation: Tensor) -> list[Box | None]:
    """For each pair of neighbouring frames, the part around what is covered in either; None where nothing is."""
    covered = (inactivation[:, 0] > COVERED_ABOVE).numpy()
    result: list[Box | None] = []
    for first, second in itertools.pairwise(covered):
        sides = []
        for axis, whole in enumerate(first.shape):
            places = np.flatnonzero((first | second).any(1 - axis))
            if not len(places):
                break
            start, stop = places[0] - SURROUNDINGS, places[-1] + 1 + SURROUNDINGS
            # never narrower than what optical flow can be measured on, unless the picture is
            lacking = max(SMALLEST_SIDE - (min(stop, whole) - max(start, 0)), 0)
            sides.append(slice(max(int(start) - lacking, 0), min(int(stop) + lacking, max(whole, SMALLEST_SIDE))))
        result.append((sides[0], sides[1]) if len(sides) == 2 else None)
    return result


def _without_target(rough: Candidates, on_step: OnStep) -> tuple[list[np.ndarray], bool]:
    """Return the clip in grey, with every frame roughly filled, and whether the margin is free of the target."""
    count = len(rough.frames)
    greys: list[np.ndarray] = [np.empty(0)] * count
    gauges = MarginGauge(), MarginGauge()

    def fill(half: int, on_step: OnStep) -> None:
        frames = (range(count // 2), range(count // 2, count))[half]
        for done, t in enumerate(frames, 1):
            filled, shown = _rough_fill(rough, t)
            greys[t] = grey(filled)
            hidden = ~rough.visible[t]
            gauges[half].look(*(x.numpy() for x in (rough.frames[t], filled, shown & hidden, hidden)))
            on_step(done, len(frames))

    both(partial(fill, 0), partial(fill, 1), on_step)
    return greys, (gauges[0] + gauges[1]).is_free()


def _rough_fill(candidates: Candidates, t: int) -> tuple[Tensor, Tensor]:
    """Return frame t (3, H, W) with its covered pixels blended from both sides, and smooth where no frame helps.

    Also bool (H, W), where the pixels are copies, or were not covered.
    """
    frame, index = candidates.picture(t), candidates.covered[t]
    colours, weight = candidates.blend(t, [candidates.before[t], candidates.after[t]])
    frame.view(3, -1)[:, index] = colours.T
    known = torch.ones(frame.shape[1:], dtype=torch.bool)
    known.view(-1)[index] = weight > 0
    if known.all():
        return frame, known
    return membrane(frame[None], known.to(frame)[None, None], sweeps=3, finest_sweeps=1)[0], known


def complete_neighbour_flow(
    forward: Tensor, backward: Tensor, inactivation: Tensor, margin: int, trust: Tensor, *, on_step: OnStep = ignore
) -> None:
    """Complete both flows where the inactivation map, grown by ``margin`` pixels, covers something; in place.

    Args:
        forward, backward: float32 (T-1, 2, H, W), flow t -> t + 1 and t + 1 -> t.
        inactivation: float32 (T, 1, H, W) in [0, 1]; see :data:`COVERED_ABOVE`.
        margin: pixels.
        trust: float32 (T, 1, ceil(H / 2), ceil(W / 2)) in [0, 1]; flow from there counts by it, besides by how well
            both directions agree.
        on_step: called with the pairs of frames done and in all; may raise to stop.
    """
    holes = torch.stack([_near(mask, margin) for mask in inactivation])
    for start in range(0, len(forward), BATCH):
        pairs = slice(start, min(start + BATCH, len(forward)))
        first, second = holes[pairs], holes[pairs.start + 1 : pairs.stop + 1]
        if first.any() or second.any():
            there, back = halve_flow(forward[pairs]), halve_flow(backward[pairs])
            both(
                partial(_complete, there, back, first, trust[pairs], forward[pairs]),
                partial(_complete, back, there, second, trust[pairs.start + 1 : pairs.stop + 1], backward[pairs]),
                ignore,
            )
        on_step(pairs.stop, len(forward))


def _complete(flow: Tensor, inverse: Tensor, hole: Tensor, trust: Tensor, target: Tensor, _: OnStep) -> None:
    """Complete flow at half the size, and write it at full size where the hole (N, 1, H, W) is; in place."""
    coarse = F.max_pool2d(hole.float(), 2, ceil_mode=True)
    done = double_flow(complete_flow(flow, coarse, trust * consistency(flow, inverse)), hole.shape[-2:])
    torch.where(hole, done, target, out=target)


def halve_flow(flow: Tensor) -> Tensor:
    """Return flow (N, 2, H, W) at half the size, in pixels of that size."""
    return F.avg_pool2d(flow, 2, ceil_mode=True, count_include_pad=False) / 2


def double_flow(flow: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Undo :func:`halve_flow` for smooth flow."""
    h, w = flow.shape[-2:]
    whole = F.interpolate(flow * 2, size=(2 * h, 2 * w), mode="bilinear", align_corners=False)
    return whole[..., : size[0], : size[1]]


def _near(mask: Tensor, margin: int) -> Tensor:
    """Return bool (1, H, W): at most ``margin`` pixels from a covered pixel of the mask (1, H, W)."""
    free = (mask[0] <= COVERED_ABOVE).byte().numpy()
    if free.all():
        return torch.zeros_like(mask, dtype=torch.bool)
    return torch.from_numpy(cv2.distanceTransform(free, cv2.DIST_L2, 5) <= margin)[None]


def follow(
    flow: Tensor, inverse: Tensor, visible: Tensor, covered: list[Tensor], *, ahead: bool, on_step: OnStep = ignore
) -> list[Addresses]:
    """Hand addresses from frame to frame in one sweep; returns them per frame, for its covered pixels.

    Args:
        flow: float32 (T-1, 2, H, W), forward if ``ahead`` (sources in the future), else backward.
        inverse: the other one.
        visible: bool (T, H, W), pixels that are their own source.
        covered: per frame, the flat indices of the pixels to find a source for.
        ahead: which way sources lie.
        on_step: called for every frame; may raise to stop.
    """
    count = len(visible)
    order = range(count - 1, -1, -1) if ahead else range(count)
    result = [Addresses.nowhere(len(index)) for index in covered]
    neighbour: Addresses | None = None
    for done, t in enumerate(order):
        if neighbour is not None and len(covered[t]):
            pair = t if ahead else t - 1
            result[t] = hand_over(covered[t], flow[pair], inverse[pair], neighbour)
        neighbour = Addresses.own(t, visible[t])
        hidden = ~visible[t].flatten()[covered[t]]
        found = result[t]
        neighbour.put(covered[t][hidden], Addresses(found.frame[hidden], found.position[hidden], found.error[hidden]))
        on_step(done + 1, count)
    return result


def hand_over(index: Tensor, flow: Tensor, inverse: Tensor, neighbour: Addresses) -> Addresses:
    """Follow the flow for one frame and take over the addresses found there.

    Args:
        index: int64 (n,), flat indices of the pixels to follow.
        flow: float32 (2, H, W), to the neighbouring frame.
        inverse: float32 (2, H, W), back from it.
        neighbour: the addresses of all H x W pixels of the neighbouring frame.
    """
    _, h, w = flow.shape
    start = torch.stack([index % w, index // w], -1).float()
    motion = flow.reshape(2, -1)[:, index].T
    there = start + motion
    limit = torch.tensor([w - 1, h - 1]).float()
    inside = ((there >= -0.5) & (there <= limit + 0.5)).all(-1)
    there = there.clamp(min=torch.zeros(2), max=limit)
    corners, weights = bilinear(there, h, w)
    nearest = there.round().long()
    flat = nearest[:, 1] * w + nearest[:, 0]
    source = neighbour.frame[flat]
    back, between = interpolate(torch.cat([inverse.reshape(2, -1).T, neighbour.position], 1), corners, weights).split(
        2, -1
    )
    # where the four neighbours come from one place their positions interpolate exactly; across a seam between two
    # places (or two source frames) the nearest one's is shifted along
    shifted = neighbour.position[flat] + there - nearest
    same = (neighbour.frame[corners] == source[:, None]).all(1) & ((between - shifted).abs().amax(-1) < 0.5)
    astray = (motion + back).square().sum(-1).sqrt() + DRIFT
    return Addresses(
        torch.where(inside, source, -1),
        torch.where(same[:, None], between, shifted),
        neighbour.error[flat] + astray,
    )
