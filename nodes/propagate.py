"""From the mask painted on one frame to a mask for every frame (the paper's SVOS stage)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from comfy_api.latest import io
from torch import Tensor

from ciri.compare import overlay
from ciri.errors import MaskError
from ciri.frames import check_annotation, check_key_frames
from ciri.propagation.base import Propagator
from ciri.propagation.objects import check_objects, follow

from ._adapt import CATEGORY, PropagatorSocket, checked_masks, plain_errors, progress, to_clip, to_image, to_mask
from ._preview import PREVIEW_FPS, PREVIEW_SIDE, preview_size, unless_cancelled, video_preview
from ._report import describe_track

#: What may stand between frame numbers: comma and semicolon, and in Chinese these two and the comma of lists.
SEPARATORS = str.maketrans(dict.fromkeys(",;\uff0c\uff1b\u3001", " "))


class PropagateMask(io.ComfyNode):
    """Follows the painted object through the clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIRI_PropagateMask",
            display_name="Propagate mask",
            category=CATEGORY,
            description="Follows an object, painted on one frame, through the whole clip: forwards and backwards.",
            inputs=[
                io.Image.Input(
                    "images", tooltip="The clip: all frames as one batch, as Get Video Components gives them."
                ),
                io.Mask.Input(
                    "first_mask",
                    tooltip="The object, painted on one frame, white = object. In Load Image: right-click, "
                    "'Open in MaskEditor'.",
                ),
                PropagatorSocket.Input("propagator", tooltip="What follows the object: any Propagator node."),
                io.Int.Input(
                    "painted_frame",
                    default=0,
                    min=-100000,
                    max=100000,
                    tooltip="The frame that first_mask was painted on: 0 is the first, -1 the last.",
                ),
                io.Mask.Input(
                    "key_masks",
                    optional=True,
                    tooltip="Corrections: the object painted again on further frames, as a batch of masks.",
                ),
                io.String.Input(
                    "key_frames",
                    default="",
                    optional=True,
                    tooltip="The frame number of each mask in key_masks, separated by commas, such as: 24, 57.",
                ),
                io.Mask.Input(
                    "further_objects",
                    optional=True,
                    tooltip="What goes along with the object, such as its shadow, painted on the same frame. Each mask "
                    "of a batch is followed by itself; the masks are joined.",
                ),
                io.Mask.Input(
                    "keep",
                    optional=True,
                    tooltip="What must stay although it comes close to the object, such as somebody who walks behind "
                    "it, painted on the same frame. It is followed too, and what belongs to it is not removed. Each "
                    "mask of a batch is followed by itself.",
                ),
            ],
            outputs=[
                io.Mask.Output("masks", display_name="masks", tooltip="The object in every frame, 0 to 1."),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="How sure the propagator was, and where it lost the object.",
                ),
                io.Float.Output(
                    "confidence",
                    display_name="confidence",
                    is_output_list=True,
                    tooltip="One number per frame, 0 (lost) to 1 (sure), as a list.",
                ),
                io.Image.Output(
                    "overlay",
                    display_name="overlay",
                    tooltip=f"The clip with the masks tinted over it, at most {PREVIEW_SIDE} pixels long: "
                    "Mask overlay makes it in full size.",
                ),
                io.Mask.Output(
                    "kept",
                    display_name="kept",
                    tooltip="What was painted to be kept, in every frame; empty where nothing was. For Complementary "
                    "attention and Refine propagator, which might take it otherwise.",
                ),
            ],
        )

    @classmethod
    @plain_errors
    def execute(
        cls,
        images: Tensor,
        first_mask: Tensor,
        propagator: Propagator,
        painted_frame: int,
        key_masks: Tensor | None = None,
        key_frames: str = "",
        further_objects: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> io.NodeOutput:
        frames = to_clip(images)
        painted = Painted(painted_frame, first_mask, further_objects)
        masks, numbers, notes = _annotations(frames, painted, key_masks, parse_key_frames(key_frames))
        if keep is not None:
            keep, more = checked_masks(keep, frames, what="mask of what is to stay")
            notes += more
        track = follow(propagator, frames, masks, numbers, keep=keep, on_step=progress())
        # small: at full size, nobody would want a second copy of the clip in memory
        tinted = overlay(preview_size(frames), preview_size(track.probs), on_step=unless_cancelled)
        kept = torch.zeros_like(track.probs) if track.kept is None else track.kept
        return io.NodeOutput(
            to_mask(track.probs),
            describe_track(track, propagator.name, notes),
            [round(float(value), 4) for value in track.confidence],
            to_image(tinted),
            to_mask(kept),
            ui=video_preview(tinted, PREVIEW_FPS),
        )


def parse_key_frames(text: str) -> list[int]:
    """Read "24, 57" (commas, semicolons or spaces, those of Chinese keyboards too).

    Only once the node runs: what ComfyUI refuses before that is left out without a word where another part of the graph
    can run.

    Raises:
        MaskError: something in it is no whole number.
    """
    words = text.translate(SEPARATORS).split()
    try:
        return [int(word) for word in words]
    except ValueError:
        raise MaskError(
            f"key_frames is {text!r}; expected frame numbers separated by commas, such as: 24, 57."
        ) from None


def painted_frames(first: int, key_frames: str, clip: Tensor) -> list[int]:
    """The numbers of all frames of a clip that a person painted; several masks of one frame show several objects.

    Raises:
        MaskError: no such frame.
    """
    numbers = [first, *parse_key_frames(key_frames)]
    return check_key_frames(numbers, len(numbers), len(clip), repeated=True)


class Painted(NamedTuple):
    """What was painted on one frame: the object, and what goes along with it."""

    frame: int
    object: Tensor
    further: Tensor | None


def _annotations(
    frames: Tensor, painted: Painted, key_masks: Tensor | None, key_frames: list[int]
) -> tuple[Tensor, list[int], list[str]]:
    """Return all annotated masks (K, 1, H, W), their frame indices, and notes on what was changed.

    Several masks for one frame show several objects; see :func:`ciri.propagation.objects.follow`.
    """
    masks, notes = checked_masks(painted.object, frames, what="first mask")
    if len(masks) != 1:
        raise MaskError(
            f"first_mask holds {len(masks)} masks; expected the one that was painted. A mask for every frame needs no "
            "propagation: connect it to Inactivation inpaint. Corrections on further frames go to key_masks."
        )
    check_annotation(masks)
    if painted.further is not None:
        further, more = checked_masks(painted.further, frames, what="further object")
        check_annotation(further, what="further object")
        masks, notes = torch.cat([masks, further]), notes + more
    objects, again = len(masks), 0 if key_masks is None else len(key_masks) if key_masks.ndim > 2 else 1
    if again != len(key_frames):
        raise MaskError(
            f"key_masks holds {again} masks and key_frames {len(key_frames)} frame numbers; connect one mask to "
            "key_masks for each frame that was painted again."
        )
    if key_masks is not None:
        further, more = checked_masks(key_masks, frames, what="key mask")
        check_annotation(further, what="key mask")
        masks, notes = torch.cat([masks, further]), notes + more
    numbers = check_key_frames([painted.frame] * objects + key_frames, len(masks), len(frames), repeated=True)
    check_objects(numbers, objects)
    return masks, numbers, notes
