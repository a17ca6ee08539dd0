"""The node of STCN, the published propagator; the weights are the user's own file in ``models/ciri``."""

from __future__ import annotations

from comfy_api.latest import io

from ._adapt import building_network, device, plain_errors
from ._precision import chosen, precision_input
from ._room import make_room
from ._weights import options, path_of, state_of
from .propagators import (
    CATEGORY_PROPAGATORS,
    memory_every_input,
    memory_frames_input,
    propagator_output,
)

MODELS = ("stcn",)
LICENCE = "not stated for the weights; the code is MIT"


class PropagatorSTCN(io.ComfyNode):
    """STCN, a space-time memory network."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_PropagatorSTCN",
            display_name="Propagator: STCN",
            category=CATEGORY_PROPAGATORS,
            description=(
                "Space-time memory network (NeurIPS 2021), the propagator of the CIRI paper: every frame is compared "
                f"with remembered ones. Takes stcn.pth as published. Licence of the published weights: {LICENCE}."
            ),
            inputs=[
                io.Combo.Input(
                    "weights",
                    options=options(MODELS),
                    tooltip="A file in models/ciri whose content is STCN, as published or converted. "
                    f"Licence of the published weights: {LICENCE}.",
                ),
                precision_input(),
                memory_every_input(),
                io.Boolean.Input(
                    "remember_last",
                    default=False,
                    tooltip="Remember the previous frame too: for fast changes; a third more time. Off as published.",
                ),
                memory_frames_input(),
                io.Int.Input(
                    "working_size",
                    default=480,
                    min=128,
                    max=4096,
                    step=16,
                    tooltip="Shorter side, in pixels, at which the object is followed; larger frames are shrunk to it. "
                    "The published weights were trained and measured at 480.",
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
        cls,
        weights: str,
        precision: str,
        memory_every: int,
        remember_last: bool,
        memory_frames: int,
        working_size: int,
    ) -> io.NodeOutput:
        from ciri.propagation.stcn import build_stcn

        with building_network():
            propagator = build_stcn(
                path_of(weights, MODELS),
                device=device(),
                precision=chosen(precision),
                memory_every=memory_every,
                include_last=remember_last,
                memory_budget=memory_frames,
                short_side=working_size,
            )
        propagator.before_run = make_room
        return io.NodeOutput(propagator)
