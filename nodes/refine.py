"""Correcting the tracking on this very clip (paper 3.3, Eq. 8-10)."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ciri.compare import compare
from ciri.inpainting.base import Backbone
from ciri.propagation.base import Propagator
from ciri.refinement.features import extractor_for
from ciri.refinement.refine import Refinement, refine
from ciri.refinement.settings import MODES, RefinementSettings
from ciri.residue.base import ResidueDetector

from ._adapt import (
    CATEGORY,
    BackboneSocket,
    DetectorSocket,
    PropagatorSocket,
    choose,
    plain_errors,
    progress,
    same_clip,
    to_annotation,
    to_clip,
    to_image,
    to_mask,
    to_masks,
)
from ._preview import PREVIEW_FPS, PREVIEW_SIDE, masks_preview, preview_size, video_preview
from ._report import as_list
from .propagate import painted_frames

NO_PROPAGATOR = (
    "Refine propagator was given no propagator, so it has none to hand on: connect one to its input, or use its masks."
)


class RefinePropagator(io.ComfyNode):
    """Corrects masks where something of the object is left, and fills again there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_RefinePropagator",
            display_name="Refine propagator",
            category=CATEGORY,
            description=(
                "Looks for what is left of the object, and for masks that drop out for some frames; corrects them, and "
                "fills again. What is changed is judged in the finished picture first; the given models stay as they "
                "are."
            ),
            is_output_node=True,
            inputs=[
                # masks and inpainted stand where their outputs do: where the node is bypassed, the page hands them on
                io.Image.Input("images", tooltip="The clip before removal."),
                io.Mask.Input("masks", tooltip="The object in every frame, from Propagate mask or any other node."),
                io.Image.Input("inpainted", tooltip="The clip after removal, from Inactivation inpaint."),
                io.Mask.Input("first_mask", tooltip="The object as it was painted on one frame."),
                BackboneSocket.Input("backbone", tooltip="What fills again: the Backbone that filled before."),
                DetectorSocket.Input("detector", tooltip="What looks for the rest: any Residue detector node."),
                PropagatorSocket.Input(
                    "propagator",
                    optional=True,
                    tooltip="What followed the object, or any Propagator for masks of another origin: where masks drop "
                    "out for some frames, it carries those of the frames around there. The modes weights and paper "
                    "tune it.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="auto",
                    tooltip="auto: masks grow over what was found, in the shape that the picture gives it. mask: then "
                    "gradient descent moves them too. weights: tunes a copy of the propagator on the suspicious "
                    "frames. paper: Eq. 8-10 as printed, without guards, for comparison.",
                ),
                io.Int.Input(
                    "epochs",
                    default=2,
                    min=0,
                    max=100,
                    tooltip="How often gradient descent visits each suspicious frame; auto does without it.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.05,
                    max=4.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How far masks may grow; 1 is the tested amount.",
                ),
                io.Float.Input(
                    "time_budget",
                    default=0.0,
                    min=0.0,
                    max=86400.0,
                    step=1.0,
                    tooltip="Seconds after which it stops; what was not judged by then stays as it was. 0: no limit.",
                ),
                io.Int.Input(
                    "painted_frame",
                    default=0,
                    min=-100000,
                    max=100000,
                    tooltip="The frame that first_mask was painted on: 0 is the first, -1 the last.",
                ),
                io.Int.Input("grow", default=4, min=-64, max=128, tooltip="As in the Inactivation inpaint before."),
                io.Int.Input("feather", default=3, min=0, max=64, tooltip="As in the Inactivation inpaint before."),
                io.Boolean.Input(
                    "crop",
                    default=True,
                    label_on="follow the object",
                    label_off="whole frame",
                    tooltip="As in the Inactivation inpaint before.",
                ),
                io.String.Input(
                    "key_frames",
                    default="",
                    optional=True,
                    tooltip="Further frames that you painted, as in Propagate mask: their masks stay. Such as: 24, 57.",
                ),
                io.Mask.Input(
                    "kept",
                    optional=True,
                    tooltip="What must stay, in every frame: kept of Propagate mask. No mask grows over it.",
                ),
            ],
            outputs=[
                PropagatorSocket.Output(
                    "refined_propagator",
                    display_name="propagator",
                    tooltip="A tuned copy where tuning helped, otherwise the given one.",
                ),
                io.Mask.Output("refined_masks", display_name="masks", tooltip="The corrected masks."),
                io.Image.Output("refined", display_name="images", tooltip="The clip without the object, filled again."),
                io.String.Output(
                    "report", display_name="report", tooltip="What was changed, what not and why, and how long it took."
                ),
                io.Image.Output(
                    "changes",
                    display_name="what changed",
                    tooltip="Above: masks before (magenta) and after (green). Below: the clip filled again. At most "
                    f"{PREVIEW_SIDE} pixels high or wide each.",
                ),
            ],
        )

    @classmethod
    @plain_errors
    def execute(
        cls,
        images: Tensor,
        masks: Tensor,
        inpainted: Tensor,
        first_mask: Tensor,
        backbone: Backbone,
        detector: ResidueDetector,
        mode: str,
        epochs: int,
        strength: float,
        time_budget: float,
        painted_frame: int,
        grow: int,
        feather: int,
        crop: bool,
        propagator: Propagator | None = None,
        key_frames: str = "",
        kept: Tensor | None = None,
    ) -> io.NodeOutput:
        settings = RefinementSettings(
            mode=choose(mode, MODES, "The mode"),
            epochs=epochs,
            strength=strength,
            time_budget=time_budget or None,
            grow=grow,
            feather=feather,
            crop=crop,
        )
        frames = to_clip(images)
        filled = same_clip(to_clip(inpainted, what="inpainted clip"), frames)
        painted, index, notes = to_annotation(first_mask, painted_frame, frames)
        followed, more = to_masks(masks, frames, what="mask")
        stays = None
        if kept is not None:
            stays, still_more = to_masks(kept, frames, what="mask of what is to stay")
            more += still_more
        done = refine(
            frames,
            painted,
            followed,
            filled,
            backbone=backbone,
            detector=detector,
            propagator=propagator,
            settings=settings,
            first_index=index,
            fixed=painted_frames(index, key_frames, frames),
            kept=stays,
            features=extractor_for(detector),
            on_step=progress(),
        )
        shown = show_changes(frames, followed, done)
        return io.NodeOutput(
            ExecutionBlocker(NO_PROPAGATOR) if done.propagator is None else done.propagator,
            to_mask(done.masks),
            to_image(done.inpainted),
            as_list("\n".join([done.report.text(), *notes, *more])),
            to_image(shown),
            ui=video_preview(shown, PREVIEW_FPS),
        )


def show_changes(frames: Tensor, masks: Tensor, done: Refinement) -> Tensor:
    """The masks before and after over the clip, and the clip filled again, one above the other."""
    both = masks_preview(frames, masks, done.masks)
    return compare(both, preview_size(done.inpainted), "stacked", labels=("masks", "filled again"))
