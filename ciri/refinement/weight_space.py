"""Refining a propagator's weights on the suspicious frames of one clip: a copy's decoder, from inputs that are kept.

Memory is not run again: only suspicious frames are decoded anew, so good ones cannot change, and a few of the best
hold the weights where they are.

Dimensions: n suspicious frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciri.progress import OnStep, ignore
from ciri.propagation.engine import MemoryPropagator
from ciri.refinement.decoder_inputs import Annotated, DecoderInputs, own_copy, record
from ciri.refinement.objective import Scene, frame_losses, to_logits
from ciri.refinement.settings import RefinementSettings
from ciri.refinement.watch import Watch

#: The paper's rate (Adam moves every weight by about this much a step), over the share of the whole network's step
#: that the tuned layers take (measured on STCN: the decoder and the layer before it take 0.91).
RATE = 1e-6 / 0.91
#: Suspicious frames of one step, and good frames that hold the weights.
GROUP, ANCHORS = 4, 2
#: How often the state is judged, and when to stop: gain below 3 % twice, or logits moved by more than 2 on average.
EVERY, LEAST_GAIN, FARTHEST = 8, 0.03, 2.0


@dataclass
class Tuned:
    """What tuning came to: masks (n, 1, H, W) of the scene's frames, the tuned copy, steps taken, and remarks."""

    masks: Tensor
    propagator: MemoryPropagator
    steps: int
    notes: list[str]


def tune(
    propagator: MemoryPropagator,
    watch: Watch,
    scene: Scene,
    clip: Annotated,
    settings: RefinementSettings,
    after_step: Callable[[int], bool],
    on_step: OnStep = ignore,
    *,
    doubtful: Collection[int] = (),
) -> Tuned:
    """Tune a copy of a propagator on a scene; the propagator itself is never written to.

    Args:
        propagator: what made the masks.
        watch, scene: the detector and the suspicious frames.
        clip: what the propagator started from.
        settings: epochs over the suspicious frames; strength scales the rate.
        after_step: called with the steps done; False ends it. May raise to stop.
        on_step: progress callback of what comes before the first step; may raise to stop.
        doubtful: further frames whose masks lack something, so that they can hold no weights.
    """
    twin = own_copy(propagator)
    anchors = _good_frames([*scene.at, *doubtful], clip)
    inputs = record(twin, clip, [*scene.at, *anchors], on_step)
    # a frame that the memory lost has no input, and is left as it is
    rows = [i for i, t in enumerate(scene.at) if t in inputs.readout]
    anchors = [t for t in anchors if t in inputs.readout]
    descent = _Descent(twin, watch, scene, inputs, rows, anchors, settings)
    steps = descent.run(after_step)
    masks = scene.old.clone()
    if rows:
        masks[rows] = descent.masks()
    remark = f"Log odds of the masks moved by {descent.moved():.2f} on average in the suspicious regions."
    return Tuned(masks, twin, steps, [remark])


def _good_frames(suspicious: Collection[int], clip: Annotated) -> list[int]:
    """Frames farthest from the suspicious ones, spread over the clip: they hold the weights where they are."""
    free = [t for t in range(len(clip.frames)) if t not in suspicious and t != clip.index]
    chosen: list[int] = []
    while free and len(chosen) < ANCHORS:
        taken = [*suspicious, *chosen]
        best = max(free, key=lambda t: min(abs(t - other) for other in taken))
        chosen.append(best)
        free.remove(best)
    return chosen


