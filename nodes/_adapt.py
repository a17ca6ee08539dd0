"""Between ComfyUI's world and the library's: tensors, devices, progress and interrupt, errors.

Shapes: ComfyUI's IMAGE is (T, H, W, 3 | 4) and its MASK (T, H, W) or (H, W); the library's clips are (T, 3, H, W) and
its masks (T, 1, H, W), both float32 in [0, 1].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ciri.errors import CiriError, ClipError, MaskError
from ciri.frames import check_annotation, check_clip, check_key_frames, check_masks
from ciri.progress import OnStep

CATEGORY = "CIRI"

#: One type for every propagator, backbone and residue detector, so that swapping is replacing one node.
PropagatorSocket = io.Custom("CIRI_PROPAGATOR")
BackboneSocket = io.Custom("CIRI_BACKBONE")
DetectorSocket = io.Custom("CIRI_DETECTOR")


# ------------------------------------------------------------------------------------------------ tensors


def to_clip(images: Tensor, *, what: str = "clip") -> Tensor:
    """Return an IMAGE as a checked clip, float32 (T, 3, H, W)."""
    if images.ndim != 4 or images.shape[3] not in (3, 4):
        # in ComfyUI's order, which is what a person sees in other nodes
        raise ClipError(
            f"The {what} has shape {tuple(images.shape)}; expected (frames, height, width, 3 or 4 channels)."
        )
    return check_clip(images.movedim(-1, 1), what=what)


def checked_masks(masks: Tensor, clip: Tensor, *, what: str) -> tuple[Tensor, list[str]]:
    """Return a MASK as :func:`ciri.frames.check_masks` does: float32 (K, 1, H, W), the clip's size, on its device.

    Raises:
        MaskError: see there.
    """
    # with --gpu-only, what nodes hand on is on the card, and what was loaded from a file is not
    return check_masks(masks.to(clip.device), *clip.shape[2:], what=what)


def to_masks(masks: Tensor, clip: Tensor, *, what: str) -> tuple[Tensor, list[str]]:
    """Return a MASK as one checked mask per frame, float32 (T, 1, H, W) on the clip's device, and notes on changes.

    A single mask is held for the whole clip.
    """
    checked, notes = checked_masks(masks, clip, what=what)
    if len(checked) == 1 and len(clip) > 1:
        notes.append(f"One {what} was given, so it was used for all {len(clip)} frames.")
        checked = checked.expand(len(clip), -1, -1, -1)
    if len(checked) != len(clip):
        one_by_one = (
            " Frames that come one by one, as a list, have to be made one batch first." if len(clip) == 1 else ""
        )
        raise MaskError(
            f"The {what} holds {len(checked)} masks but the clip has {len(clip)} frames; give one mask per frame "
            f"(from Propagate mask), or a single one.{one_by_one}"
        )
    return checked, notes


def same_clip(other: Tensor, clip: Tensor) -> Tensor:
    """Return a clip of as many frames of the same size as the given one, on its device.

    Raises:
        ClipError: it is another.
    """
    if other.shape != clip.shape:
        sizes = [f"{len(c)} frames of {c.shape[3]}x{c.shape[2]}" for c in (other, clip)]
        raise ClipError(f"The inpainted clip has {sizes[0]} and images has {sizes[1]}; both have to be the same clip.")
    return other.to(clip.device)


def to_annotation(first_mask: Tensor, painted_frame: int, clip: Tensor) -> tuple[Tensor, int, list[str]]:
    """Return the painted mask, float32 (1, 1, H, W) on the clip's device, the frame it belongs to, and notes."""
    mask, notes = checked_masks(first_mask, clip, what="first mask")
    if len(mask) != 1:
        raise MaskError(f"first_mask holds {len(mask)} masks; expected the one that was painted.")
    check_annotation(mask)
    return mask, check_key_frames([painted_frame], 1, len(clip))[0], notes


def to_image(clip: Tensor) -> Tensor:
    """Return a clip as an IMAGE: float32 (T, H, W, 3), where ComfyUI keeps what nodes hand on."""
    return clip.movedim(1, -1).to(comfy.model_management.intermediate_device(), torch.float32).contiguous()


def to_mask(masks: Tensor) -> Tensor:
    """Return masks (T, 1, H, W) as a MASK: float32 (T, H, W), where ComfyUI keeps what nodes hand on."""
    return masks[:, 0].to(comfy.model_management.intermediate_device(), torch.float32).contiguous()


# ------------------------------------------------------------------------------------ devices and inference mode


def device() -> torch.device:
    """The device that ComfyUI computes on."""
    return comfy.model_management.get_torch_device()


@contextmanager
def building_network() -> Iterator[None]:
    """Wrap what constructs, loads or moves a network.

    ComfyUI runs nodes under ``torch.inference_mode()``. Weights made under it are inference tensors for ever, and the
    test-time refinement could never train a copy of them.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


# ------------------------------------------------------------------------------------ progress, interrupt, errors


def progress() -> OnStep:
    """A progress callback that moves the node's bar and ends the work when the person pressed Cancel.

    No preview travels with it: the page would keep that picture over the node's final one.
    """
    bar = comfy.utils.ProgressBar(1)

    def on_step(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return on_step


def plain_errors(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Decorate ``execute``: an error that the library words for a person reaches ComfyUI as just that text.

    So does what is wrong with a value that was linked from another node (:func:`fitting`).
    """

    @functools.wraps(execute)
    def wrapped(cls: type[io.ComfyNode], **given: Any) -> io.NodeOutput:
        try:
            inputs = {entry.id: entry for entry in cls.define_schema().inputs}
            return execute(cls, **{name: fitting(value, inputs[name]) for name, value in given.items()})
        except CiriError as error:
            # the frames below this one say nothing to the person who connected a wrong mask
            raise error.with_traceback(None) from None

    return wrapped


def fitting(value: Any, entry: io.Input) -> Any:
    """Return what an input was given, as the type that it declares.

    ComfyUI checks what is typed into a node. What another node hands on comes unchecked: any number, NaN too, and from
    nodes whose outputs are of any type, anything.

    Raises:
        CiriError: the input cannot take it.
    """
    if value is None and entry.optional:
        return getattr(entry, "default", None)
    if isinstance(entry, io.Int.Input | io.Float.Input):
        return _fitting_number(value, entry)
    if isinstance(entry, io.String.Input | io.Combo.Input):
        return str(value)
    if value is None or (isinstance(entry, io.Image.Input | io.Mask.Input) and not isinstance(value, Tensor)):
        got = "nothing" if value is None else type(value).__name__
        raise CiriError(f"{entry.id} was given {got}; expected {entry.io_type}. Look at what is linked to it.")
    return value


def _fitting_number(value: Any, entry: io.Int.Input | io.Float.Input) -> int | float:
    """A number within the input's limits, whole where it has to be."""
    whole = isinstance(entry, io.Int.Input)
    try:
        got = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        got = math.nan
    # footage has the frame rate that it has, whatever the widget offers
    fits = 0 < got < math.inf if entry.id == "fps" else entry.min <= got <= entry.max
    if not fits or (whole and got != round(got)):
        kind = "a whole number" if whole else "a number"
        raise CiriError(f"{entry.id} is {value!s:.40}; expected {kind} from {entry.min:g} to {entry.max:g}.")
    return int(got) if whole else got


def choose(value: str, options: Sequence[str], what: str) -> str:
    """Return the value if it is one of the options: ComfyUI does not check the combos of V3 nodes itself."""
    if value not in options:
        raise CiriError(f"{what} is {value!r}; expected one of {', '.join(options)}.")
    return value
