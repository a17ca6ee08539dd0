"""What refinement is given, checked and in a form that can enter a graph."""

from __future__ import annotations

from torch import Tensor

from ciri.errors import MaskError
from ciri.frames import check_annotation
from ciri.numbering import number


def outside_inference(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if it was made under inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def check(frames: Tensor, first_mask: Tensor, masks: Tensor, inpainted: Tensor, first_index: int) -> None:
    """Raise MaskError unless everything belongs to the clip."""
    count, _, height, width = frames.shape
    check_shape("masks", masks, frames[:, :1])
    check_shape("inpainted frames", inpainted, frames)
    if first_mask.shape[-2:] != (height, width) or not 0 <= first_index < count:
        raise MaskError(
            f"The first mask is {tuple(first_mask.shape)} for frame {number(first_index)}; expected "
            f"{(1, height, width)} for one of the frames {number(0)} to {number(count - 1)}."
        )
    check_annotation(first_mask[None])


def check_shape(name: str, given: Tensor, expected: Tensor) -> None:
    """Raise MaskError unless two tensors have one shape."""
    if given.shape != expected.shape:
        raise MaskError(
            f"The {name} have shape {tuple(given.shape)}; expected {tuple(expected.shape)} as the clip has."
        )
