"""Which attention a backbone gets: the features of its own encoder compared, or the learned map.

Dimensions: n frames, c channels, h w cells, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.frames import as_pair, pad_to_multiple
from ciri.inactivation.learned import shipped
from ciri.inpainting.base import Backbone
from ciri.inpainting.driver import WindowBackbone

#: Frames (N, 3, H, W) in [0, 1] to features (N, C, h, w), and the size of the picture that the features cover.
Encoder = Callable[[Tensor], tuple[Tensor, tuple[int, int]]]


def encoder_of(backbone: Backbone) -> Encoder | None:
    """Return what describes the frames of a clip for this backbone; None where the map is learned instead.

    ``flow`` has no encoder. That of ``lite`` is not asked: three convolutions find the target's surroundings almost as
    similar to it as the target itself.

    Args:
        backbone: any; one that has an encoder is asked for its coarsest features before inactivation.
    """
    if isinstance(backbone, WindowBackbone):
        network, device = backbone.network, backbone.device
        return _sized(lambda x: network.encode(x.to(device) * 2 - 1)["out"].float(), backbone)
    encode = getattr(backbone, "encode", None)
    return None if encode is None else _sized(lambda x: encode(x)[-1].float(), backbone)


def describe_attention(backbone: Backbone) -> str:
    """Say what this backbone's attention map rests on, in the words of a report."""
    if encoder_of(backbone) is not None:
        return f"features of the encoder of {backbone.name}"
    return "what other frames show, and what the painted object looks like, weighed by a network"


def learned_beta(backbone: Backbone) -> float | None:
    """The b of Eq. 3 that was learned with the attention this backbone gets, None where nothing was learned."""
    if encoder_of(backbone) is None:
        return float(shipped().fusion.beta)
    fusion = getattr(getattr(backbone, "network", None), "fusion", None)
    return None if fusion is None else float(fusion.beta.detach())


def size_seen(backbone: Backbone, height: int, width: int) -> tuple[int, int]:
    """The size at which a backbone's encoder sees frames: its fixed one, or theirs, padded to what it divides by."""
    facts = backbone.facts
    if facts.fixed_size is not None:
        return facts.fixed_size
    rows, columns = as_pair(facts.needs_divisible_by)
    return height + -height % rows, width + -width % columns


def _sized(encode: Callable[[Tensor], Tensor], backbone: Backbone) -> Encoder:
    """Bring frames to a size that the network takes: scaled to its fixed one, or padded."""
    facts = backbone.facts

    def encoder(frames: Tensor) -> tuple[Tensor, tuple[int, int]]:
        height, width = frames.shape[2:]
        size = size_seen(backbone, height, width)
        if facts.fixed_size is None:
            frames, _ = pad_to_multiple(frames, facts.needs_divisible_by)
            height, width = size
        elif size != (height, width):
            frames = F.interpolate(frames, size, mode="bilinear", antialias=True).clamp(0, 1)
        with torch.no_grad():
            return encode(frames), (height, width)

    return encoder
