"""The shipped propagator: a small space-time memory network whose weights are ours.

The principle is that of space-time memory networks (Oh et al., ICCV 2019; Cheng et al., STCN, NeurIPS 2021): a key
per image cell, a value per remembered cell, a top-k read, a decoder. The parts are smaller: an EfficientNet-Lite0
(:mod:`ciri.propagation.lite_encoder`) looks at each frame once; the value encoder sees only the mask and borrows those
features. Every remembered cell also carries a summary of the whole target, so that the decoder can ask "is this the
same thing?" where the cell's own surroundings do not tell.

The decoder starts from a hint, the mask that the classical propagator carried to the frame, and corrects it: untrained,
the network answers with the hint. Flow follows small steps well and forgets what the target was; memory is the other
way round. Without a hint (the target was lost, or hints are switched off) memory answers alone.

Dimensions: b frames in a batch, k objects, h w pixels; f2 .. f32 are feature maps at 1/2 .. 1/32 of the frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciri.checkpoints import load_strictly
from ciri.own_weights import read_own
from ciri.propagation.engine import MemoryPropagator
from ciri.propagation.flow import FlowPropagator
from ciri.propagation.lite_encoder import C2, C4, C8, C16, C32, Lite0Encoder, ScaledConv
from ciri.propagation.network import FrameFeatures

#: What the header of the weight file calls this network.
ARCHITECTURE = "propagator_lite"

#: Where the weights are that ship with the pack.
SHIPPED = Path(__file__).parents[2] / "weights" / "propagator_lite.safetensors"

KEY, TRUNK, LOCAL, SUMMARY = 64, 192, 192, 64
VALUE = LOCAL + SUMMARY
#: Frames are brought to this many pixels on the shorter side, small ones enlarged by at most so much: a cell of the
#: memory is 16 pixels wide, and thin parts get lost in it.
SHORT_SIDE, ENLARGE = 480, 2.0
#: Hints are never taken to be surer than this.
HINT_RANGE = (0.03, 0.97)


class ResidualBlock(nn.Module):
    """Pre-activation residual block without normalisation; it starts as its shortcut (last weights zero)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        _zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.skip(x) + self.conv2(F.relu(self.conv1(F.relu(x))))
        return out


class ValueEncoder(nn.Module):
    """What a remembered frame says about the target: its mask, joined with the frame's own features on the way down.

    The value of a cell is local (192 channels) and a summary of the target and its background (64, the same in
    every cell of the frame).
    """

    def __init__(self) -> None:
        super().__init__()
        self.mask2 = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.mask4 = nn.Conv2d(16 + C2, 32, 3, stride=2, padding=1)
        self.mask8 = nn.Conv2d(32 + C4, 64, 3, stride=2, padding=1)
        self.mask16 = nn.Conv2d(64 + C8, 128, 3, stride=2, padding=1)
        self.fuser = nn.Sequential(ResidualBlock(128 + TRUNK, LOCAL), ResidualBlock(LOCAL, LOCAL))
        self.summary = nn.Linear(2 * LOCAL, SUMMARY)

    def forward(self, masks: Tensor, features: FrameFeatures) -> Tensor:
        trunk, f8, f4, f2 = (m.expand(len(masks), -1, -1, -1) for m in features.maps)
        masks = masks.to(trunk.dtype)
        x = F.relu(self.mask2(masks * 2 - 1))
        x = F.relu(self.mask4(torch.cat([x, f2], 1)))
        x = F.relu(self.mask8(torch.cat([x, f4], 1)))
        x = F.relu(self.mask16(torch.cat([x, f8], 1)))
        local = self.fuser(torch.cat([x, trunk], 1))
        inside = F.avg_pool2d(masks, 16)
        parts = []
        for weight in (inside, 1 - inside):
            # sums over the cells of a large frame go beyond what fp16 holds; means do not
            total, area = (x.sum((2, 3), dtype=torch.float32) for x in (local * weight, weight))
            parts.append((total / (area + 1e-2)).to(local.dtype))
        summary = self.summary(torch.cat(parts, 1))[:, :, None, None].expand(-1, -1, *local.shape[-2:])
        return torch.cat([local, summary], 1)


class HintEncoder(nn.Module):
    """The hint (k, 2, h, w) at 1/2, 1/4, 1/8 and 1/16: 16, 32, 64 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.at2 = nn.Conv2d(8, 16, 3, padding=1)
        self.at4 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.at8 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.at16 = nn.Conv2d(64, 64, 3, stride=2, padding=1)

    def forward(self, hints: Tensor) -> list[Tensor]:
        maps = [F.relu(self.at2(F.pixel_unshuffle(hints, 2)))]
        for layer in (self.at4, self.at8, self.at16):
            maps.append(F.relu(layer(maps[-1])))
        return maps


class Decoder(nn.Module):
    """From what memory answered and the hint to a logit per pixel, with skips at 1/16, 1/8, 1/4 and 1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.hints = HintEncoder()
        self.compress = ResidualBlock(VALUE + TRUNK + 64, 192)
        self.hint8, self.hint4, self.hint2 = nn.Conv2d(64, 192, 1), nn.Conv2d(32, 96, 1), nn.Conv2d(16, 16, 1)
        self.skip8, self.out8 = nn.Conv2d(C8, 192, 1), ResidualBlock(192, 96)
        self.skip4, self.out4 = nn.Conv2d(C4, 96, 1), ResidualBlock(96, 48)
        self.narrow, self.skip2 = nn.Conv2d(48, 16, 1), nn.Conv2d(C2, 16, 1)
        self.out2 = nn.Conv2d(16, 16, 3, padding=1)
        self.predict4 = nn.Conv2d(48, 1, 3, padding=1)
        self.predict2 = nn.Conv2d(16, 1, 3, padding=1)
        _zero(self.predict4)
        _zero(self.predict2)

    def forward(self, readout: Tensor, features: FrameFeatures, hints: Tensor) -> Tensor:
        trunk, f8, f4, f2 = features.maps
        k = len(readout) // len(trunk)
        hint2, hint4, hint8, hint16 = self.hints(hints.to(trunk.dtype))
        x = self.compress(torch.cat([readout, _per_object(trunk, k), hint16], 1))
        x = self.out8(_double(x) + _per_object(self.skip8(f8), k) + self.hint8(hint8))
        x = self.out4(_double(x) + _per_object(self.skip4(f4), k) + self.hint4(hint4))
        coarse = self.predict4(F.relu(x))
        # at 1/2 only a correction of the boundary is learnt: these layers are thin because the map is large
        fine = F.relu(_double(self.narrow(F.relu(x))) + _per_object(self.skip2(f2), k) + self.hint2(hint2))
        fine = self.predict2(F.relu(self.out2(fine)))
        logits = _double(coarse).float() + fine.float()
        correction = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        # half of the hint's log odds: soft aggregation of a single object doubles them again
        return correction + 0.5 * torch.logit(hints[:, :1].float().clamp(*HINT_RANGE))


