"""Where the frames show the painted object, and how that is joined with the masks (paper 3.2, Eq. 3)."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from ciri.inactivation.clip import complementary_attention
from ciri.inactivation.features import describe_attention, learned_beta
from ciri.inactivation.fusion import fuse, spared
from ciri.inpainting.base import Backbone

from ._adapt import (
    CATEGORY,
    BackboneSocket,
    plain_errors,
    progress,
    to_annotation,
    to_clip,
    to_image,
    to_mask,
    to_masks,
)
from ._preview import PREVIEW_FPS, PREVIEW_SIDE, heat_preview, video_preview
from .propagate import painted_frames


class ComplementaryAttention(io.ComfyNode):
    """A second opinion on every frame's mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_ComplementaryAttention",
            display_name="Complementary attention",
            category=CATEGORY,
            description=(
                "A second opinion on where the object is, near the propagated masks: from what other frames show "
                "behind it, and from the painted frame. It finds parts that were missed, and the object's shadow."
            ),
            inputs=[
                io.Image.Input("images", tooltip="The clip: all frames as one batch."),
                # before first_mask: where the node is bypassed, the page hands on the first mask it was given
                io.Mask.Input("masks", tooltip="The object in every frame, from Propagate mask."),
                io.Mask.Input(
                    "first_mask",
                    tooltip="The object as it was painted on one frame. What else the masks show there, such as "
                    "further objects, counts as painted too.",
                ),
                BackboneSocket.Input(
                    "backbone",
                    tooltip="The Backbone node that will fill. For lite and optical flow, a network of this pack looks "
                    "at what other frames show; a published network compares the features of its own encoder.",
                ),
                io.Int.Input(
                    "painted_frame",
                    default=0,
                    min=-100000,
                    max=100000,
                    tooltip="The frame that first_mask was painted on: 0 is the first, -1 the last.",
                ),
                io.Float.Input(
                    "region",
                    default=12.5,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="How far around the masks to look, in percent of the frame's height. Raise it where a part "
                    "or a shadow further away stays. Published networks are fine-tuned with 6.25.",
                ),
                io.Boolean.Input(
                    "shadow",
                    default=True,
                    optional=True,
                    label_on="with its shadow",
                    label_off="the object alone",
                    tooltip="Find the object's shadow too, so that it is removed along (lite and optical flow).",
                ),
                io.Mask.Input(
                    "kept",
                    optional=True,
                    tooltip="What must stay, in every frame: kept of Propagate mask. No more of it is taken than the "
                    "masks take.",
                ),
                io.String.Input(
                    "key_frames",
                    default="",
                    optional=True,
                    tooltip="Further frames that you painted, as in Propagate mask: their masks stay. Such as: 24, 57.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "attention",
                    display_name="attention",
                    tooltip="How surely each pixel shows the object or its shadow, 0 to 1.",
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="Where attention and masks agree, and where not."
                ),
                io.Image.Output(
                    "heat",
                    display_name="heat map",
                    tooltip=f"The map as colours over the clip, at most {PREVIEW_SIDE} pixels long.",
                ),
            ],
        )

    @classmethod
    @plain_errors
    def execute(
        cls,
        images: Tensor,
        masks: Tensor,
        first_mask: Tensor,
        backbone: Backbone,
        painted_frame: int,
        region: float,
        shadow: bool = True,
        kept: Tensor | None = None,
        key_frames: str = "",
    ) -> io.NodeOutput:
        frames = to_clip(images)
        painted, index, notes = to_annotation(first_mask, painted_frame, frames)
        predicted, more = to_masks(masks, frames, what="mask")
        # propagators keep what was painted: further objects, which were painted apart, show here
        painted = torch.maximum(painted, predicted[index : index + 1])
        attention = complementary_attention(
            frames,
            painted,
            predicted,
            backbone,
            first_index=index,
            known=painted_frames(index, key_frames, frames)[1:],
            dilation=round(region / 100 * frames.shape[2]),
            shadow=shadow,
            on_step=progress(),
        )
        if kept is not None:
            stays, still_more = to_masks(kept, frames, what="mask of what is to stay")
            attention, more = spared(attention, predicted, stays), more + still_more
        shown = heat_preview(frames, attention, predicted)
        report = _describe(attention, predicted, backbone, notes + more)
        return io.NodeOutput(to_mask(attention), report, to_image(shown), ui=video_preview(shown, PREVIEW_FPS))


