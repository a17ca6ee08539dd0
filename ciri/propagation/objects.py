"""Several objects: some leave together, others are to stay.

What leaves is followed object by object, and their masks are joined. A shadow is the usual second object. Painted along
with what casts it, it is often lost: a propagator knows the object again by its looks, and the two look nothing alike.

What is to stay comes close to the target, and is taken along by a propagator that knows the target only: the legs of
somebody who walks behind it. Followed as an object of its own, it competes for its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ciri.errors import MaskError
from ciri.numbering import number
from ciri.progress import OnStep, ignore, part
from ciri.propagation.base import MaskTrack, Propagator
from ciri.propagation.engine import Annotation, MemoryPropagator

#: Every object takes the time of one; more masks for a frame are hardly objects that a person painted.
MOST_OBJECTS = 8
#: What is to stay takes a pixel from the target only where memory holds it so many times as likely. While masks are
#: propagated both compete as equals; but a large object behind a thin one claims the pixels around it too, and what is
#: missing from the target's mask stays in the picture.
CLEARLY = 2.0


def follow(
    propagator: Propagator,
    frames: Tensor,
    masks: Tensor,
    numbers: Sequence[int],
    *,
    keep: Tensor | None = None,
    on_step: OnStep = ignore,
) -> MaskTrack:
    """Follow what was painted through a clip. Of several masks for one frame, each shows an object.

    The n-th mask of a frame belongs to the n-th object, in the order given. With one mask a frame and nothing to keep
    there is one object, and the answer is the propagator's own.

    Args:
        propagator: follows each object.
        frames: float32 (T, 3, H, W) in [0, 1].
        masks: float32 (K, 1, H, W) in [0, 1], none of them empty, on any device.
        numbers: the K frame indices that the masks belong to; each in 0..T-1.
        keep: float32 (N, 1, H, W) in [0, 1], what is to stay, painted on the frame of the first mask, on any device;
            each mask shows an object. Where it overlaps with masks of that frame, these count.
        on_step: progress callback over all objects; may raise to stop.

    Returns:
        The largest of the objects' probabilities at each pixel, and the least of their confidences in each frame, on
        the frames' device; with several, the notes say so, and which object each is about. ``kept`` shows what stays,
        if that was asked for.

    Raises:
        MaskError: a mask of what is to stay is empty, or lies within what is to go.
    """
    objects = grouped(numbers)
    masks = masks.to(frames.device)
    stay = None if keep is None else _beside(keep.to(frames.device), masks[[n == numbers[0] for n in numbers]])

    def one(own: list[int], on_step: OnStep) -> MaskTrack:
        at = [numbers[i] for i in own]
        if stay is None:
            return propagator.propagate(frames, masks[own], at, on_step=on_step)
        return _apart(propagator, frames, masks[own], at, stay, numbers[0], on_step)

    if len(objects) == 1:
        return one(objects[0], on_step)
    joined: MaskTrack | None = None
    for n, own in enumerate(objects):
        track = one(own, part(on_step, n / len(objects), (n + 1) / len(objects)))
        track.notes = [f"Object {n + 1}: {note}" for note in track.notes]
        if joined is None:
            joined = track
        else:
            joined = MaskTrack(
                torch.maximum(joined.probs, track.probs),
                torch.minimum(joined.confidence, track.confidence),
                joined.notes + track.notes,
                joined.kept if track.kept is None or joined.kept is None else torch.minimum(joined.kept, track.kept),
            )
    assert joined is not None
    joined.notes.insert(
        0, f"{len(objects)} objects were followed by themselves; the confidence is the least of theirs."
    )
    return joined


def _beside(keep: Tensor, masks: Tensor) -> Tensor:
    """What is to stay (N, 1, H, W) without what is to go (k, 1, H, W)."""
    beside = keep * (masks.amax(0) <= 0.5)
    for before, after in zip(keep, beside, strict=True):
        if not (after > 0.5).any():
            what = "lies within what is to be removed" if (before > 0.5).any() else "is empty"
            raise MaskError(
                f"A mask of what is to stay {what}; paint in white what has to stay beside the object, or leave it out."
            )
    return beside


def _apart(
    propagator: Propagator,
    frames: Tensor,
    masks: Tensor,
    numbers: Sequence[int],
    stay: Tensor,
    stay_frame: int,
    on_step: OnStep,
) -> MaskTrack:
    """Follow one object while others claim what is theirs; all arguments as those of :func:`follow`."""
    if isinstance(propagator, MemoryPropagator):
        painted = [Annotation(t, 0, mask) for t, mask in zip(numbers, masks, strict=True)]
        painted += [Annotation(stay_frame, n, mask) for n, mask in enumerate(stay, 1)]
        spared = range(1, 1 + len(stay))
        tracks = propagator.propagate_objects(frames, painted, spared=spared, on_step=on_step)
        notes = [note.replace("Object 0", "The target") for note in tracks.notes]
        notes = [note for note in notes if not note.startswith("Object ")]
        probs, theirs = _of_target(tracks.probs), tracks.probs[:, 1:].amax(1, keepdim=True)
        for t, mask in zip(numbers, masks, strict=True):
            probs[t] = mask
        return MaskTrack(probs, tracks.confidence[:, 0], notes, torch.minimum(theirs, 1 - probs))
    share = 1 / (1 + len(stay))
    track = propagator.propagate(frames, masks, list(numbers), on_step=part(on_step, 0, share))
    probs, kept = track.probs, torch.zeros_like(track.probs)
    for n, mask in enumerate(stay, 1):
        step = part(on_step, n * share, (n + 1) * share)
        other = propagator.propagate(frames, mask[None], [stay_frame], on_step=step)
        kept = torch.maximum(kept, other.probs)
    for t, mask in zip(numbers, masks, strict=True):
        kept[t] *= mask == 0
    theirs = kept > probs
    return MaskTrack(probs.masked_fill(theirs, 0), track.confidence, track.notes, kept.masked_fill(~theirs, 0))


def _of_target(probs: Tensor) -> Tensor:
    """The target's share (T, 1, H, W) of probabilities (T, 1 + N, H, W) of it and of what stays, see CLEARLY."""
    target, theirs = probs[:, :1], probs[:, 1:].sum(1, keepdim=True)
    background = (1 - target - theirs).clamp(min=0)
    return target / (target + theirs / CLEARLY + background).clamp(min=1e-7)


def grouped(numbers: Sequence[int]) -> list[list[int]]:
    """Which annotations belong to which object: [0, 0, 7] is [[0, 2], [1]]."""
    objects: list[list[int]] = []
    for i, frame in enumerate(numbers):
        n = list(numbers[:i]).count(frame)
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
    for frame in numbers:
        masks = list(numbers).count(frame)
        if masks > objects:
            once = "once only" if objects == 1 else f"once for each of the {objects} objects"
            raise MaskError(f"Frame {number(frame)} has {masks} masks; each frame can be annotated {once}.")
