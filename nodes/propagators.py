"""One node per propagator: each returns its model on the common socket."""

from __future__ import annotations

from comfy_api.latest import io

from ._adapt import CATEGORY, PropagatorSocket, plain_errors

CATEGORY_PROPAGATORS = f"{CATEGORY}/propagators"


def memory_every_input() -> io.Input:
    """How often a memory network remembers a frame."""
    return io.Int.Input(
        "memory_every",
        default=5,
        min=1,
        max=1000,
        tooltip="Every n-th frame is remembered. Smaller follows fast changes better and costs time.",
    )


def memory_frames_input() -> io.Input:
    """How many frames it remembers at most."""
    return io.Int.Input(
        "memory_frames",
        default=32,
        min=2,
        max=10000,
        tooltip="Most frames that are remembered besides the painted ones. Beyond it the recent ones and "
        "an even spread of the others stay, so long clips need no more memory than short ones.",
    )


def propagator_output() -> io.Output:
    """What every propagator node returns."""
    return PropagatorSocket.Output("propagator", display_name="propagator", tooltip="Connect to Propagate mask.")


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
            outputs=[propagator_output()],
        )

    @classmethod
    @plain_errors
    def execute(cls, working_size: int) -> io.NodeOutput:
        from ciri.propagation.flow import FlowPropagator

        return io.NodeOutput(FlowPropagator(working_size=working_size))
