"""What a removal left behind (paper 3.3, Eq. 7)."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ciri.numbering import ranges
from ciri.refinement.watch import suspects
from ciri.residue.base import ResidueDetector
from ciri.residue.crops import share_of_box
from ciri.residue.detect import Residue, detect_residue

from ._adapt import (
    CATEGORY,
    DetectorSocket,
    plain_errors,
    progress,
    same_clip,
    to_annotation,
    to_clip,
    to_image,
    to_mask,
    to_masks,
)
from ._preview import PREVIEW_FPS, PREVIEW_SIDE, heat_preview, video_preview
from ._report import rows_of_ten


class DetectResidue(io.ComfyNode):
    """Looks for the painted object in the filled clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_DetectResidue",
            display_name="Detect residue",
            category=CATEGORY,
            description=(
                "Shows what is left of the object in a filled clip, as a heat map and as a number for every frame."
            ),
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The clip before removal: it shows what the object looks like."),
                io.Image.Input("inpainted", tooltip="The clip after removal: it is searched."),
                io.Mask.Input("first_mask", tooltip="The object as it was painted on one frame."),
                io.Mask.Input("masks", tooltip="The object in every frame, from Propagate mask: where to look."),
                DetectorSocket.Input("detector", tooltip="What looks: any Residue detector node."),
                io.Int.Input(
                    "painted_frame",
                    default=0,
                    min=-100000,
                    max=100000,
                    tooltip="The frame that first_mask was painted on: 0 is the first, -1 the last.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "residue", display_name="residue", tooltip="How surely each pixel still belongs to the object, 0-1."
                ),
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="One number per frame, as a list: 0 is clean, 0.1 a tenth of the object's box for sure.",
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="The numbers, and which frames are suspicious."
                ),
                io.Image.Output(
                    "heat",
                    display_name="heat map",
                    tooltip=f"The map as colours over the filled clip, at most {PREVIEW_SIDE} pixels long.",
                ),
            ],
        )

    @classmethod
    @plain_errors
    def execute(
        cls,
        images: Tensor,
        inpainted: Tensor,
        first_mask: Tensor,
        masks: Tensor,
        detector: ResidueDetector,
        painted_frame: int,
    ) -> io.NodeOutput:
        frames = to_clip(images)
        filled = same_clip(to_clip(inpainted, what="inpainted clip"), frames)
        painted, index, notes = to_annotation(first_mask, painted_frame, frames)
        followed, more = to_masks(masks, frames, what="mask")
        found = detect_residue(filled, painted, frames, followed, detector, first_index=index, on_step=progress())
        shown = heat_preview(filled, found.maps, followed)
        return io.NodeOutput(
            to_mask(found.maps),
            [round(float(value), 4) for value in found.scores],
            describe_residue(found, detector, share_of_box(painted[0]), notes + more),
            to_image(shown),
            ui=video_preview(shown, PREVIEW_FPS),
        )


def describe_residue(found: Residue, detector: ResidueDetector, share: float, notes: list[str]) -> str:
    """Say which frames are suspicious, for a target that fills so much of its box; then notes and every score."""
    at, highest = suspects(found, detector.threshold, share), int(found.scores.argmax())
    summary = f"Something of the object seems to be left in frames {ranges(at)}." if at else "Nothing seems to be left."
    remarks = [
        summary,
        "Scores are in sizes of the object's box: 0 is clean, 0.1 a tenth of it, surely seen. "
        f"Responses below {detector.threshold:.2f} count as nothing.",
        *notes,
    ]
    return "\n".join(
        [
            f"{detector.name}: {len(found.scores)} frames, mean residue {found.scores.mean():.3f}, "
            f"highest {found.scores[highest]:.3f} at frame {highest}.",
            "",
            *(f"- {remark}" for remark in remarks),
            "",
            "Residue by frame:",
            "",
            *rows_of_ten(found.scores, 3),
        ]
    )
