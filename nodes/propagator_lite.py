"""The node of ``lite``, the propagator whose weights ship with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from ._adapt import building_network, device, plain_errors
from ._precision import chosen, precision_input
from ._room import make_room
from ._weights import path_unless_shipped, shipped_or_file, state_of
from .propagators import (
    CATEGORY_PROPAGATORS,
    memory_every_input,
    memory_frames_input,
    propagator_output,
)

MODELS = ("propagator_lite",)


class PropagatorLite(io.ComfyNode):
    """Optical flow, corrected by a small memory network."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_PropagatorLite",
            display_name="Propagator: lite",
            category=CATEGORY_PROPAGATORS,
            description=(
                "Follows the painted object with optical flow and corrects what it carried by a small memory network, "
                "which compares every frame with remembered ones. Its weights come with the pack."
            ),
            inputs=[
                shipped_or_file(MODELS, "propagator"),
                precision_input(),
                memory_every_input(),
                memory_frames_input(),
                io.Int.Input(
                    "working_size",
                    default=480,
                    min=128,
                    max=4096,
                    step=8,
                    tooltip="Shorter side, in pixels, at which the network looks; larger frames are shrunk to it, "
                    "smaller ones enlarged, at most to twice their size. More finds thin parts; time grows with its "
                    "square.",
                ),
            ],
            outputs=[propagator_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, weights: str | None, **_others: object) -> str:
        """Run again when the file changed under the same name."""
        return state_of(weights)

    @classmethod
    @plain_errors
    def execute(
        cls, weights: str, precision: str, memory_every: int, memory_frames: int, working_size: int
    ) -> io.NodeOutput:
        from ciri.propagation.lite import build_lite

        path = path_unless_shipped(weights, "propagator")
        with building_network():
            propagator = build_lite(
                path,
                device=device(),
                precision=chosen(precision),
                memory_every=memory_every,
                memory_budget=memory_frames,
                short_side=working_size,
            )
        propagator.before_run = make_room
        return io.NodeOutput(propagator)
