"""From inactivation masks to the clip without the object (the paper's inpainting stage)."""

from __future__ import annotations

import time

import torch
from comfy_api.latest import io
from torch import Tensor

from ciri.frames import grow_mask
from ciri.inpainting.base import Backbone
from ciri.inpainting.driver import WindowBackbone
from ciri.inpainting.remove import remove
from ciri.shots import shots

from ._adapt import CATEGORY, BackboneSocket, plain_errors, progress, to_clip, to_image, to_masks


class InactivationInpaint(io.ComfyNode):
    """Fills what the masks cover; every other pixel stays as it is, bit for bit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_InactivationInpaint",
            display_name="Inactivation inpaint",
            category=CATEGORY,
            description=(
                "Removes what the masks cover and fills the hole from the rest of the clip. All other pixels stay "
                "bit for bit as they were."
            ),
            inputs=[
                io.Image.Input("images", tooltip="The clip: all frames as one batch."),
                io.Mask.Input(
                    "inactivation",
                    tooltip="What to remove, one mask per frame, from Propagate mask or from any other node. A single "
                    "mask is used for every frame (a logo that stands still).",
                ),
                BackboneSocket.Input("backbone", tooltip="What fills the hole: any Backbone node."),
                io.Int.Input(
                    "grow",
                    default=4,
                    min=-64,
                    max=128,
                    tooltip="Pixels by which the masks grow first (negative: shrink). Raise it where a rim, a shadow "
                    "or motion blur of the object stays.",
                ),
                io.Int.Input(
                    "feather",
                    default=3,
                    min=0,
                    max=64,
                    tooltip="Width in pixels of the soft transition around the grown masks.",
                ),
                io.Boolean.Input(
                    "crop",
                    default=True,
                    label_on="follow the object",
                    label_off="whole frame",
                    tooltip="Work on a window that follows the object: faster, and at the footage's own resolution. "
                    "The whole frame shows the backbone more of the scene.",
                ),
            ],
            outputs=[
                io.Image.Output("inpainted", display_name="images", tooltip="The clip without the object."),
                io.String.Output("report", display_name="report", tooltip="What was done, as text."),
            ],
        )

    @classmethod
    @plain_errors
    def execute(
        cls, images: Tensor, inactivation: Tensor, backbone: Backbone, grow: int, feather: int, crop: bool
    ) -> io.NodeOutput:
        frames = to_clip(images)
        masks, notes = to_masks(inactivation, frames, what="inactivation mask")
        began = time.monotonic()
        result = remove(frames, masks, backbone, grow=grow, feather=feather, crop=crop, on_step=progress())
        notes.append(f"{(time.monotonic() - began) / len(frames):.2f} s per frame.")
        return io.NodeOutput(to_image(result), describe(frames, masks, backbone, grow, feather, notes))


def describe(frames: Tensor, masks: Tensor, backbone: Backbone, grow: int, feather: int, notes: list[str]) -> str:
    """Say what was done: frames, size, share of the picture, backbone, mask treatment."""
    count, height, width = len(frames), *frames.shape[2:]
    # only shrinking can take a frame's mask away; frame by frame, which takes no second copy of the masks
    shares = torch.stack([(grow_mask(mask[None], min(grow, 0)) > 0).float().mean() for mask in masks])
    filled = int((shares > 0).sum())
    share = float(shares[shares > 0].mean()) if filled else 0.0
    lines = [
        f"{backbone.name}: filled {filled} of {count} frames of {width}x{height}; "
        f"the masks cover {share:.1%} of a filled frame.",
        f"Masks {'grown' if grow >= 0 else 'shrunk'} by {abs(grow)} px and feathered over {feather} px.",
    ]
    if filled < count:
        lines.append(f"{count - filled} frames have an empty mask and came back untouched.")
    scenes = shots(frames)
    if len(scenes) > 1:
        lines.append(f"The clip was cut: {len(scenes)} shots, each filled from itself.")
    if isinstance(backbone, WindowBackbone):
        lines += [
            f"{backbone.describe((shares[scene] > 0).tolist())}." for scene in scenes if (shares[scene] > 0).any()
        ]
    if backbone.facts.trained_for:
        lines.append(f"The backbone was trained for: {backbone.facts.trained_for}. Licence: {backbone.facts.licence}.")
    return "\n".join(f"- {line}" for line in lines + notes)
