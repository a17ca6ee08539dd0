"""The learned complementary attention of a whole clip: evidence gathered and weighed, frame by frame.

Dimensions: t frames, h w pixels of the working size, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.exposure import evened, exposure
from ciri.frames import extent, grow_mask
from ciri.inactivation.attention_network import MULTIPLE, REACH, AttentionNetwork, load_attention, log_odds
from ciri.inactivation.evidence import Evidence, Witness, neighbourhood
from ciri.inactivation.fusion import fuse
from ciri.inpainting.flow import MEMORY, longest_segment
from ciri.inpainting.segments import segments
from ciri.out_of_memory import shortage_told
from ciri.progress import OnStep, ignore, part
from ciri.shots import in_place, shots

#: Frames are shrunk to this many pixels on the shorter side: the network was trained at this size, and what it corrects
#: are parts, not edges.
SHORT_SIDE = 240
#: Share of the frame's height around the predictions in which the target, and its shadow, are sought.
REGION = 1 / 8
#: Values below this are none: a network is never quite at 0, and what is not inactivated at all stays untouched.
FAINT = 0.1
#: Within so many pixels of the prediction all that is found counts, faint rims too; further off, only what is more
#: certain than this, rising from there: what is unsure and far is mostly something else that moves beside it.
NEAR, UNSURE = 2, 0.5
#: Frames to either side that are asked whether a shadow is there, and the mean of theirs up to which it is not: what
#: one frame alone shows.
STEADY, LONE = 4, 0.2
#: What is found within so many pixels of the region's edge may go on beyond it (long shadows do). If that happens in a
#: larger share of the frames than this, and over so many pixels, the clip is looked at once more in a wider region.
RIM, LEAST_TOUCHED, LEAST_PIXELS = 4, 0.25, 40


@lru_cache(maxsize=1)
def shipped() -> AttentionNetwork:
    """The network whose weights ship with the pack."""
    return load_attention()


@dataclass
class Attended:
    """What the network makes of a clip; float32 (T, 1, H, W) in [0, 1], 0 beyond the region.

    Attributes:
        target: where the target is.
        shadow: where its shadow is.
    """

    target: Tensor
    shadow: Tensor

    def map(self, *, shadow: bool) -> Tensor:
        """M_attn, with or without the shadow."""
        return torch.maximum(self.target, self.shadow) if shadow else self.target


@shortage_told(
    "Memory ran out while the complementary attention looked at the clip. Do a part of the clip at a time, use smaller "
    "frames, or leave attention out."
)
def learned_attention(
    frames: Tensor,
    first_mask: Tensor,
    predicted: Tensor,
    network: AttentionNetwork,
    *,
    first_index: int = 0,
    dilation: int,
    on_step: OnStep = ignore,
) -> Attended:
    """Where the target is in every frame, near where the propagator saw it, and where its shadow.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        first_mask: (1, 1, H, W) in [0, 1], the annotation.
        predicted: (T, 1, H, W) in [0, 1], M_pred; where a frame has none, the maps are 0.
        network: trained weights; it runs on the CPU, where the evidence is.
        first_index: the frame that was annotated; its mask is what a person painted, and is kept.
        dilation: pixels around the prediction in which the maps may be positive.
        on_step: progress callback; may raise to stop.

    Raises:
        OutOfMemoryError: memory does not suffice.
    """
    count, _, height, width = frames.shape
    scale = min(1.0, SHORT_SIDE / min(height, width))
    h, w = (max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (height, width))
    scenes = shots(frames, on_step=on_step)
    bright = _brightness(frames, scenes, on_step)

    def small(at: list[int], tick: OnStep) -> Tensor:
        """Some frames, as bright as is usual in their shot, at the working size."""
        return evened(_shrunk(frames, at, h, w, tick), bright[at])

    painted, shown = _resized(first_mask, h, w)[0], small([first_index], on_step)[0]
    result = Attended(torch.zeros(predicted.shape), torch.zeros(predicted.shape))
    done = 0
    for shot in scenes:
        for seen, asked in segments(len(shot), longest_segment(MEMORY, h, w)):
            at = shot[seen.start : seen.stop]
            steps = part(on_step, done / count, (done + len(asked)) / count)
            now = range(asked.start - seen.start, asked.stop - seen.start)
            segment = _Segment(small(at, steps), _shrunk(predicted, at, h, w, steps), painted, shown)
            answers = _look(network, segment, now, round(dilation * h / height), steps)
            for t, answer in zip(shot[asked.start : asked.stop], answers, strict=True):
                if answer is not None:
                    _write(result, t, predicted[t].float().cpu(), answer)
            done += len(asked)
        tick = part(on_step, done / count, done / count)
        result.shadow[shot] = steadied(result.shadow[shot], predicted[shot].cpu(), on_step=tick)
    part(on_step, 0, 1)(1, 1)
    result.target[first_index] = first_mask[0]
    return Attended(result.target.to(frames.device), result.shadow.to(frames.device))


def _brightness(frames: Tensor, scenes: list[list[int]], on_step: OnStep) -> Tensor:
    """The :func:`exposure` of every frame within its shot, float32 (T,) on the CPU; 1 where there is none to tell."""
    bright = torch.ones(len(frames))
    for shot in scenes:
        found = exposure(frames[in_place(shot)], on_step=on_step)
        if found is not None:
            bright[shot] = found.cpu()
    return bright


def inactivation_map(
    frames: Tensor,
    first_mask: Tensor,
    predicted: Tensor,
    network: AttentionNetwork,
    *,
    first_index: int = 0,
    known: Sequence[int] = (),
    shadow: bool = True,
    on_step: OnStep = ignore,
) -> Tensor:
    """Return M_iac of Eq. 3, float32 (T, 1, H, W) on the frames' device, fused by the learned b.

    Args:
        frames, first_mask, predicted, network, first_index, on_step: as in :func:`learned_attention`. The masks may be
            on another device than the frames.
        known: frames whose masks are right as they are; a shadow is added to them as to all others.
        shadow: the shadow is inactivated too.
    """
    reach = round(REGION * frames.shape[2])
    first_mask, predicted = first_mask.to(frames.device), predicted.to(frames.device)
    found = learned_attention(
        frames, first_mask, predicted, network, first_index=first_index, dilation=reach, on_step=on_step
    )
    for t in known:
        found.target[t] = predicted[t]
    return fuse(predicted, found.map(shadow=shadow), float(network.fusion.beta))


@dataclass
class _Answer:
    """What the network said of one frame, (1, 1, h, w) within its box; 0 and nothing beyond.

    Attributes:
        rows, columns: the box.
        correction, shadow: log odds to add to the prediction's, and those of shadow.
        region: where they count.
        whole: (h, w) of the frame.
    """

    rows: slice
    columns: slice
    correction: Tensor
    shadow: Tensor
    region: Tensor
    whole: tuple[int, int]

    def found(self, predicted: Tensor) -> Tensor:
        """bool (1, h, w), the target or its shadow, given the prediction (1, h, w) of the box."""
        return (((log_odds(predicted) + self.correction[0]) > 0) | (self.shadow[0] > 0)) & (self.region[0] > 0)


class _Segment(NamedTuple):
    """A stretch of the clip at the working size, and the annotated frame: see :class:`Witness`."""

    frames: Tensor
    predicted: Tensor
    first_mask: Tensor
    first_frame: Tensor


def _look(
    network: AttentionNetwork, segment: _Segment, asked: range, reach: int, on_step: OnStep
) -> list[_Answer | None]:
    """Ask about some frames of a segment: within reach of the masks, and further where something goes on there."""
    region = neighbourhood(segment.predicted, reach)
    for last in (False, True):
        steps = part(on_step, 0.5 * last, 0.5 + 0.5 * last)
        witness = Witness(*segment, region, on_step=part(steps, 0, 0.6))
        answers = []
        for t in asked:
            answers.append(_weighed(network, witness.at(t)))
            part(steps, 0.6, 1)(len(answers), len(asked))
        further = None if last else _beyond(region, segment.predicted, answers, asked.start, reach)
        if further is None:
            break
        region = further
    return answers


@torch.no_grad()
def _weighed(network: AttentionNetwork, evidence: Evidence) -> _Answer | None:
    """Run the network on the part of a frame that matters; None where there is none."""
    region = evidence.region
    if not region.any():
        return None
    rows, columns = extent(region[0, 0] > 0, REACH, MULTIPLE)
    correction, shadow = network(evidence.map(lambda x: x[..., rows, columns]))
    whole = (region.shape[2], region.shape[3])
    return _Answer(rows, columns, correction, shadow, region[..., rows, columns].clone(), whole)


def _beyond(region: Tensor, masks: Tensor, answers: list[_Answer | None], first: int, reach: int) -> Tensor | None:
    """Return the region, widened where something found in it goes on beyond it; None where hardly anything does.

    Args:
        region, masks: (t, 1, h, w), of the segment.
        answers: of its frames from ``first`` on.
        reach: pixels around what was found that are to be looked at.
    """
    wider, touched = region.clone(), 0
    for t, answer in enumerate(answers, first):
        if answer is None:
            continue
        box = (slice(None), answer.rows, answer.columns)
        found = torch.zeros(1, *region.shape[1:])
        found[0][box] = answer.found(masks[t][box]).float()
        rim = (grow_mask(1 - region[t : t + 1], RIM) > 0.5) & (region[t : t + 1] > 0)
        if int((found.bool() & rim).sum()) > LEAST_PIXELS:
            touched += 1
            wider[t] = torch.maximum(wider[t], neighbourhood(found, reach)[0])
    return wider if touched > LEAST_TOUCHED * len(answers) else None


def _write(result: Attended, t: int, predicted: Tensor, answer: _Answer) -> None:
    """Bring one frame's answers to the clip's size, where the prediction's own edges are kept."""
    height, width = predicted.shape[1:]
    h, w = answer.whole
    maps = torch.zeros(3, 1, h, w)
    parts = (answer.correction, answer.shadow.sigmoid() * answer.region, answer.region)
    for whole, values in zip(maps, parts, strict=True):
        whole[:, answer.rows, answer.columns] = values[0]
    correction, shadow, region = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    found = (log_odds(predicted) + correction).sigmoid() * region
    result.target[t] = complemented(predicted, found, max(1, round(NEAR * height / h)))
    result.shadow[t] = _not_faint(shadow)


