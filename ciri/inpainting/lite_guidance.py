"""What the lite network is told besides the frames: the pixels that copying along the flow finds.

One round of flow, on the clip with a smooth fill in place of the target, so that the target's motion does not spill
into its surroundings. Dimensions: t frames, h w pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.flow.completion import membrane
from ciri.flow.dis import neighbour_flow
from ciri.flow.propagate import (
    COVERED_ABOVE,
    HIDDEN_ABOVE,
    Candidates,
    PixelTable,
    complete_neighbour_flow,
    follow,
)
from ciri.progress import OnStep, ignore, part

#: The network warps features of an eighth of the resolution.
FLOW_SCALE = 8
#: How far around the hole flow is not believed, in pixels.
MARGIN = 5


@dataclass
class Guidance:
    """Dense inputs of some frames; all float32 in [0, 1] unless said otherwise.

    Attributes:
        base: (T, 3, H, W), the frame with its hidden pixels copied or, where no frame shows them, continued smoothly.
        before, after: (T, 3, H, W), copies from the past and from the future; the base where there is none.
        cues: (T, 4, H, W), trust in before and after (0 = none), then the inverse distances to their sources.
        forward, backward: (T-1, 2, H/8, W/8), completed flow between neighbours, in pixels of that size.
    """

    base: Tensor
    before: Tensor
    after: Tensor
    cues: Tensor
    forward: Tensor
    backward: Tensor

    def to(self, device: torch.device | str) -> Guidance:
        """Return a copy on another device."""
        return Guidance(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def find_copies(frames: Tensor, inactivation: Tensor, *, on_step: OnStep = ignore) -> Candidates:
    """Find the sources of every covered pixel of a clip, with one round of flow.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        inactivation: float32 (T, 1, H, W) in [0, 1].
        on_step: progress callback; may raise to stop.
    """
    frames, inactivation = frames.cpu(), inactivation.cpu()
    visible = inactivation[:, 0] <= HIDDEN_ABOVE
    covered = [torch.nonzero(m.flatten() > COVERED_ABOVE).flatten() for m in inactivation]
    without = torch.stack([_smooth(f, m) for f, m in zip(frames, visible, strict=True)])
    forward, backward = neighbour_flow(without, on_step=part(on_step, 0.0, 0.7))
    complete_neighbour_flow(forward, backward, inactivation, MARGIN, on_step=part(on_step, 0.7, 0.8))
    after = follow(forward, backward, visible, covered, ahead=True, on_step=part(on_step, 0.8, 0.9))
    before = follow(backward, forward, visible, covered, ahead=False, on_step=part(on_step, 0.9, 1.0))
    return Candidates(frames, visible, PixelTable(frames, visible), covered, before, after, forward, backward)


def _smooth(frame: Tensor, visible: Tensor) -> Tensor:
    return frame if visible.all() else membrane(frame[None], visible[None, None].float())[0]


def guidance(candidates: Candidates, window: Iterable[int]) -> Guidance:
    """Return the network's inputs for consecutive frames of a clip.

    Args:
        candidates: of :func:`find_copies`.
        window: consecutive frame numbers.
    """
    window = list(window)
    rows = [_frame(candidates, t) for t in window]
    base, before, after, cues = (torch.stack(column) for column in zip(*rows, strict=True))
    pairs = slice(window[0], window[-1])
    return Guidance(base, before, after, cues, _coarse(candidates.forward[pairs]), _coarse(candidates.backward[pairs]))


def _frame(candidates: Candidates, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return base, before, after and cues of one frame."""
    frame = candidates.frames[t]
    copies = [candidates.copied(t, side) for side in ("before", "after")]
    weights = [copy.trust / copy.distance.clamp(min=1) for copy in copies]
    total = weights[0] + weights[1]
    blended = sum(w * copy.colours for w, copy in zip(weights, copies, strict=True)) / total.clamp(min=1e-8)
    hidden, found = ~candidates.visible[t][None], total > 0
    base = torch.where(hidden & found, blended, frame)
    lost = hidden & ~found
    if lost.any():
        base = membrane(base[None], (~lost)[None].float())[0]
    before, after = (torch.where(copy.valid, copy.colours, base) for copy in copies)
    near = [copy.valid / copy.distance.clamp(min=1) for copy in copies]
    return base, before, after, torch.cat([copies[0].trust, copies[1].trust, *near])


def _coarse(flow: Tensor) -> Tensor:
    h, w = flow.shape[-2:]
    size = (-(-h // FLOW_SCALE), -(-w // FLOW_SCALE))
    return F.adaptive_avg_pool2d(flow, size) / FLOW_SCALE