class _Descent:
    def __init__(
        self,
        twin: MemoryPropagator,
        watch: Watch,
        scene: Scene,
        inputs: DecoderInputs,
        rows: list[int],
        anchors: list[int],
        settings: RefinementSettings,
    ) -> None:
        self.twin, self.watch, self.inputs, self.settings = twin, watch, inputs, settings
        self.rows, self.anchors = rows, anchors
        self.scene = _rows_of(scene, rows)
        self.start = to_logits(self.scene.old)
        self.weights = _trainable(twin)
        with torch.no_grad():
            self.first = self._decode(self.scene.at)
            self.held = self._decode(anchors).sigmoid() if anchors else None

    def run(self, after_step: Callable[[int], bool]) -> int:
        """Descend; end at the best state. Returns the steps taken."""
        groups = [slice(i, i + GROUP) for i in range(0, len(self.rows), GROUP)]
        optimiser = torch.optim.Adam(self.weights, lr=RATE * self.settings.strength, eps=1e-12)
        best, least, dull, done = self._state(), self._judge(), 0, 0
        for weight in self.weights:
            weight.requires_grad_(True)
        try:
            for part in groups * self.settings.epochs:
                if not self._step(optimiser, part):
                    break
                done += 1
                last = done == len(groups) * self.settings.epochs
                if last or done % EVERY == 0:
                    now = self._judge()
                    dull = dull + 1 if now > (1 - LEAST_GAIN) * least else 0
                    if now < least:
                        best, least = self._state(), now
                    if dull == 2 or least == 0 or self.moved() > FARTHEST:
                        break
                if not after_step(done):
                    break
        finally:
            for weight, value in zip(self.weights, best, strict=True):
                weight.requires_grad_(False)
                weight.copy_(value)
        return done

    def _step(self, optimiser: torch.optim.Optimizer, part: slice) -> bool:
        """One step on a group; False if a number is not finite."""
        optimiser.zero_grad()
        with torch.enable_grad():
            logits = self._moved(self.scene.at[part], part)
            losses = frame_losses(self.watch, self.scene, logits, self.start[part], part, self.settings.grow)
            total = losses.mean()
            if self.held is not None:
                total = total + F.binary_cross_entropy_with_logits(self._decode(self.anchors), self.held)
            if not total.requires_grad or not torch.isfinite(total):
                return False
            total.backward()
        gradients = [w.grad for w in self.weights if w.grad is not None]
        if not all(bool(torch.isfinite(g).all()) for g in gradients):
            return False
        optimiser.step()
        return True

    def masks(self) -> Tensor:
        """The refined masks of the rows, nowhere beyond what was painted."""
        refined = self._moved(self.scene.at, slice(None)).sigmoid()
        bounded = torch.minimum(refined, torch.maximum(self.scene.grown, self.scene.old))
        same = (self._decode(self.scene.at) - self.first).abs() < 1e-3
        return torch.where(same, self.scene.old, bounded)

    def moved(self) -> float:
        """Mean change of the logits where the masks may grow."""
        if not self.rows:
            return 0.0
        where = (self.scene.grown > 0.5) | (self.scene.old > 0.5)
        change = (self._decode(self.scene.at) - self.first).abs()
        return float(change[where].mean()) if where.any() else 0.0

    def _moved(self, at: list[int], part: slice) -> Tensor:
        # one object's aggregation doubles the log odds; added to the given masks, whoever has edited them since
        return self.start[part] + 2 * (self._decode(at) - self.first[part])

    def _decode(self, at: list[int]) -> Tensor:
        groups = [self.inputs.logits(self.twin.network, at[i : i + GROUP]) for i in range(0, len(at), GROUP)]
        return torch.cat(groups) if groups else torch.zeros(0, 1, *self.scene.old.shape[2:])

    @torch.no_grad()
    def _judge(self) -> float:
        """The mean loss over the suspicious frames; infinite where it is no number."""
        if not self.rows:
            return 0.0
        total = 0.0
        for i in range(0, len(self.rows), GROUP):
            part = slice(i, i + GROUP)
            logits = self._moved(self.scene.at[part], part)
            total += float(
                frame_losses(self.watch, self.scene, logits, self.start[part], part, self.settings.grow).sum()
            )
        return total / len(self.rows) if math.isfinite(total) else math.inf

    def _state(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.weights]


def _trainable(twin: MemoryPropagator) -> list[nn.Parameter]:
    """What may be tuned, but for the scales of batch norms: their statistics are frozen too."""
    network = twin.network
    assert isinstance(network, nn.Module)
    norms = {id(p) for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    return [p for p in twin.parameters_to_refine() if id(p) not in norms]


def _rows_of(scene: Scene, rows: list[int]) -> Scene:
    appearance = None if scene.appearance is None else [scene.appearance[i] for i in rows]
    return Scene(
        [scene.at[i] for i in rows],
        scene.shown[rows],
        scene.painted[rows],
        scene.old[rows],
        scene.grown[rows],
        scene.quiet[rows],
        appearance,
    )