def complemented(predicted: Tensor, found: Tensor, near: int) -> Tensor:
    """Return M_attn of one frame (1, H, W): the prediction where something is found, and what is found beside it.

    What the prediction covers is taken back only where next to nothing is found: a part of the target that is left is
    worse than ground that is filled in vain.

    Args:
        predicted, found: (1, H, W) in [0, 1].
        near: pixels around the prediction within which faint values count; further off see :data:`UNSURE`.
    """
    beside = grow_mask((predicted > 0.5).float()[None], near)[0] > 0
    added = torch.where(beside, found, ((found - UNSURE) / (1 - UNSURE)).clamp(min=0))
    return torch.where(found < FAINT, 0, torch.maximum(predicted, added))


def _not_faint(values: Tensor) -> Tensor:
    return torch.where(values < FAINT, 0, values)


def steadied(shadow: Tensor, predicted: Tensor, *, on_step: OnStep = ignore) -> Tensor:
    """Let neighbouring frames agree on the shadow: it moves with the target, and does not come and go.

    A shadow that one frame alone shows is dropped, one that a frame misses is filled in.

    Args:
        shadow: float32 (T, 1, H, W) in [0, 1].
        predicted: (T, 1, H, W), by whose centres neighbours are laid over each other.
        on_step: called for every frame; may raise to stop.
    """
    centres = [_centre(mask[0] > 0.5) for mask in predicted]
    result = torch.zeros_like(shadow)
    for t, centre in enumerate(centres):
        on_step(t, len(centres))
        if centre is None:
            continue
        mean, total = torch.zeros_like(shadow[t]), 0.0
        for near in range(max(0, t - STEADY), min(len(shadow), t + STEADY + 1)):
            other = centres[near]
            if other is not None:
                weight = 1 - abs(near - t) / (STEADY + 1)
                mean += weight * _moved(shadow[near], round(centre[0] - other[0]), round(centre[1] - other[1]))
                total += weight
        mean /= total
        agreed = ((mean - LONE) / (0.5 - LONE)).clamp(0, 1)
        result[t] = torch.maximum(shadow[t] * (2 * agreed).clamp(max=1), agreed)
    return _not_faint(result)


