"""E2FGVI and E2FGVI-HQ (Li et al., "Towards An End-to-End Framework for Flow-Guided Video Inpainting", CVPR 2022).

Every frame is encoded on its own; flow between neighbouring local frames guides the propagation of their features;
local and reference frames together become tokens, which eight focal transformer blocks transform; the composed
tokens are added to the features and decoded::

    local frames -> flow -> propagation -+
                                         |
    frames -> encoder -> features -------+--> tokens -> 8 blocks -> composition -> + -> decoder -> frames
                                         |                                         |
                                         +-----------------------------------------+

Holes are grey in the frames; the network gets no mask.

Dimensions: B clips, T frames, the first L of them local, H W pixels, h w = H/4 W/4 features, gh gw token grid.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciri.errors import CheckpointError
from ciri.frames import Multiple
from ciri.inpainting.base import BackboneFacts
from ciri.inpainting.blocks import Decoder, HierarchicalEncoder
from ciri.inpainting.e2fgvi_propagation import BidirectionalPropagation
from ciri.inpainting.focal import FocalBlock, ring_positions
from ciri.inpainting.network import Stage, WindowNetwork, channels_last, in_chunks
from ciri.inpainting.soft_split import SoftComposition, SoftSplit
from ciri.inpainting.spynet import SPyNet

LICENCE = "CC BY-NC 4.0 (non-commercial)"


class E2FGVI(WindowNetwork):
    """The released network for 432 x 240 frames."""

    name = "e2fgvi"
    facts = BackboneFacts(fixed_size=(240, 432), least_window=(240, 432), trained_for="hard mask", licence=LICENCE)
    uses_flow = True

    def __init__(self) -> None:
        super().__init__()
        self.encoder = HierarchicalEncoder()
        self.decoder = Decoder(128)
        self.feat_prop_module = BidirectionalPropagation(128)
        self.ss = SoftSplit(128, 512)
        self.sc = self.soft_composition()
        self.transformer = nn.ModuleList(FocalBlock(512, 4) for _ in range(8))
        self.update_spynet = SPyNet()

    def soft_composition(self) -> SoftComposition:
        """With a learned bias map, which binds this variant to its size."""
        return SoftComposition(128, 512, bias_size=(60, 108))

    def stages(self) -> Mapping[str, Stage]:
        """The encoder up to 1/2, up to X0, and to its end."""
        return {"half": self.encoder.to_half, "x0": self.encoder.to_quarter, "out": self.encoder.merge}

    def flows(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow at a quarter of the frames' size, both directions in one batch; see :class:`WindowNetwork`."""
        size = (first.shape[2] // 4, first.shape[3] // 4)
        # the released program samples a quarter of the pixels without averaging, from corner to corner
        small = [F.interpolate((x + 1) / 2, size, mode="bilinear", align_corners=True) for x in (first, second)]
        pairs = torch.cat([torch.cat(small, 1), torch.cat(small[::-1], 1)])
        with self.autocast(first.device):
            flow = in_chunks(
                lambda pair: self.update_spynet(*pair.split(3, 1)), pairs, 2 * self.at_once(*first.shape[2:])
            )
        return torch.stack(flow.chunk(2), 1)

    def propagate(self, features: Tensor, local: int, flows: Tensor) -> Tensor:
        """Carry features between the local frames (B, T, 128, h, w); reference frames keep theirs."""
        with self.autocast(features.device):
            propagated = self.feat_prop_module(features[:, :local], flows[:, :, 0], flows[:, :, 1])
        return torch.cat([propagated, features[:, local:].to(propagated.dtype)], 1)

    def transform(self, features: Tensor, wanted: int) -> Tensor:
        """Soft split, transformer and soft composition: (B, T, 128, h, w) to float32 (B, wanted, 128, h, w).

        The last block asks for the wanted frames only; all T answer.
        """
        size = (features.shape[3], features.shape[4])
        some = self.at_once(4 * size[0], 4 * size[1])
        with self.autocast(features.device):
            tokens = in_chunks(self.ss, features.flatten(0, 1), some).float().unflatten(0, features.shape[:2])
            for index, block in enumerate(self.transformer):
                last = index == len(self.transformer) - 1
                tokens = block(tokens, size, wanted if last else None, some)
            composed = in_chunks(lambda part: self.sc(part, size), tokens.flatten(0, 1), some)
        return composed.float().unflatten(0, tokens.shape[:2])

    def decode(self, features: Tensor) -> Tensor:
        """Features (N, 128, h, w) to frames (N, 3, 4 h, 4 w) in (-1, 1)."""
        some = self.at_once(4 * features.shape[2], 4 * features.shape[3])
        with self.autocast(features.device):
            decoded = in_chunks(lambda part: self.decoder(channels_last(part)), features, some)
        return decoded.float().tanh()

    def decode_window(
        self, features: Tensor, local: int, flows: Tensor | None = None, wanted: int | None = None
    ) -> Tensor:
        """Fill local frames; see :class:`WindowNetwork`. ``wanted`` asks for another number of frames than L."""
        if flows is None:
            if local > 1:
                raise ValueError(f"{local} local frames need the flows between them.")
            flows = features.new_zeros(len(features), local - 1, 2, 2, *features.shape[3:])
        wanted = local if wanted is None else wanted
        propagated = self.propagate(features, local, flows)
        summed = propagated[:, :wanted] + self.transform(propagated, wanted)
        return self.decode(summed.flatten(0, 1)).unflatten(0, summed.shape[:2])

    def forward(self, frames: Tensor, local: int) -> tuple[Tensor, Tensor]:
        """The published network as one call, for training and comparison.

        Args:
            frames: (B, T, 3, H, W) in [-1, 1], grey in the holes.
            local: L.

        Returns:
            All T frames filled (B, T, 3, H, W) in (-1, 1), and flows (B, L - 1, 2, 2, h, w) to the next frame and back.
        """
        batch, length = frames.shape[:2]
        features = self.encode(frames.flatten(0, 1))
        flows = self.flows(frames[:, : local - 1].flatten(0, 1), frames[:, 1:local].flatten(0, 1))
        flows = flows.unflatten(0, (batch, local - 1))
        gated = features["out"].unflatten(0, (batch, length))
        return self.decode_window(gated, local, flows, length), flows


class E2FGVIHQ(E2FGVI):
    """The released network for any size that is a multiple of 60 x 108; the released program mirrors other sizes."""

    name = "e2fgvi_hq"
    facts = BackboneFacts(
        needs_divisible_by=Multiple(60, 108, mirrored=True),
        least_window=(240, 432),
        trained_for="hard mask",
        licence=LICENCE,
    )

    def soft_composition(self) -> SoftComposition:
        """With a convolution in place of the map."""
        return SoftComposition(128, 512, convolution=True)


def check_attention_windows(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Refuse weights whose transformer was made for attention windows of another shape than this one's.

    Raises:
        CheckpointError: the positions stored with the weights differ.
    """
    for key, value in state.items():
        if key.endswith("valid_ind_rolled") and value.tolist() != ring_positions():
            raise CheckpointError(f"{path} was made for attention windows of another shape ({key} differs).")
