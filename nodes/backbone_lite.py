"""The node of ``lite``, the backbone whose weights ship with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from ._adapt import BackboneSocket, building_network, device, plain_errors
from ._precision import chosen, precision_input
from ._room import make_room
from ._weights import path_unless_shipped, shipped_or_file, state_of
from .backbones import CATEGORY_BACKBONES

MODELS = ("backbone_lite",)


class BackboneLite(io.ComfyNode):
    """Copying along optical flow, corrected by a small network that was trained with curricular inactivation."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_BackboneLite",
            display_name="Backbone: lite",
            category=CATEGORY_BACKBONES,
            description=(
                "Copies hidden pixels from other frames along optical flow, and lets a small network choose between "
                "the copies and correct them. Trained with true and wrong masks (curricular inactivation). Its weights "
                "come with the pack."
            ),
            inputs=[
                shipped_or_file(MODELS, "backbone"),
                precision_input(),
            ],
            outputs=[
                BackboneSocket.Output("backbone", display_name="backbone", tooltip="Connect to Inactivation inpaint.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, weights: str | None, **_others: object) -> str:
        """Run again when the file changed under the same name."""
        return state_of(weights)

    @classmethod
    @plain_errors
    def execute(cls, weights: str, precision: str) -> io.NodeOutput:
        from ciri.inpainting.lite import load_lite

        path = path_unless_shipped(weights, "backbone")
        with building_network():
            backbone = load_lite(path, device=device(), precision=chosen(precision))
        backbone.before_run = make_room
        return io.NodeOutput(backbone)