class FuseInactivation(io.ComfyNode):
    """Eq. 3: one map of two."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_FuseInactivation",
            display_name="Fuse inactivation",
            category=CATEGORY,
            description=(
                "Joins the propagated masks and the attention map into the map of what to remove: "
                "beta x masks + (1 - beta) x attention."
            ),
            inputs=[
                io.Mask.Input("masks", tooltip="The object in every frame, from Propagate mask."),
                io.Mask.Input("attention", tooltip="From Complementary attention."),
                io.Float.Input(
                    "beta",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="Share of the propagated masks. 1: the masks alone; lower values remove more of what "
                    "resembles the object around them, and less of what does not inside them.",
                ),
                BackboneSocket.Input(
                    "backbone",
                    optional=True,
                    tooltip="Where beta was learned in training, with the backbone or with its attention map, that "
                    "counts instead of the slider.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="The clip: the map gets its size and is shown over it."
                ),
            ],
            outputs=[
                io.Mask.Output("inactivation", display_name="inactivation", tooltip="Connect to Inactivation inpaint."),
                io.String.Output("report", display_name="report", tooltip="Which beta was used."),
                io.Image.Output(
                    "heat",
                    display_name="heat map",
                    tooltip=f"The map as colours over the clip, at most {PREVIEW_SIDE} pixels long.",
                ),
            ],
        )

    @classmethod
    @plain_errors
    def execute(
        cls,
        masks: Tensor,
        attention: Tensor,
        beta: float,
        backbone: Backbone | None = None,
        images: Tensor | None = None,
    ) -> io.NodeOutput:
        frames = _black(masks, attention) if images is None else to_clip(images)
        predicted, notes = to_masks(masks, frames, what="mask")
        attended, more = to_masks(attention, frames, what="attention map")
        learned = None if backbone is None else learned_beta(backbone)
        share, source = (beta, "set by hand") if learned is None else (learned, "learned in training")
        fused = fuse(predicted, attended, float(share))
        shown = heat_preview(frames, fused, predicted)
        added, taken = (fused > 0.05) & (predicted <= 0.05), (fused <= 0.5) & (predicted > 0.5)
        lines = [
            f"beta {share:.2f}, {source}.",
            f"Touched beyond the masks: {float(added.float().mean()):.2%} of the picture; given back inside them: "
            f"{float(taken.float().mean()):.2%}.",
            *notes,
            *more,
        ]
        report = "\n".join(f"- {line}" for line in lines)
        return io.NodeOutput(to_mask(fused), report, to_image(shown), ui=video_preview(shown, PREVIEW_FPS))


def _black(masks: Tensor, attention: Tensor) -> Tensor:
    """A black clip, float32 (T, 3, H, W), of the masks' size and as long as the longer of both: one number in memory.

    Neither has been checked yet: each may be any MASK.
    """
    count = max(len(batch) if batch.ndim > 2 else 1 for batch in (masks, attention))
    return torch.zeros((), device=masks.device).expand(count, 3, *masks.shape[-2:])


def _describe(attention: Tensor, predicted: Tensor, backbone: Backbone, notes: list[str]) -> str:
    """Say what was compared, and how attention and masks agree."""
    inside, around = predicted > 0.5, (predicted <= 0.5) & (attention > 0)
    seen = attention.flatten(1)
    share = [float(seen[where.flatten(1)].mean()) if where.any() else 0.0 for where in (inside, around)]
    count = int(inside.flatten(1).any(1).sum())
    missing = len(predicted) - count
    lines = [
        f"Compared: {describe_attention(backbone)}.",
        f"Mean attention {share[0]:.2f} inside the masks, {share[1]:.2f} around them; the further apart, the surer.",
        *([f"{missing} frames have an empty mask, so nothing was looked at there."] if missing else []),
        *notes,
    ]
    return "\n".join(f"- {line}" for line in lines)
