"""One-shot removal as one function, for scripts, the command line and tests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ciri.errors import CiriError, MaskError
from ciri.frames import check_annotation, check_clip, check_key_frames, check_masks, grow_mask
from ciri.grain import match_grain
from ciri.inactivation.fusion import spared
from ciri.inactivation.learned import inactivation_map
from ciri.inpainting.base import Backbone
from ciri.inpainting.remove import remove
from ciri.numbering import number
from ciri.progress import OnStep, ignore, part
from ciri.propagation.base import MaskTrack, Propagator
from ciri.propagation.objects import follow
from ciri.propagation.snap import Snapper, snapped

if TYPE_CHECKING:
    from ciri.inactivation.attention_network import AttentionNetwork
    from ciri.refinement.refine import Refinement
    from ciri.refinement.settings import RefinementSettings
    from ciri.residue.base import ResidueDetector

#: Share of the progress bar that propagation gets; measured with the classical methods at 432x240.
_PROPAGATION_SHARE = 0.5
#: What of the rest attention gets, where it is asked for.
_ATTENTION_SHARE = 0.3
#: Where refinement begins, if it is asked for: it runs the backbone once more, and looks twice.
_REFINED_FROM = 0.55
#: Where grain begins, which is quick.
_GRAIN_FROM = 0.97


@dataclass
class Removal:
    """The finished clip and how it came about.

    Attributes:
        frames: float32 (T, 3, H, W), the clip without the object.
        masks: the object's masks over the clip; with attention, what was inactivated instead (M_iac).
        notes: sentences for the person who started it (what was resized, where the target was lost).
        timings: seconds of each stage.
        refinement: what was found and corrected afterwards; None where that was not asked for.
    """

    frames: Tensor
    masks: MaskTrack
    notes: list[str]
    timings: dict[str, float] = field(default_factory=dict)
    refinement: Refinement | None = None


def remove_object(
    frames: Tensor,
    first_mask: Tensor | None = None,
    *,
    propagator: Propagator | None = None,
    backbone: Backbone,
    key_frames: Sequence[int] = (0,),
    keep: Tensor | None = None,
    masks: Tensor | None = None,
    bridge: bool = False,
    snapper: Snapper | None = None,
    grow: int = 4,
    feather: int = 3,
    crop: bool = True,
    attention: AttentionNetwork | None = None,
    shadows: bool = True,
    detector: ResidueDetector | None = None,
    refine: RefinementSettings | None = None,
    grain: float = 1.0,
    on_step: OnStep = ignore,
) -> Removal:
    """Remove an object that was painted on one frame (or on a few) from the whole clip; or several objects.

    Args:
        frames: floating (T, 3 | 4, H, W) in [0, 1].
        first_mask: (H, W), (K, H, W) or (K, 1, H, W) in [0, 1]: the object on the annotated frames. Like all masks here
            it may be on another device than the frames; what comes out is on theirs.
        propagator: follows the object through the clip. With ``masks`` it is needed only to bridge them.
        backbone: fills what the masks cover.
        key_frames: the frame number of each annotated mask; negative ones count from the end. Several masks for one
            frame show several objects: see :func:`ciri.propagation.objects.follow`.
        keep: (H, W) or (N, H, W) in [0, 1], what comes close to the object and is to stay, painted on the frame of the
            first mask: it is followed too, and what belongs to it is not removed. Not with ``masks``.
        masks: (T, H, W) or (T, 1, H, W), the object in every frame, instead of ``first_mask``; nothing is propagated.
        bridge: where ``masks`` drop out for some frames, the propagator carries those of the frames around there
            (:mod:`ciri.refinement.bridging`). Refinement does so in any case, if it is given a propagator.
        snapper: moves what was painted, ``keep`` too, onto the edges of objects first, as
            :func:`ciri.propagation.snap.shipped` does; None: it is believed to the pixel.
        grow, feather, crop: as in :func:`ciri.inpainting.remove.remove`.
        attention: corrects the masks by what other frames show (paper 3.2), as
            :func:`ciri.inactivation.learned.shipped` gives it; None: they are used as they are.
        shadows: with attention, the object's shadow is removed too.
        detector: what looks for residue; needed with ``refine``.
        refine: correct the masks where something of the object is left, and paint again (paper 3.3); None: do not.
            Of its settings, ``grow``, ``feather`` and ``crop`` are replaced by those given here.
        grain: how much of the clip's noise what was filled in gets at last, as ``strength`` of
            :func:`ciri.grain.match_grain`; 0: none.
        on_step: progress callback over all stages; may raise to stop.

    Raises:
        ClipError, MaskError: the frames or the masks cannot be used; ``first_mask`` or ``keep`` with ``masks``, or
            ``bridge`` without; a negative ``feather``, or ``grow`` that leaves nothing.
        CiriError: refinement without a detector, or in a mode that this propagator does not allow; bridging without a
            propagator; a negative ``grain``.
    """
    if refine is not None and detector is None:
        raise CiriError("Refinement needs a residue detector that says what is left; give one, or leave refine out.")
    if refine is not None:
        _check_refinable(refine, propagator)
    if masks is not None and first_mask is not None:
        raise MaskError("Both first_mask and masks: give the mask of one frame, or a mask for every frame.")
    if masks is not None and keep is not None:
        raise MaskError("Masks for every frame say what stays, too: leave keep out, and erase it in the masks.")
    if bridge and masks is None:
        raise MaskError("Bridging mends masks from elsewhere: give a mask for every frame, or leave bridge out.")
    if feather < 0:
        raise MaskError(f"The feather is {feather}; expected 0 or more pixels.")
    if not 0 <= grain < float("inf"):
        raise CiriError(f"The grain is {grain}; expected 0 (none) or more, 1 being that of the clip.")
    frames = check_clip(frames)
    last = part(on_step, _GRAIN_FROM, 1)
    whole = on_step = part(on_step, 0, _GRAIN_FROM) if grain > 0 else on_step
    if refine is not None:
        on_step = part(whole, 0, _REFINED_FROM)
    started = time.perf_counter()
    if masks is not None:
        track, share = given_masks(frames, masks), 0.0
        if bridge:
            share = _PROPAGATION_SHARE
            track = _bridged(frames, track, propagator, part(on_step, 0, share))
    else:
        if first_mask is None or propagator is None:
            raise MaskError("Nothing says what to remove: give a mask and a propagator, or a mask for every frame.")
        share = _PROPAGATION_SHARE
        step = part(on_step, 0, share)
        said: list[str] = []
        if snapper is not None:
            first_mask, keep, said = snapped(frames, first_mask, key_frames, snapper, keep=keep)
        track = propagate(frames, first_mask, propagator, key_frames=key_frames, keep=keep, on_step=step)
        track = replace(track, notes=said + track.notes)
    timings = {"propagation": time.perf_counter() - started}
    if attention is not None:
        began, before = time.perf_counter(), share
        share += (1 - share) * _ATTENTION_SHARE
        index, example, known = _annotation(frames, first_mask, key_frames, track.probs)
        corrected = inactivation_map(
            frames,
            example[None],
            track.probs,
            attention,
            first_index=index,
            known=known,
            shadow=shadows,
            on_step=part(on_step, before, share),
        )
        if track.kept is not None:
            corrected = spared(corrected, track.probs, track.kept)
        track = replace(track, probs=corrected)
        timings["attention"] = time.perf_counter() - began
    if grow < 0 and not any((grow_mask(mask[None], grow) > 0).any() for mask in track.probs):
        raise MaskError(f"A grow of {grow} leaves nothing of the masks; give one closer to 0.")
    began = time.perf_counter()
    cleaned = remove(
        frames, track.probs, backbone, grow=grow, feather=feather, crop=crop, on_step=part(on_step, share, 1)
    )
    timings["inpainting"] = time.perf_counter() - began
    removal = Removal(cleaned, track, list(track.notes), timings)
    if refine is not None:
        settings = replace(refine, grow=grow, feather=feather, crop=crop)
        step = part(whole, _REFINED_FROM, 1)
        _refine(frames, first_mask, key_frames, removal, backbone, detector, propagator, settings, step)
    if grain > 0:
        _regrain(frames, removal, grain, feather, last)
    return removal


def _regrain(frames: Tensor, removal: Removal, strength: float, feather: int, on_step: OnStep) -> None:
    """Give what was filled in the noise of the clip, in place; last, as nothing before has any use for noise."""
    began = time.perf_counter()
    removal.frames, found = match_grain(frames, removal.frames, strength=strength, feather=feather, on_step=on_step)
    if found is not None:
        removal.notes.append(f"What was filled in got the grain of the clip: {found}.")
    on_step(1, 1)
    removal.timings["grain"] = time.perf_counter() - began


def _check_refinable(settings: RefinementSettings, propagator: Propagator | None) -> None:
    """Raise CiriError if this mode tunes weights that the propagator has not, before minutes are spent on the rest."""
    from ciri.refinement.decoder_inputs import refinable
    from ciri.refinement.settings import TUNING

    if settings.mode in TUNING:
        refinable(propagator, settings.mode)


def _bridged(frames: Tensor, track: MaskTrack, propagator: Propagator | None, on_step: OnStep) -> MaskTrack:
    """Masks from elsewhere, whole where they had dropped out."""
    from ciri.refinement.bridging import bridged_masks

    if propagator is None:
        raise CiriError("Bridging masks that drop out needs a propagator; give one, or leave bridge out.")
    probs, said = bridged_masks(frames, track.probs, propagator, on_step)
    return replace(track, probs=probs, notes=[*track.notes, *said])


def _refine(
    frames: Tensor,
    first_mask: Tensor | None,
    key_frames: Sequence[int],
    removal: Removal,
    backbone: Backbone,
    detector: ResidueDetector | None,
    propagator: Propagator | None,
    settings: RefinementSettings,
    on_step: OnStep,
) -> None:
    """Refine a removal in place; the annotated frames keep their masks."""
    from ciri.refinement.features import extractor_for
    from ciri.refinement.refine import refine

    started = time.perf_counter()
    probs = removal.masks.probs
    index, example, fixed = _annotation(frames, first_mask, key_frames, probs)
    result = refine(
        frames,
        example,
        probs,
        removal.frames,
        backbone=backbone,
        detector=detector,
        propagator=propagator,
        settings=settings,
        first_index=index,
        fixed=fixed,
        kept=removal.masks.kept,
        features=extractor_for(detector),
        on_step=on_step,
    )
    removal.refinement, removal.frames = result, result.inpainted
    removal.masks = replace(removal.masks, probs=result.masks)
    removal.timings["refinement"] = time.perf_counter() - started


def _annotation(
    frames: Tensor, first_mask: Tensor | None, key_frames: Sequence[int], probs: Tensor
) -> tuple[int, Tensor, list[int]]:
    """Return a frame whose mask is known, that mask (1, H, W), and all frames whose masks are."""
    if first_mask is not None:
        annotated, _ = check_masks(first_mask, *frames.shape[2:], what="first mask")
        known = check_key_frames(key_frames, len(annotated), len(frames), repeated=True)
        # several masks of one frame show several objects
        together = torch.stack([m for m, n in zip(annotated, known, strict=True) if n == known[0]])
        return known[0], together.amax(0), known
    # of masks that came from elsewhere, the largest shows most of the target
    index = int((probs > 0.5).flatten(1).sum(1).argmax())
    return index, probs[index], []


def propagate(
    frames: Tensor,
    first_mask: Tensor,
    propagator: Propagator,
    *,
    key_frames: Sequence[int] = (0,),
    keep: Tensor | None = None,
    on_step: OnStep = ignore,
) -> MaskTrack:
    """Follow an object, or several, from the annotated masks through the clip.

    Args and errors: as :func:`remove_object`.
    """
    frames = check_clip(frames)
    key_masks, notes = check_masks(first_mask, *frames.shape[2:], what="first mask")
    check_annotation(key_masks)
    numbers = check_key_frames(key_frames, len(key_masks), len(frames), repeated=True)
    if keep is not None:
        keep, more = check_masks(keep, *frames.shape[2:], what="mask of what is to stay")
        notes += more
    track = follow(propagator, frames, key_masks, numbers, keep=keep, on_step=on_step)
    lost = track.lost_frames()
    # a propagator that words this better has done so already
    if lost and not track.notes:
        notes.append(
            f"The object is gone or was lost in {len(lost)} of {len(frames)} frames, first in frame {number(lost[0])}."
        )
    return replace(track, notes=notes + track.notes)


def given_masks(frames: Tensor, masks: Tensor) -> MaskTrack:
    """Take a mask for every frame from elsewhere; its confidence is 1 where it shows an object and 0 where not.

    The masks may be on any device; the track is on the frames'.

    Raises:
        MaskError: another count, size or shape than the clip's, no object in any frame, or nothing else in all of them.
    """
    checked, notes = check_masks(masks, *frames.shape[2:], what="mask of every frame")
    if len(checked) != len(frames):
        raise MaskError(f"There are {len(checked)} masks for {len(frames)} frames; expected one for every frame.")
    seen = (checked > 0.5).flatten(1).any(1)
    if not seen.any():
        raise MaskError("All masks are empty (no pixel above 0.5); paint the object white.")
    if (checked > 0.5).all():
        raise MaskError(
            "All masks cover the whole frame, so there is no background to fill from; paint only the object white."
        )
    return MaskTrack(checked.to(frames.device), seen.to(frames.device, torch.float32), notes)
