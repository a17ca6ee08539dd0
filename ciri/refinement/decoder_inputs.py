"""What a memory propagator's decoder saw, kept, so that tuning the decoder repeats nothing that comes before it.

Dimensions: n frames, h w the network's pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ciri.errors import CiriError
from ciri.progress import OnStep, ignore, part
from ciri.propagation.base import Propagator
from ciri.propagation.clip import EncodedClip, FeatureCache, Geometry
from ciri.propagation.engine import GUIDE_SHARE, MemoryPropagator
from ciri.propagation.network import FrameFeatures, MemoryNetwork
from ciri.propagation.tracking import DirectedPass, Prediction
from ciri.propagation.units import WorkUnits


@dataclass(frozen=True)
class Annotated:
    """A clip (T, 3, H, W) and the annotated mask (1, H, W) of frame ``index``."""

    frames: Tensor
    mask: Tensor
    index: int


@dataclass(frozen=True)
class DecoderInputs:
    """Inputs of the decoder for some frames.

    Attributes:
        readout: frame number -> (1, value channels, h/16, w/16), what memory answered.
        features: frame number -> the frame's features.
        hints: frame number -> (1, 2, h, w), for networks that take hints.
        geometry: how the network's pixels map to the clip's.
    """

    readout: dict[int, Tensor]
    features: dict[int, FrameFeatures]
    hints: dict[int, Tensor]
    geometry: Geometry

    def logits(self, network: MemoryNetwork, at: Sequence[int]) -> Tensor:
        """Decode frames: logits (n, 1, H, W) in the clip's pixels; gradients flow to the network's weights."""
        features = [self.features[t] for t in at]
        together = FrameFeatures(
            torch.cat([f.key for f in features]),
            tuple(torch.cat(maps) for maps in zip(*(f.maps for f in features), strict=True)),
        )
        hints = torch.cat([self.hints[t] for t in at]) if self.hints else None
        logits = network.decode(torch.cat([self.readout[t] for t in at]), together, hints)
        return self.geometry.masks_out(logits).cpu()


def refinable(propagator: Propagator | None, mode: str) -> MemoryPropagator:
    """Return the propagator if its weights can be tuned.

    Raises:
        CiriError: there is none, or it has no weights.
    """
    if not isinstance(propagator, MemoryPropagator):
        name = "no propagator was given" if propagator is None else f"the propagator '{propagator.name}' has no weights"
        raise CiriError(
            f"Refinement in mode '{mode}' tunes a propagator's weights, but {name}. Use mode 'auto', which needs none, "
            "or the propagator lite or stcn."
        )
    return propagator


def own_copy(propagator: MemoryPropagator) -> MemoryPropagator:
    """Return a copy with weights of its own, in float32 and fit for a graph; the given one is never written to.

    A step of 1e-6 on a half-precision weight would round to nothing.
    """
    twin = copy.deepcopy(propagator)
    network = twin.network
    assert isinstance(network, nn.Module)
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # a clone: under inference mode the copy would be an inference tensor, which no graph takes
            setattr(module, name, nn.Parameter(parameter.detach().clone().float(), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            whole = buffer.detach().clone()
            setattr(module, name, whole.float() if whole.is_floating_point() else whole)
    network.eval()
    return twin


@torch.no_grad()
def record(
    propagator: MemoryPropagator, clip: Annotated, wanted: Sequence[int], on_step: OnStep = ignore
) -> DecoderInputs:
    """Propagate once from the annotated frame, and keep what the decoder gets in the wanted frames."""
    network = propagator.network
    assert isinstance(network, nn.Module)
    device = propagator.device or next(network.parameters()).device
    network.to(device)
    height, width = int(clip.frames.shape[2]), int(clip.frames.shape[3])
    geometry = propagator.geometry(height, width)
    units, cache = WorkUnits(1), FeatureCache(0)
    encoded = EncodedClip(
        clip.frames, geometry, propagator.network, device=device, weights=None, cache=cache, units=units
    )
    # whole frames: a crop's position depends on masks
    policy = replace(propagator.policy, crop_decoding=False)
    annotated = {clip.index: {0: clip.mask}}
    hints = propagator.hints(clip.frames, annotated, 1, on_step=part(on_step, 0, GUIDE_SHARE))
    steps = part(on_step, GUIDE_SHARE, 1)
    kept, done = DecoderInputs({}, {}, {}, geometry), 0
    for step in (1, -1):
        one = _RecordingPass(propagator.network, encoded, annotated, step, policy, units, hints)
        one.wanted, one.kept = set(wanted), kept
        for _ in one.run():
            steps(done := done + 1, len(clip.frames) + 1)
    return kept


class _RecordingPass(DirectedPass):
    wanted: set[int]
    kept: DecoderInputs
    _now: int

    def _predict(self, t: int, features: FrameFeatures) -> Prediction:
        self._now = t
        return super()._predict(t, features)

    def _decode(self, readout: Tensor, shares: Tensor, features: FrameFeatures, hints: Tensor | None) -> Tensor:
        if self._now in self.wanted:
            self.kept.readout[self._now], self.kept.features[self._now] = readout.detach(), features
            if hints is not None:
                self.kept.hints[self._now] = hints
        return super()._decode(readout, shares, features, hints)
