"""STCN, the published propagator that the paper uses (Cheng et al., NeurIPS 2021), for its own checkpoints.

Dimensions: b frames, k objects, h w pixels (multiples of 16).
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from ciri.checkpoints import load_strictly, read_state_dict
from ciri.errors import CheckpointError
from ciri.propagation.engine import MemoryPropagator
from ciri.propagation.network import FrameFeatures
from ciri.propagation.stcn_blocks import Decoder, KeyEncoder, KeyProjection, ValueEncoder

#: ImageNet's channel statistics, for RGB in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_VALUE_INPUT = "value_encoder.conv1.weight"


class STCN(nn.Module):
    """A :class:`ciri.propagation.network.MemoryNetwork`; 54.4 M parameters, state dict as published.

    Args:
        top_k: how many stored positions answer a query position; None: all (as in training).
    """

    name = "stcn"
    stride = 16
    #: A change in one cell reaches 74 pixels beyond it.
    decode_margin: int | None = 5
    takes_hints = False
    #: Runs for stored frames only; see :func:`ciri.precision.inference_copy`.
    seldom_used = ("value_encoder",)

    def __init__(self, top_k: int | None = 20) -> None:
        super().__init__()
        self.top_k = top_k
        self.key_encoder = KeyEncoder()
        self.value_encoder = ValueEncoder()
        self.key_proj = KeyProjection()
        self.key_comp = nn.Conv2d(1024, 512, 3, padding=1)
        self.decoder = Decoder()
        self.eval()

    def train(self, mode: bool = True) -> STCN:
        """Batch norm uses its stored statistics always, also while the weights are tuned: clips are no batches."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def encode_key(self, frames: Tensor) -> FrameFeatures:
        """(b, 3, h, w) -> key (b, 64, h/16, w/16) and maps f16 (1024), f8 (512), f4 (256)."""
        f4, f8, f16 = self.key_encoder(self._normalised(frames))
        return FrameFeatures(self.key_proj(f16).float(), (f16, f8, f4))

    def encode_value(self, frame: Tensor, features: FrameFeatures, masks: Tensor, others: Tensor) -> Tensor:
        """(1, 3, h, w), its features, (k, 1, h, w) twice -> (k, 512, h/16, w/16)."""
        k = len(masks)
        frames = self._normalised(frame).expand(k, -1, -1, -1)
        masks = torch.cat([masks, others], 1).to(frames.dtype)
        value: Tensor = self.value_encoder(torch.cat([frames, masks], 1), features.maps[0].expand(k, -1, -1, -1))
        return value

    def decode(self, readout: Tensor, features: FrameFeatures, hints: Tensor | None = None) -> Tensor:
        """(k, 512, h/16, w/16), features of the frame -> logits, float32 (k, 1, h, w). Hints are not looked at."""
        del hints
        f16, f8, f4 = features.maps
        # Here, not in encode_key: a crop then needs only its own part of it, and refinement may tune it (paper 3.3).
        thin = self.key_comp(f16).expand(len(readout), -1, -1, -1)
        logits: Tensor = self.decoder(torch.cat([readout.to(thin.dtype), thin], 1), f8, f4)
        return logits

    def parameters_to_refine(self) -> list[nn.Parameter]:
        """The decoder and the layer that feeds it: they take nine tenths of a step, and keys stay comparable."""
        return [*self.key_comp.parameters(), *self.decoder.parameters()]

    def _normalised(self, frames: Tensor) -> Tensor:
        mean, std = (frames.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        return ((frames - mean) / std).to(self.key_encoder.conv1.weight.dtype)


def load_stcn(path: str | os.PathLike[str]) -> STCN:
    """Return the network with the weights of a published checkpoint (``stcn.pth``, or a training snapshot).

    A file of the first training stage has no input for other objects (4 channels instead of 5): with the missing
    weights 0 it does what it was trained for, which is one object.

    Raises:
        CheckpointError: unreadable, or another model's weights.
    """
    state, _ = read_state_dict(path)
    first = state.get(_VALUE_INPUT)
    if first is not None and first.ndim == 4 and first.shape[1] == 3:
        raise CheckpointError(
            f"{path}: {_VALUE_INPUT} takes 3 channels, so these are ImageNet weights to start a training from. "
            "Expected a trained STCN (4 or 5 channels), such as the authors' stcn.pth."
        )
    if first is not None and first.ndim == 4 and first.shape[1] == 4:
        state = {**state, _VALUE_INPUT: torch.cat([first, first.new_zeros(len(first), 1, *first.shape[2:])], 1)}
    network = STCN()
    load_strictly(network, state, model="stcn", path=path)
    return network


def build_stcn(weights: str | os.PathLike[str], **options: Any) -> MemoryPropagator:
    """Return the propagator with the weights of a file.

    Args:
        weights: a published checkpoint.
        options: as :class:`MemoryPropagator` takes them. The last frame stays out of the memory unless asked for: it
            costs a third more time, and the authors' ablation finds it no better.

    Raises:
        CheckpointError: see :func:`load_stcn`.
    """
    return MemoryPropagator(load_stcn(weights), **{"include_last": False, **options})
