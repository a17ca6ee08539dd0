"""The complementary attention map of a whole clip (paper 3.2), for any backbone.

Dimensions: t frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ciri.errors import MaskError
from ciri.inactivation.attention import DILATION, attention_map, pool_target
from ciri.inactivation.features import Encoder, encoder_of, size_seen
from ciri.inactivation.learned import REGION, learned_attention, shipped
from ciri.inpainting.base import Backbone
from ciri.out_of_memory import BeforeRun, nothing, shortage_told
from ciri.progress import OnStep, ignore


def complementary_attention(
    frames: Tensor,
    first_mask: Tensor,
    predicted: Tensor,
    backbone: Backbone,
    *,
    first_index: int = 0,
    known: Sequence[int] = (),
    dilation: int | None = None,
    shadow: bool = True,
    on_step: OnStep = ignore,
) -> Tensor:
    """Where every frame shows the target of the annotated one, near where the propagator saw it.

    Args:
        frames: float32 (T, 3, H, W) in [0, 1].
        first_mask: (1, 1, H, W) in [0, 1], the annotation.
        predicted: (T, 1, H, W) in [0, 1], M_pred; where a frame has none, the map is 0.
        backbone: lends its encoder, and is told of it by its ``before_run``, if it has one; for one without an encoder
            the map is learned: see :mod:`ciri.inactivation.learned`.
        first_index: the frame that was annotated.
        known: frames whose predictions are right as they are; a shadow is added to them as to all others.
        dilation: pixels around the prediction in which the map may be positive; default: 1/16 of the height for a
            map of features, 1/8 for a learned one.
        shadow: a learned map shows the target's shadow as well.
        on_step: progress callback; may raise to stop.

    Returns:
        float32 (T, 1, H, W) in [0, 1] on the frames' device.

    Raises:
        MaskError: an empty annotation, or masks that are not the clip's.
        OutOfMemoryError: the encoder does not get along with a single frame.
    """
    height, width = frames.shape[2:]
    if predicted.shape != (len(frames), 1, height, width) or first_mask.shape != (1, 1, height, width):
        raise MaskError(
            f"The first mask has shape {tuple(first_mask.shape)} and the masks {tuple(predicted.shape)}; expected one "
            f"and {len(frames)} masks of {height}x{width}."
        )
    if not (first_mask > 0).any():
        raise MaskError("The first mask is empty, so there is no target to compare the frames with.")
    encode = encoder_of(backbone)
    if encode is None:
        reach = round(REGION * height) if dilation is None else dilation
        found = learned_attention(
            frames, first_mask, predicted, shipped(), first_index=first_index, dilation=reach, on_step=on_step
        )
        for t in known:
            found.target[t] = predicted[t]
        return found.map(shadow=shadow)
    before_run: BeforeRun = getattr(backbone, "before_run", nothing)
    before_run(*size_seen(backbone, height, width))
    reach = round(DILATION * height) if dilation is None else dilation
    with shortage_told(
        f"Memory ran out while the encoder of {backbone.name} looked at one frame of {width}x{height}, the smallest "
        "unit of work. Shrink the frames, or give Complementary attention another backbone: lite or optical flow, "
        "whose map is learned, take little memory."
    ):
        compared = _compared(frames, first_mask, predicted, encode, first_index, reach, on_step)
    for t in known:
        compared[t] = predicted[t]
    return compared


def _compared(
    frames: Tensor,
    first_mask: Tensor,
    predicted: Tensor,
    encode: Encoder,
    first_index: int,
    dilation: int,
    on_step: OnStep,
) -> Tensor:
    """The map of an encoder's features; arguments and result as those of :func:`complementary_attention`."""
    height, width = frames.shape[2:]
    features, covered = encode(frames[first_index : first_index + 1])
    target = pool_target(features, _enlarged(first_mask, covered).to(features.device))
    result = frames.new_zeros(predicted.shape)
    # frame by frame: a clip's features would take more memory than the clip
    for index, (frame, mask) in enumerate(zip(frames, predicted, strict=True)):
        if (mask > 0).any():
            features, covered = encode(frame[None])
            near = _enlarged(mask[None], covered).to(features.device)
            near_target = attention_map(features, target, near, dilation=dilation)
            result[index] = near_target[0, :, :height, :width].to(result)
        on_step(index + 1, len(frames))
    return result


def _enlarged(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (1, 1, H, W) with empty rows and columns at the bottom and the right, as many as the frames got."""
    return F.pad(mask, (0, size[1] - mask.shape[3], 0, size[0] - mask.shape[2]))
