"""One node per propagator: each returns its model on the common socket."""

from __future__ import annotations

from comfy_api.latest import io

from ._adapt import CATEGORY, PropagatorSocket, plain_errors

CATEGORY_PROPAGATORS = f"{CATEGORY}/propagators"


class PropagatorFlow(io.ComfyNode):
    """Optical flow and colour models: no weights to download."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_PropagatorFlow",
            display_name="Propagator: optical flow",
            category=CATEGORY_PROPAGATORS,
            description=(
                "Follows the painted object with optical flow and colour models. Needs no weights and no graphics "
                "card; best for objects that stay in view and differ from their surroundings."
            ),
            inputs=[
                io.Int.Input(
                    "working_size",
                    default=480,
                    min=64,
                    max=4096,
                    step=16,
                    tooltip="Longer side, in pixels, at which the object is followed; larger frames are shrunk to it, "
                    "the mask's edge is then found at full size. Time grows with its square.",
                ),
            ],
            outputs=[
                PropagatorSocket.Output("propagator", display_name="propagator", tooltip="Connect to Propagate mask.")
            ],
        )

    @classmethod
    @plain_errors
    def execute(cls, working_size: int) -> io.NodeOutput:
        from ciri.propagation.flow import FlowPropagator

        return io.NodeOutput(FlowPropagator(working_size=working_size))
