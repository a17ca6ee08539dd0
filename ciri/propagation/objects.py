"""Several objects that leave together: each is followed by itself, and their masks are joined.

A shadow is the usual second object. Painted along with what casts it, it is often lost: a propagator knows the object
again by its looks, and the two look nothing alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ciri.errors import MaskError
from ciri.progress import OnStep, ignore, part
from ciri.propagation.base import MaskTrack, Propagator

#: Every object takes the time of one; more masks for a frame are hardly objects that a person painted.
MOST_OBJECTS = 8


def follow(
    propagator: Propagator, frames: Tensor, masks: Tensor, numbers: Sequence[int], *, on_step: OnStep = ignore
) -> MaskTrack:
    """Follow what was painted through a clip. Of several masks for one frame, each shows an object.

    The n-th mask of a frame belongs to the n-th object, in the order given. With one mask a frame there is one object,
    and the answer is the propagator's own.

    Args:
        propagator: follows each object.
        frames: float32 (T, 3, H, W) in [0, 1].
        masks: float32 (K, 1, H, W) in [0, 1], none of them empty.
        numbers: the K frame indices that the masks belong to; each in 0..T-1.
        on_step: progress callback over all objects; may raise to stop.

    Returns:
        The largest of the objects' probabilities at each pixel, and the least of their confidences in each frame; with
        several, the notes say so, and which object each is about.
    """
    objects = grouped(numbers)
    if len(objects) == 1:
        return propagator.propagate(frames, masks, list(numbers), on_step=on_step)
    joined: MaskTrack | None = None
    for n, own in enumerate(objects):
        share = part(on_step, n / len(objects), (n + 1) / len(objects))
        track = propagator.propagate(frames, masks[own], [numbers[i] for i in own], on_step=share)
        track.notes = [f"Object {n + 1}: {note}" for note in track.notes]
        if joined is None:
            joined = track
        else:
            joined = MaskTrack(
                torch.maximum(joined.probs, track.probs),
                torch.minimum(joined.confidence, track.confidence),
                joined.notes + track.notes,
            )
    assert joined is not None
    joined.notes.insert(
        0, f"{len(objects)} objects were followed by themselves; the confidence is the least of theirs."
    )
    return joined


def grouped(numbers: Sequence[int]) -> list[list[int]]:
    """Which annotations belong to which object: [0, 0, 7] is [[0, 2], [1]]."""
    objects: list[list[int]] = []
    for i, number in enumerate(numbers):
        n = list(numbers[:i]).count(number)
        if n == len(objects):
            objects.append([])
        objects[n].append(i)
    return objects


def check_objects(numbers: Sequence[int], objects: int) -> None:
    """Refuse more masks for a frame than there are objects, and more objects than a person paints.

    Args:
        numbers: the frame index of every mask.
        objects: how many were painted on the first frame that was painted.

    Raises:
        MaskError: a frame has more masks, or there are more than :data:`MOST_OBJECTS`.
    """
    if objects > MOST_OBJECTS:
        raise MaskError(
            f"{objects} objects are painted on one frame; expected at most {MOST_OBJECTS}. A mask for every frame "
            "needs no propagation: connect it to Inactivation inpaint."
        )
    for number in numbers:
        masks = list(numbers).count(number)
        if masks > objects:
            once = "once only" if objects == 1 else f"once for each of the {objects} objects"
            raise MaskError(f"Frame {number} has {masks} masks; each frame can be annotated {once}.")