class LiteNetwork(nn.Module):
    """The shipped propagator's network (see ciri.propagation.network.MemoryNetwork for what the methods promise).

    Objects do not see each other: with several, only the aggregation of their probabilities lets them compete.

    Args:
        folded: whether the encoder's scales are part of its weights, as in the shipped file. Training uses False.
    """

    name = "lite"
    stride = 16
    top_k: int | None = 20
    decode_margin: int | None = 5
    takes_hints = True
    key_channels = KEY
    value_channels = VALUE

    def __init__(self, *, folded: bool = True) -> None:
        super().__init__()
        self.encoder = Lite0Encoder()
        self.lateral16 = nn.Conv2d(C16, TRUNK, 1)
        self.lateral32 = nn.Conv2d(C32, TRUNK, 1)
        self.trunk = ResidualBlock(TRUNK, TRUNK)
        self.key = nn.Conv2d(TRUNK, KEY, 3, padding=1)
        self.value_encoder = ValueEncoder()
        self.decoder = Decoder()
        if folded:
            self.fold()

    def fold(self) -> LiteNetwork:
        """Fold the encoder's scales into its weights; the function stays the same."""
        for module in self.modules():
            if isinstance(module, ScaledConv):
                module.fold()
        return self

    def encode_key(self, frames: Tensor) -> FrameFeatures:
        """Encode (b, 3, h, w) frames in [0, 1], sides divisible by 16.

        Returns key (b, 64, h/16, w/16), float32, and the maps trunk (192 at 1/16), f8 (40), f4 (24), f2 (16).
        """
        f2, f4, f8, f16, f32 = self.encoder(frames.to(self.encoder.stem.weight.dtype))
        context = F.interpolate(self.lateral32(f32), size=f16.shape[-2:], mode="bilinear", align_corners=False)
        trunk = self.trunk(self.lateral16(f16) + context)
        return FrameFeatures(self.key(F.relu(trunk)).float(), (trunk, f8, f4, f2))

    def encode_value(self, frame: Tensor, features: FrameFeatures, masks: Tensor, others: Tensor) -> Tensor:
        """Encode masks (k, 1, h, w) of the frame that the features (b = 1, or b = k) belong to.

        Returns (k, 256, h/16, w/16). The frame itself and the other objects are not looked at: the features say all.
        """
        del frame, others
        value: Tensor = self.value_encoder(masks, features)
        return value

    def decode(self, readout: Tensor, features: FrameFeatures, hints: Tensor | None = None) -> Tensor:
        """Turn (k, 256, h/16, w/16) and the features of one frame (or of k) into logits (k, 1, h, w), float32.

        Hints are (k, 2, h, w): probability and certainty. None is the same as all 0, which is what a target that was
        lost looks like.
        """
        if hints is None:
            h, w = (16 * side for side in readout.shape[-2:])
            hints = readout.new_zeros(len(readout), 2, h, w, dtype=torch.float32)
        logits: Tensor = self.decoder(readout, features, hints)
        return logits

    def parameters_to_refine(self) -> list[nn.Parameter]:
        """The decoder and the value fuser: keys and their affinities stay constants of the clip."""
        return [*self.decoder.parameters(), *self.value_encoder.fuser.parameters()]


def load_lite(path: str | Path) -> LiteNetwork:
    """Read the shipped propagator's weights (.safetensors, fp16) into a float32 network in eval mode.

    Raises:
        CheckpointError: no such file, a broken one, or the weights of another network.
    """
    state, _ = read_own(path, ARCHITECTURE, "train propagator")
    network = LiteNetwork()
    load_strictly(network, state, model=ARCHITECTURE, path=path)
    return network.eval()


def build_lite(weights: str | Path | None = None, **options: Any) -> MemoryPropagator:
    """Return the shipped propagator.

    Args:
        weights: a weight file; None: the one that ships with the pack.
        options: as :class:`MemoryPropagator` takes them.

    Raises:
        CheckpointError: see :func:`load_lite`.
    """
    options = {"guide": FlowPropagator(), "short_side": SHORT_SIDE, "enlarge": ENLARGE, **options}
    return MemoryPropagator(load_lite(weights or SHIPPED), **options)


def _per_object(x: Tensor, k: int) -> Tensor:
    """Repeat one frame's map for its k objects (a view: nothing is copied)."""
    return x if k == 1 else x.repeat_interleave(k, 0)


def _zero(conv: nn.Conv2d) -> None:
    """Let a layer begin by adding nothing."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
