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
        maps: further feature maps (b, c, n h/stride, n w/stride) with whole n, coarse to fine, that the value encoder
            and the decoder use.
    """

    key: Tensor
    maps: tuple[Tensor, ...]

    def __getitem__(self, index: slice) -> FrameFeatures:
        """The same for some of the frames."""
        return FrameFeatures(self.key[index], tuple(m[index] for m in self.maps))

    def crop(self, top: int, left: int, bottom: int, right: int) -> FrameFeatures:
        """The same for a part of the frames: rows top..bottom-1 and columns left..right-1 of the key's grid."""

        def cut(m: Tensor) -> Tensor:
            n = m.shape[-1] // self.key.shape[-1]
            return m[..., n * top : n * bottom, n * left : n * right]

        return FrameFeatures(cut(self.key), tuple(cut(m) for m in self.maps))

    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(t.numel() * t.element_size() for t in (self.key, *self.maps))


class MemoryNetwork(Protocol):
    """A space-time memory network for one target (k = 1) or several.

    Frames have sides divisible by ``stride``; all values are in [0, 1]; normalisation is the network's business.
    Inputs are float32; a network whose weights were cast to bfloat16 or float16 casts them itself, and returns keys
    and logits in float32 (differences of squares, and 1 - 1e-7, do not survive in less).

    Attributes:
        name: how users call it.
        stride: the coarsest step in pixels.
        top_k: how many stored positions answer a query position; None: all.
        decode_margin: how many cells around a crop make the crop's inside decode as the whole frame does; None where
            the decoder looks at the whole frame and cannot be given a part of it.
        takes_hints: whether the decoder is told, frame by frame, what another propagator makes of the target.
    """

    name: str
    stride: int
    top_k: int | None
    decode_margin: int | None
    takes_hints: bool

    def encode_key(self, frames: Tensor) -> FrameFeatures:
        """Encode (b, 3, h, w) frames."""
        ...

    def encode_value(self, frame: Tensor, features: FrameFeatures, masks: Tensor, others: Tensor) -> Tensor:
        """Encode one frame (1, 3, h, w) with masks (k, 1, h, w) and the sum of the other objects' (k, 1, h, w).

        Returns (k, value channels, h/stride, w/stride).
        """
        ...

    def decode(self, readout: Tensor, features: FrameFeatures, hints: Tensor | None = None) -> Tensor:
        """Turn what memory answered, (k, value channels, h/stride, w/stride), into logits (k, 1, h, w).

        Args:
            readout: see above.
            features: of the frame.
            hints: (k, 2, h, w), where the network takes them: the probability that another propagator gives each
                pixel, and how sure it is of the frame. None: there are none.
        """
        ...

    def parameters_to_refine(self) -> list[torch.nn.Parameter]:
        """The weights that test-time refinement may change."""
        ...
