"""Models so simple that what a node has to return can be written down: the tests are about the nodes."""

from __future__ import annotations

import torch

from ciri.inpainting.base import BackboneFacts
from ciri.propagation.base import MaskTrack
from ciri.residue.crops import crop, search_window


class Hold:
    """A propagator that holds the first annotated mask; its confidence falls by 0.1 a frame."""

    name = "hold"

    def __init__(self):
        self.calls = []

    def propagate(self, frames, key_masks, key_frames, *, on_step):
        self.calls.append((frames, key_masks, list(key_frames)))
        for index in range(len(frames)):
            on_step(index + 1, len(frames))
        confidence = (1 - 0.1 * torch.arange(len(frames))).clamp(min=0)
        return MaskTrack(key_masks[:1].expand(len(frames), -1, -1, -1), confidence, ["The mask was held."])

    def parameters_to_refine(self):
        return []


class Grey:
    """A backbone that paints everything grey, also what it was not asked for."""

    name = "grey"
    facts = BackboneFacts(needs_divisible_by=8)

    def inpaint(self, frames, inactivation, *, on_step):
        assert frames.shape[2] % 8 == 0 and frames.shape[3] % 8 == 0
        on_step(1, 1)
        return torch.full_like(frames, 0.5)


class Red:
    """A residue detector that answers to red; its threshold lets nothing else count."""

    name, threshold, device = "red", 0.25, torch.device("cpu")

    def template(self, frame, mask):
        return frame.mean((1, 2))

    def detect(self, template, frames, boxes, removal=None):
        cut = crop(frames, [search_window(box) for box in boxes], 48, template)
        return 20 * (cut[:, :1] - cut[:, 1:2] - 0.5)
