"""The painted mask, moved onto the edges of what was painted."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from ciri.frames import check_annotation, check_key_frames
from ciri.propagation.snap import REACH, described, shipped

from ._adapt import CATEGORY, building_network, checked_masks, plain_errors, progress, to_clip, to_image, to_mask
from ._preview import if_writable, masks_preview
from ._report import as_list


class SnapMask(io.ComfyNode):
    """Corrects what was painted, before anything believes it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_SnapMask",
            display_name="Snap mask",
            category=CATEGORY,
            description=(
                "Moves the edge of a painted mask onto the object's: background that was painted along would be "
                "followed like the object. Bypass it (Ctrl+B) for masks that are exact."
            ),
            inputs=[
                io.Image.Input("images", tooltip="The clip: all frames as one batch."),
                io.Mask.Input(
                    "mask", tooltip="What was painted on one frame. Each mask of a batch is corrected by itself."
                ),
                io.Int.Input(
                    "painted_frame",
                    default=0,
                    min=-100000,
                    max=100000,
                    tooltip="The frame that the mask was painted on: 0 is the first, -1 the last.",
                ),
                io.Float.Input(
                    "reach",
                    default=100 * REACH,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="How far the edge may move inwards, in percent of the frame's shorter side; outwards by "
                    "a third of that. What was painted further inside always stays. 0 leaves the mask as it is.",
                ),
            ],
            outputs=[
                io.Mask.Output("snapped", display_name="mask", tooltip="The mask, on the object's edges."),
                io.String.Output("report", display_name="report", tooltip="How much of the mask was changed."),
                io.Image.Output(
                    "overlay",
                    display_name="overlay",
                    tooltip="The frame with the painted mask tinted (magenta) and the new one outlined (green).",
                ),
            ],
        )

    @classmethod
    @plain_errors
    def execute(cls, images: Tensor, mask: Tensor, painted_frame: int, reach: float) -> io.NodeOutput:
        frames = to_clip(images)
        painted, notes = checked_masks(mask, frames, what="painted mask")
        check_annotation(painted, what="painted mask")
        index = check_key_frames([painted_frame], 1, len(frames))[0]
        with building_network():
            snapper = shipped()
        step = progress()
        result = snapper.snap(frames[index], painted, reach=reach / 100)
        step(1, 1)
        said = [described(*pair, frame=index) for pair in zip(painted, result, strict=True)]
        shown = masks_preview(frames[index : index + 1], painted.amax(0)[None], result.amax(0)[None])
        return io.NodeOutput(
            to_mask(result),
            as_list("\n".join([*(filter(None, said)), *notes]) or "The mask was on the object's edges already."),
            to_image(shown),
            ui=if_writable(lambda: ui.PreviewImage(to_image(shown), cls=cls)),
        )
