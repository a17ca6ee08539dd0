"""Masks that drop out for some frames, made whole before anything is removed with them."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ciri.propagation.base import Propagator
from ciri.refinement.bridging import bridged_masks
from ciri.refinement.dropouts import REACH

from ._adapt import CATEGORY, PropagatorSocket, plain_errors, progress, to_clip, to_image, to_mask, to_masks
from ._preview import PREVIEW_FPS, PREVIEW_SIDE, masks_preview, video_preview
from ._report import as_list


class BridgeMasks(io.ComfyNode):
    """Carries masks into the frames in which they drop out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_BridgeMasks",
            display_name="Bridge masks",
            category=CATEGORY,
            description=(
                f"Where masks of any origin miss a part, or all, of the object for up to {REACH} frames, those of the "
                "frames around are carried there. Nothing is ever taken away."
            ),
            inputs=[
                io.Image.Input("images", tooltip="The clip: all frames as one batch."),
                io.Mask.Input("masks", tooltip="One mask per frame, from any node that makes them."),
                PropagatorSocket.Input("propagator", tooltip="What carries masks: any Propagator node."),
            ],
            outputs=[
                io.Mask.Output("bridged", display_name="masks", tooltip="The masks, whole where they had dropped out."),
                io.String.Output("report", display_name="report", tooltip="Which frames were bridged."),
                io.Image.Output(
                    "overlay",
                    display_name="overlay",
                    tooltip="The clip with the given masks tinted (magenta) and the new ones outlined (green), at most "
                    f"{PREVIEW_SIDE} pixels long.",
                ),
            ],
        )

    @classmethod
    @plain_errors
    def execute(cls, images: Tensor, masks: Tensor, propagator: Propagator) -> io.NodeOutput:
        frames = to_clip(images)
        given, notes = to_masks(masks, frames, what="mask")
        bridged, said = bridged_masks(frames, given, propagator, progress())
        shown = masks_preview(frames, given, bridged)
        return io.NodeOutput(
            to_mask(bridged),
            as_list("\n".join([*(said or ["No mask drops out."]), *notes])),
            to_image(shown),
            ui=video_preview(shown, PREVIEW_FPS),
        )
