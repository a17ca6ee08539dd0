"""One node per residue detector: each returns its model on the common socket."""

from __future__ import annotations

from comfy_api.latest import io

from ._adapt import CATEGORY, DetectorSocket, building_network, device, plain_errors
from ._weights import options, path_of, path_unless_shipped, shipped_or_file, state_of

CATEGORY_DETECTORS = f"{CATEGORY}/detectors"
LITE, SIAMMASK = ("residue_lite",), ("siammask",)
SIAMMASK_LICENCE = "MIT code; the weights carry no licence of their own"


class ResidueDetectorLite(io.ComfyNode):
    """The small detector whose weights ship with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_ResidueDetectorLite",
            display_name="Residue detector: lite",
            category=CATEGORY_DETECTORS,
            description=(
                "Finds what a removal left behind: compares the filled frames with the painted object. Small, trained "
                "for this, and its weights come with the pack."
            ),
            inputs=[
                shipped_or_file(LITE, "residue"),
            ],
            outputs=[_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, weights: str | None) -> str:
        """Run again when the file changed under the same name."""
        return state_of(weights)

    @classmethod
    @plain_errors
    def execute(cls, weights: str) -> io.NodeOutput:
        from ciri.residue.registry import build

        path = path_unless_shipped(weights, "residue")
        with building_network():
            return io.NodeOutput(build("lite", weights=path, device=device()))


class ResidueDetectorSiamMask(io.ComfyNode):
    """The detector on the published tracker that the paper uses."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_ResidueDetectorSiamMask",
            display_name="Residue detector: SiamMask",
            category=CATEGORY_DETECTORS,
            description=(
                "Finds what a removal left behind, with SiamMask (CVPR 2019), the tracker that the CIRI paper builds "
                f"its detector on. Takes the published SiamMask file. Licence: {SIAMMASK_LICENCE}."
            ),
            inputs=[
                io.Combo.Input(
                    "weights",
                    options=options(SIAMMASK),
                    tooltip="A file in models/ciri whose content is SiamMask, as published or converted. "
                    f"Licence: {SIAMMASK_LICENCE}.",
                ),
            ],
            outputs=[_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, weights: str | None) -> str:
        """Run again when the file changed under the same name."""
        return state_of(weights)

    @classmethod
    @plain_errors
    def execute(cls, weights: str) -> io.NodeOutput:
        from ciri.residue.registry import build

        with building_network():
            return io.NodeOutput(build("siammask", weights=path_of(weights, SIAMMASK), device=device()))


def _output() -> io.Output:
    return DetectorSocket.Output(
        "detector", display_name="detector", tooltip="Connect to Detect residue and to Refine propagator."
    )
