"""One node per inpainting backbone: each returns its model on the common socket."""

from __future__ import annotations

from comfy_api.latest import io

from ._adapt import CATEGORY, BackboneSocket, plain_errors

CATEGORY_BACKBONES = f"{CATEGORY}/backbones"


class BackboneFlow(io.ComfyNode):
    """Copies hidden pixels along optical flow: no weights to download."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_BackboneFlow",
            display_name="Backbone: optical flow",
            category=CATEGORY_BACKBONES,
            description=(
                "Fills each hidden pixel from the nearest frame that shows it, found by optical flow. Needs no "
                "weights and no graphics card; best where the camera or the object moves and so shows the background."
            ),
            inputs=[
                io.Int.Input(
                    "passes",
                    default=2,
                    min=1,
                    max=2,
                    tooltip="2: the motion is measured once more on the clip without the object, and finely, which "
                    "finds more of what is behind it. 1: about half of the time, for a quick look.",
                ),
            ],
            outputs=[
                BackboneSocket.Output("backbone", display_name="backbone", tooltip="Connect to Inactivation inpaint.")
            ],
        )

    @classmethod
    @plain_errors
    def execute(cls, passes: int) -> io.NodeOutput:
        from ciri.inpainting.flow import FlowBackbone

        return io.NodeOutput(FlowBackbone(passes))