def _centre(mask: Tensor) -> tuple[float, float] | None:
    """Mean row and column of a mask, bool (H, W); None if it is empty."""
    rows, columns = torch.nonzero(mask, as_tuple=True)
    return (float(rows.float().mean()), float(columns.float().mean())) if len(rows) else None


def _moved(image: Tensor, down: int, right: int) -> Tensor:
    """An image (C, H, W) moved by whole pixels; 0 comes in."""
    result = torch.zeros_like(image)
    height, width = image.shape[1:]
    if abs(down) < height and abs(right) < width:
        to = (slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0)))
        of = (slice(max(-down, 0), height + min(-down, 0)), slice(max(-right, 0), width + min(-right, 0)))
        result[:, to[0], to[1]] = image[:, of[0], of[1]]
    return result


def _shrunk(images: Tensor, at: list[int], h: int, w: int, on_step: OnStep) -> Tensor:
    """Some images (T, C, H, W) at the working size, float32 (n, C, h, w) on the CPU."""
    found = []
    for t in at:
        on_step(0, 1)
        found.append(_resized(images[t : t + 1], h, w))
    return torch.cat(found)


def _resized(image: Tensor, h: int, w: int) -> Tensor:
    """(1, C, H, W) at the working size, float32 on the CPU."""
    image = image.float().cpu()
    if image.shape[2:] == (h, w):
        return image
    return F.interpolate(image, (h, w), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
