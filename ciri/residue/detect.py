"""What is left of the target in a whole inpainted clip: a heat map and a score for every frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ciri.errors import MaskError, OutOfMemoryError
from ciri.frames import check_annotation
from ciri.numbering import number
from ciri.out_of_memory import shortage_told
from ciri.progress import OnStep, ignore
from ciri.residue.base import Box, Removal, ResidueDetector
from ciri.residue.crops import boxes_of_clip, paste_map, search_window
from ciri.residue.score import score

#: Frames that go through the detector together; what it needs beside the result does not grow with the clip.
BATCH = 8
#: What is said where even one frame is too much.
SHORTAGE = "Memory ran out while one frame was searched for residue. Use smaller frames, or the device 'cpu'."


@dataclass(frozen=True)
class Residue:
    """What is left.

    Attributes:
        maps: float32 (T, 1, H, W) in [0, 1], the response in the frame's pixels; 0 outside the search windows.
        scores: float32 (T,) >= 0, the residue in target areas. A tenth of the target's box, seen for certain, scores
            0.1 times (1 - the detector's threshold): only what is above that counts.
        boxes: where the target was taken to be in each frame; None: nowhere, so nothing was looked for.
    """

    maps: Tensor
    scores: Tensor
    boxes: list[Box | None]


@shortage_told(SHORTAGE)
@torch.no_grad()
def detect_residue(
    inpainted: Tensor,
    first_mask: Tensor,
    frames: Tensor,
    masks: Tensor,
    detector: ResidueDetector,
    *,
    first_index: int = 0,
    on_step: OnStep = ignore,
) -> Residue:
    """Look for what is left of the target in every frame of an inpainted clip.

    Args:
        inpainted: float32 (T, 3, H, W) in [0, 1].
        first_mask: float32 (1, H, W) or (1, 1, H, W), the annotated mask.
        frames: float32 (T, 3, H, W) in [0, 1], the clip as it was filmed.
        masks: float32 (T, 1, H, W) in [0, 1], where the target was taken to be when it was removed.
        detector: what looks.
        first_index: number of the annotated frame.
        on_step: progress callback, called after every batch; may raise to stop.

    Raises:
        MaskError: masks of another length or size than the clip, an empty first mask, no such frame.
        OutOfMemoryError: even one frame at a time is too much.
    """
    count = len(inpainted)
    height, width = inpainted.shape[2:]
    size = (height, width)
    first_mask = first_mask.reshape(-1, *first_mask.shape[-2:])[:1]
    wrong = masks.shape != (count, 1, *size) or first_mask.shape[-2:] != (height, width)
    if wrong or frames.shape != inpainted.shape:
        raise MaskError(
            f"The inpainted clip is {count} frames of {width}x{height}, but the masks have shape {tuple(masks.shape)}, "
            f"the first mask {tuple(first_mask.shape)} and the filmed frames {tuple(frames.shape)}; all have to agree."
        )
    if not 0 <= first_index < count:
        raise MaskError(
            f"Frame number {number(first_index)} is outside the clip; it has frames {number(0)} to {number(count - 1)}."
        )
    check_annotation(first_mask[None])
    boxes = boxes_of_clip(masks, first_mask, first_index)
    maps, scores = torch.zeros(count, 1, *size), torch.zeros(count)
    template = detector.template(frames[first_index].to(detector.device), first_mask.to(detector.device))
    present = [t for t, box in enumerate(boxes) if box is not None]

    def one(part: slice) -> None:
        at = present[part]
        places = [box for t in at if (box := boxes[t]) is not None]
        shown, removal = inpainted[at].to(detector.device), Removal(frames[at], masks[at], inpainted[at])
        logits = detector.detect(template, shown, places, removal).float()
        scores[at] = score(logits, places, size, detector.threshold).cpu()
        for t, box, response in zip(at, places, logits.sigmoid().cpu(), strict=True):
            maps[t] = paste_map(response, search_window(box), size)

    in_batches(len(present), one, on_step=on_step)
    return Residue(maps, scores, boxes)


def in_batches(count: int, work: Callable[[slice], None], *, on_step: OnStep = ignore) -> None:
    """Call ``work`` for slices of 0..count-1; where memory runs out, again with half as many frames.

    Raises:
        OutOfMemoryError: one frame at a time is too much.
    """
    start, batch = 0, BATCH
    while start < count:
        part = slice(start, min(start + batch, count))
        try:
            with shortage_told(SHORTAGE):
                work(part)
        except OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            continue
        start = part.stop
        on_step(start, count)
