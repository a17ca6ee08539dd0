"""Synthesis of what no frame shows."""

from __future__ import annotations

import torch
from torch import Tensor

from ciri.flow.completion import membrane


def synthesise(frame: Tensor, missing: Tensor) -> Tensor:
    """Return the frame (3, H, W) with its missing pixels (bool (H, W)) continued from what is around them."""
    smooth = membrane(frame[None], (~missing).to(frame)[None, None])[0]
    return torch.where(missing, smooth, frame)
