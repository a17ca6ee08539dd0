"""Looking at masks and results."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ciri.compare import MAGENTA, MODES, compare, overlay

from ._adapt import CATEGORY, choose, plain_errors, progress, to_clip, to_image, to_masks
from ._preview import GREEN, video_preview

COLOURS = {
    "magenta": MAGENTA,
    "red": (1.0, 0.2, 0.3),
    "green": GREEN,
    "blue": (0.2, 0.5, 1.0),
    "yellow": (1.0, 0.85, 0.1),
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
}


class MaskOverlay(io.ComfyNode):
    """Tints the masked region of a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_MaskOverlay",
            display_name="Mask overlay",
            category=CATEGORY,
            description="Tints what the masks cover and draws their outline, to check masks of any origin.",
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The clip: all frames as one batch."),
                io.Mask.Input("masks", tooltip="One mask per frame, or a single one for all frames."),
                io.Combo.Input(
                    "colour", options=list(COLOURS), default="magenta", tooltip="Colour of tint and outline."
                ),
                io.Float.Input(
                    "opacity",
                    default=0.45,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="Strength of the tint; 0 leaves only the outline.",
                ),
                io.Int.Input(
                    "outline", default=2, min=0, max=32, tooltip="Width of the outline in pixels; 0 draws none."
                ),
                _fps_input(),
            ],
            outputs=[
                io.Image.Output("overlay", display_name="images", tooltip="The clip with the masks tinted over it.")
            ],
        )

    @classmethod
    @plain_errors
    def execute(
        cls, images: Tensor, masks: Tensor, colour: str, opacity: float, outline: int, fps: float
    ) -> io.NodeOutput:
        frames = to_clip(images)
        paint = COLOURS[choose(colour, list(COLOURS), "The colour")]
        checked, _ = to_masks(masks, frames, what="mask")
        tinted = overlay(frames, checked, colour=paint, opacity=opacity, outline=outline, on_step=progress())
        return io.NodeOutput(to_image(tinted), ui=video_preview(tinted, fps))


class CompareVideo(io.ComfyNode):
    """Shows two clips in one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_CompareVideo",
            display_name="Compare videos",
            category=CATEGORY,
            description="Shows two clips in one: side by side, with a dividing line, or their difference.",
            is_output_node=True,
            inputs=[
                io.Image.Input("first", tooltip="The clip on the left, such as the original."),
                io.Image.Input(
                    "second", tooltip="The clip on the right, such as the result. Same length as the first."
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="side by side",
                    tooltip="side by side; stacked: one above the other; wipe: a line divides the picture; sweep: the "
                    "line crosses the picture and returns; difference: black where the clips agree.",
                ),
                io.String.Input(
                    "first_label",
                    default="before",
                    tooltip="Written over the first clip; empty: nothing. Letters beyond a-z need OpenCV 5.",
                ),
                io.String.Input(
                    "second_label",
                    default="after",
                    tooltip="Written over the second clip; empty: nothing. Letters beyond a-z need OpenCV 5.",
                ),
                io.Float.Input(
                    "wipe",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="Where the line of 'wipe' stands: 0 left edge, 1 right edge.",
                ),
                io.Float.Input(
                    "gain",
                    default=4.0,
                    min=1.0,
                    max=64.0,
                    step=0.5,
                    tooltip="Amplifies the difference, so that small ones can be seen.",
                ),
                _fps_input(),
            ],
            outputs=[
                io.Image.Output("comparison", display_name="images", tooltip="The comparison; its sides are even.")
            ],
        )

    @classmethod
    @plain_errors
    def execute(
        cls,
        first: Tensor,
        second: Tensor,
        mode: str,
        first_label: str,
        second_label: str,
        wipe: float,
        gain: float,
        fps: float,
    ) -> io.NodeOutput:
        labels = (first_label, second_label)
        a, b = to_clip(first, what="first clip"), to_clip(second, what="second clip")
        shown = compare(a, b, mode, labels=labels, wipe=wipe, gain=gain, on_step=progress())
        return io.NodeOutput(to_image(shown), ui=video_preview(shown, fps))


def _fps_input() -> io.Float.Input:
    """Frame rate of the player inside a node."""
    return io.Float.Input(
        "fps",
        default=24.0,
        min=1.0,
        max=120.0,
        step=0.01,
        tooltip="Frame rate of the player in this node; connect fps of Get Video Components.",
    )
