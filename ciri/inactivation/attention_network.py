"""The network that weighs the evidence: a complementary attention map (paper 3.2), learned instead of compared.

A U-Net over one frame's evidence. It answers with a correction of the predicted mask's log odds, so that untrained it
says what the propagator said, and with the log odds of the target's shadow. The two maps together are M_attn of Eq. 3.

Dimensions: n frames, c channels, h w pixels.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciri.checkpoints import load_strictly
from ciri.inactivation.evidence import Evidence
from ciri.inactivation.fusion import Fusion
from ciri.inpainting.lite_network import Block, conv, double
from ciri.own_weights import build_from_header, read_own

#: What the header of the weight file calls this network.
ARCHITECTURE = "attention_lite"
#: The weights that ship with the pack.
SHIPPED = Path(__file__).resolve().parents[2] / "weights" / "attention_lite.safetensors"
_MADE_BY = "train attention"
#: Height and width have to be multiples of this.
MULTIPLE = 16
#: Pixels beyond which the picture around a place hardly changes what is said of it.
REACH = 32
#: Predictions are never taken to be surer than this.
SUREST = 0.98
#: Log odds of a shadow where nothing speaks for one.
NO_SHADOW = -4.0
#: Planes of the evidence.
CHANNELS = 3 + 3 + 3 + 4 + 2 + 1 + 1


@dataclass(frozen=True)
class AttentionConfig:
    """Channels at each share of the resolution, and blocks at the coarsest."""

    half: int = 32
    quarter: int = 48
    eighth: int = 64
    sixteenth: int = 96
    deep: int = 3

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON has them."""
        return asdict(self)


class AttentionNetwork(nn.Module):
    """See the module's text.

    Args:
        config: sizes.
    """

    def __init__(self, config: AttentionConfig = AttentionConfig()) -> None:
        super().__init__()
        self.config = config
        c2, c4, c8, c16 = config.half, config.quarter, config.eighth, config.sixteenth
        self.fusion = Fusion(0.3)
        self.enter = conv(4 * CHANNELS, c2)
        self.down4, self.down8, self.down16 = conv(c2, c4, 2), conv(c4, c8, 2), conv(c8, c16, 2)
        self.block2, self.block4 = Block(c2), Block(c4)
        self.block8 = nn.Sequential(Block(c8), Block(c8, 2))
        self.deep = nn.Sequential(*(Block(c16, (1, 2, 4)[i % 3]) for i in range(config.deep)))
        self.up8, self.up4, self.up2 = nn.Conv2d(c16, c8, 1), nn.Conv2d(c8, c4, 1), nn.Conv2d(c4, c2, 1)
        self.post8, self.post4, self.post2 = Block(c8), Block(c4), Block(c2)
        self.out = conv(c2, 4 * 2)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.zero_()  # type: ignore[union-attr]
            self.out.bias[4:] = NO_SHADOW  # type: ignore[index]

    def forward(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Return what to add to the log odds of the prediction, and the log odds of shadow, (n, 1, h, w) each.

        Args:
            evidence: sides multiples of :data:`MULTIPLE`.
        """
        half = self.block2(self.enter(F.pixel_unshuffle(told(evidence), 2)))
        quarter = self.block4(self.down4(F.leaky_relu(half, 0.1)))
        eighth = self.block8(self.down8(F.leaky_relu(quarter, 0.1)))
        deep = self.deep(self.down16(F.leaky_relu(eighth, 0.1)))
        eighth = self.post8(eighth + double(self.up8(deep)))
        quarter = self.post4(quarter + double(self.up4(eighth)))
        half = self.post2(half + double(self.up2(quarter)))
        correction, shadow = F.pixel_shuffle(self.out(F.leaky_relu(half, 0.1)), 2).float().chunk(2, 1)
        return correction, shadow


def told(evidence: Evidence) -> Tensor:
    """The network's input (n, 17, h, w): the frame, how copies differ from it where there are any, and the rest."""
    e = evidence
    changes = [
        2 * (copy - e.frame) * (trust > 0) for copy, trust in ((e.before, e.cues[:, :1]), (e.after, e.cues[:, 1:2]))
    ]
    return torch.cat([2 * e.frame - 1, *changes, e.cues, 2 * e.looks - 1, 2 * e.predicted - 1, e.region], 1)


def log_odds(predicted: Tensor) -> Tensor:
    """Of masks in [0, 1], as sure as the correction can outweigh."""
    return torch.logit(predicted.clamp(1 - SUREST, SUREST))


def load_attention(path: str | os.PathLike[str] | None = None) -> AttentionNetwork:
    """Load trained weights, float32, in eval mode.

    Args:
        path: a file of ``python -m ciri train attention``; None: the weights that ship with the pack.

    Raises:
        CheckpointError: unreadable, or not weights of this network.
    """
    path = SHIPPED if path is None else path
    state, metadata = read_own(path, ARCHITECTURE, _MADE_BY)
    network = build_from_header(
        lambda **sizes: AttentionNetwork(AttentionConfig(**sizes)), state, metadata, path, _MADE_BY
    )
    load_strictly(network, state, model=ARCHITECTURE, path=path)
    return network.eval().requires_grad_(False)
