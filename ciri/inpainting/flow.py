"""The classical backbone: what is hidden now was, or will be, visible in another frame."""

from __future__ import annotations

import torch
from torch import Tensor

from ciri.flow.completion import membrane
from ciri.flow.propagate import COVERED_ABOVE, Candidates, propagate_pixels, sample, trust_of
from ciri.inpainting.base import BackboneFacts
from ciri.progress import OnStep, ignore, part


class FlowBackbone:
    """Copies hidden pixels along completed optical flow, and fills what no frame shows from around it."""

    name = "flow"
    facts = BackboneFacts()

    def inpaint(self, frames: Tensor, inactivation: Tensor, *, on_step: OnStep = ignore) -> Tensor:
        """See :class:`ciri.inpainting.base.Backbone`."""
        candidates = propagate_pixels(frames, inactivation, on_step=part(on_step, 0.0, 0.8))
        return classical_fill(candidates, on_step=part(on_step, 0.8, 1.0)).to(frames.device)


def classical_fill(candidates: Candidates, *, on_step: OnStep = ignore) -> Tensor:
    """Return float32 (T, 3, H, W) in [0, 1] on the CPU: the clip with every covered pixel filled."""
    result = candidates.frames.clone()
    count, _, h, w = result.shape
    for t, index in enumerate(candidates.covered):
        total, colours = torch.zeros(len(index), 1), torch.zeros(len(index), 3)
        for source in (candidates.before[t], candidates.after[t]):
            distance = (source.frame - t).abs().clamp(min=1)
            weight = (trust_of(source) / distance)[:, None]
            colours += weight * sample(candidates.frames, source)
            total += weight
        filled = result[t].reshape(3, -1)
        filled[:, index] = (colours / total.clamp(min=1e-8)).T
        missing = torch.zeros(h * w)
        missing[index] = (total[:, 0] <= 0).float()
        if missing.any():
            smooth = membrane(result[t : t + 1], 1 - missing.reshape(1, 1, h, w))
            result[t] = smooth[0]
        on_step(t + 1, count)
    return result.clamp(0, 1)
