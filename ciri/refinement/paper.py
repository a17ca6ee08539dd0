"""Eq. 8-10 as the paper prints them, for comparison: 0.1 L_cx + 1 L_res, Adam, 1e-6, all weights, no guard.

Read where the paper is silent: an epoch is one step for every frame; a frame's graph reaches its own key, its read-out
and the annotated frame's key and value, not the masks between; the composition carries the gradient, and the clip is
propagated and inpainted again after every epoch.

Dimensions: T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ciri.inpainting.base import Backbone
from ciri.inpainting.remove import remove
from ciri.progress import OnStep, part
from ciri.propagation.engine import MemoryPropagator
from ciri.propagation.memory import read, to_map, to_rows
from ciri.propagation.tracking import aggregate
from ciri.refinement.contextual import contextual_loss
from ciri.refinement.decoder_inputs import Annotated, own_copy
from ciri.refinement.regions import FeatureExtractor, enlarged, image_space_points
from ciri.refinement.settings import RefinementSettings
from ciri.refinement.watch import Watch
from ciri.residue.score import residue_loss

#: Eq. 10 and the text below it.
CONTEXTUAL, RESIDUE, RATE = 0.1, 1.0, 1e-6


@dataclass
class AsPrinted:
    """The tuned copy, its masks (T, 1, H, W), the clip inpainted with them (T, 3, H, W), steps, and remarks."""

    propagator: MemoryPropagator
    masks: Tensor
    inpainted: Tensor
    steps: int
    notes: list[str]


def as_printed(
    propagator: MemoryPropagator,
    watch: Watch,
    clip: Annotated,
    inpainted: Tensor,
    backbone: Backbone,
    settings: RefinementSettings,
    features: FeatureExtractor | None,
    on_step: OnStep,
) -> AsPrinted:
    """Tune a copy of the propagator; the propagator itself is never written to.

    Args:
        propagator: tuned as a copy.
        watch: the frozen detector.
        clip: the frames and the annotated mask.
        inpainted: (T, 3, H, W), the first removal.
        backbone: frozen; inpaints again after every epoch.
        settings: epochs, and how to inpaint.
        features: of the contextual loss; None leaves that term out, and says so.
        on_step: progress callback; may raise to stop.
    """
    twin = own_copy(propagator)
    network = twin.network
    assert isinstance(network, nn.Module)
    device = propagator.device or next(network.parameters()).device
    network.to(device)
    weights = list(network.parameters())
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.Adam(weights, lr=RATE)
    at = [t for t in range(len(clip.frames)) if t != clip.index]
    steps, masks = 0, torch.zeros_like(inpainted[:, :1])
    epochs = max(1, settings.epochs)
    for epoch in range(epochs):
        share = part(on_step, epoch / epochs, (epoch + 1) / epochs)
        for done, t in enumerate(at):
            optimiser.zero_grad()
            with torch.enable_grad():
                loss = _loss(twin, watch, clip, inpainted, t, features, device)
                if loss.requires_grad and torch.isfinite(loss):
                    loss.backward()
                    optimiser.step()
                    steps += 1
            part(share, 0, 0.6)(done + 1, len(at))
        track = twin.propagate(clip.frames, clip.mask[None], [clip.index], on_step=part(share, 0.6, 0.8))
        masks = track.probs.cpu()
        inpainted = remove(
            clip.frames,
            masks,
            backbone,
            grow=settings.grow,
            feather=settings.feather,
            crop=settings.crop,
            on_step=part(share, 0.8, 1),
        )
    for weight in weights:
        weight.requires_grad_(False)
    notes = [] if features is not None else ["Without a feature extractor the contextual loss (Eq. 8) was left out."]
    return AsPrinted(twin, masks, inpainted, steps, notes)


def _loss(
    twin: MemoryPropagator,
    watch: Watch,
    clip: Annotated,
    inpainted: Tensor,
    t: int,
    features: FeatureExtractor | None,
    device: torch.device,
) -> Tensor:
    """Eq. 10 for one frame."""
    mask = _soft_mask(twin, clip, t, device)
    shown = clip.frames[t]
    composed = mask * inpainted[t] + (1 - mask) * shown
    box, size = watch.boxes[t], (int(shown.shape[1]), int(shown.shape[2]))
    logits = watch.logits(composed[None], [t])
    total = RESIDUE * residue_loss(logits, [box], size, watch.threshold, mode="paper").sum().cpu()
    if features is None:
        return total
    with torch.no_grad():
        template = image_space_points(features, clip.frames[clip.index], clip.mask, watch.boxes[clip.index])
    points = image_space_points(features, shown, mask, enlarged(box))
    if not len(points) or not len(template):
        return total
    return total + CONTEXTUAL * contextual_loss(points, template, order="template rows").mean()


def _soft_mask(twin: MemoryPropagator, clip: Annotated, t: int, device: torch.device) -> Tensor:
    """The mask (1, H, W) of frame t from a memory of the annotated frame alone; gradients reach every weight."""
    network = twin.network
    height, width = int(clip.frames.shape[2]), int(clip.frames.shape[3])
    geometry = twin.geometry(height, width)
    first, frame = (geometry.frames_in(clip.frames[i : i + 1].to(device)) for i in (clip.index, t))
    planes = aggregate(geometry.masks_in(clip.mask[None].to(device)))
    known, seen = network.encode_key(first), network.encode_key(frame)
    value = network.encode_value(first, known, planes, torch.zeros_like(planes))
    readout = read(to_rows(known.key)[0], to_rows(value), to_rows(seen.key)[0], network.top_k)
    logits = network.decode(to_map(readout, *seen.key.shape[-2:]), seen)
    return geometry.masks_out(aggregate(logits.sigmoid()))[0].cpu()
