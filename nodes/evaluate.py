"""Numbers for a finished removal."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from ciri.evaluation.clip import evaluate_clip
from ciri.evaluation.raster import rasterise

from ._adapt import CATEGORY, choose, plain_errors, progress, to_clip, to_image, to_masks
from ._preview import if_writable

#: What the reference shows.
CLEAN, ORIGINAL = "clean: without the object", "original: with the object"


class EvaluateRemoval(io.ComfyNode):
    """Measures a removal against a clean clip, or against the original where there is none."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_EvaluateRemoval",
            display_name="Evaluate removal",
            category=CATEGORY,
            description="Measures a removal: PSNR and SSIM near the object and over whole frames, what was changed "
            "elsewhere, flicker, and how well the masks agree with true ones.",
            is_output_node=True,
            inputs=[
                io.Image.Input("result", tooltip="The clip after removal."),
                io.Image.Input("reference", tooltip="The clip to compare with: same length and size as the result."),
                io.Mask.Input("masks", tooltip="Where the object really was, one mask per frame."),
                io.Combo.Input(
                    "reference_is",
                    options=[CLEAN, ORIGINAL],
                    default=CLEAN,
                    tooltip="clean: the scene without the object, as composites have it; all numbers are available. "
                    "original: the clip before removal; only changes outside the masks and flicker can be measured.",
                ),
                io.Mask.Input(
                    "tracked_masks",
                    optional=True,
                    tooltip="Masks of Propagate mask, to be compared with the true ones.",
                ),
            ],
            outputs=[
                io.String.Output("report", display_name="report", tooltip="The numbers as a table."),
                io.Image.Output("plot", display_name="plot", tooltip="Quality over time."),
            ],
        )

    @classmethod
    @plain_errors
    def execute(
        cls, result: Tensor, reference: Tensor, masks: Tensor, reference_is: str, tracked_masks: Tensor | None = None
    ) -> io.NodeOutput:
        clean = choose(reference_is, [CLEAN, ORIGINAL], "The kind of reference") == CLEAN
        made = to_clip(result, what="result")
        compared = to_clip(reference, what="reference").to(made.device)
        true, notes = to_masks(masks, made, what="mask")
        tracked = None
        if tracked_masks is not None:
            tracked, more = to_masks(tracked_masks, made, what="tracked mask")
            notes += more
        measured = evaluate_clip(made, true, compared, clean=clean, tracked=tracked, on_step=progress())
        plot = to_image(rasterise(measured.plot)[None])
        text = "\n".join([measured.text, *(f"- {note}" for note in notes)])
        picture = if_writable(lambda: ui.PreviewImage(plot, cls=cls).as_dict())
        return io.NodeOutput(text, plot, ui={**(picture or {}), **ui.PreviewText(text).as_dict()})
