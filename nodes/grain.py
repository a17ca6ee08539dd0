"""The noise of the clip, for what was filled in."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ciri.grain import match_grain

from ._adapt import CATEGORY, plain_errors, progress, same_clip, to_clip, to_image
from ._report import as_list


class MatchGrain(io.ComfyNode):
    """Gives what was filled in the grain of its surroundings; every other pixel stays as it is, bit for bit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_MatchGrain",
            display_name="Match grain",
            category=CATEGORY,
            description=(
                "Measures the noise of the clip and gives what was filled in as much of it as its surroundings have: "
                "without, it shows as a smooth patch. Adds nothing to a clip without noise. Comes last."
            ),
            inputs=[
                io.Image.Input("images", tooltip="The clip as it was: all frames as one batch."),
                io.Image.Input(
                    "inpainted",
                    tooltip="The clip with something filled in, by any node. Wherever it differs from images, it gets "
                    "grain.",
                ),
                io.Float.Input(
                    "grain",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="1 matches the clip, less adds less, 0 adds nothing.",
                ),
                io.Int.Input(
                    "feather",
                    default=3,
                    min=0,
                    max=64,
                    tooltip="The feather of Inactivation inpaint: where fill and clip are blended, some grain is there "
                    "already.",
                ),
            ],
            outputs=[
                io.Image.Output("matched", display_name="images", tooltip="The clip, with grain where it was filled."),
                io.String.Output("report", display_name="report", tooltip="How strong the clip's grain is."),
            ],
        )

    @classmethod
    @plain_errors
    def execute(cls, images: Tensor, inpainted: Tensor, grain: float, feather: int) -> io.NodeOutput:
        frames = to_clip(images)
        filled = same_clip(to_clip(inpainted, what="inpainted clip"), frames)
        result, noise = match_grain(frames, filled, strength=grain, feather=feather, on_step=progress())
        if noise is not None:
            said = f"What was filled in got the grain of the clip: {noise}."
        elif grain > 0:
            said = (
                "Nothing was filled in, or the clip has no grain that could be told from its texture: none was added."
            )
        else:
            said = "A grain of 0 adds nothing."
        return io.NodeOutput(to_image(result), as_list(said))
