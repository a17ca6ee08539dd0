"""What the memory engine asks of a network: STCN and the small shipped propagator both look like this.

Dimensions: b frames in a batch, k objects, h w pixels; stride is the network's coarsest step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass
class FrameFeatures:
    """Everything about frames that does not depend on a mask, so it is computed once per clip.

    Attributes:
        key: float32 (b, key channels, h/stride, w/stride); compared between frames.
        maps: further feature maps (b, ...), coarse to fine, that the value encoder and the decoder use.
    """

    key: Tensor
    maps: tuple[Tensor, ...]

    def __getitem__(self, index: slice) -> FrameFeatures:
        """The same for some of the frames."""
        return FrameFeatures(self.key[index], tuple(m[index] for m in self.maps))


class MemoryNetwork(Protocol):
    """A space-time memory network for one target (k = 1) or several.

    Frames have sides divisible by ``stride``; all values are in [0, 1]; normalisation is the network's business.
    """

    name: str
    stride: int
    top_k: int

    def encode_key(self, frames: Tensor) -> FrameFeatures:
        """Encode (b, 3, h, w) frames."""
        ...

    def encode_value(self, frame: Tensor, features: FrameFeatures, masks: Tensor, others: Tensor) -> Tensor:
        """Encode one frame (1, 3, h, w) with masks (k, 1, h, w) and the sum of the other objects' (k, 1, h, w).

        Returns (k, value channels, h/stride, w/stride).
        """
        ...

    def decode(self, readout: Tensor, features: FrameFeatures) -> Tensor:
        """Turn what memory answered, (k, value channels, h/stride, w/stride), into logits (k, 1, h, w)."""
        ...

    def parameters_to_refine(self) -> list[torch.nn.Parameter]:
        """The weights that test-time refinement may change."""
        ...
