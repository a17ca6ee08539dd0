"""``python -m ciri remove``: remove an object from a whole clip."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ciri.commands import _arguments as shared
from ciri.console import remark
from ciri.inpainting import registry as backbones
from ciri.refinement.settings import MODES, RefinementSettings
from ciri.residue import registry as detectors


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("remove", help="remove an object that was painted on one frame from the whole clip")
    shared.add_clip(parser)
    parser.add_argument(
        "--output",
        "-o",
        type=Path,
        required=True,
        metavar="OUT",
        help="video file, or folder for (lossless) PNG images",
    )
    shared.add_propagation(parser)
    parser.add_argument(
        "--masks",
        type=Path,
        metavar="DIR",
        help="a mask for every frame of INPUT, or of what --start and --frames choose (folder or video): nothing is "
        "propagated",
    )
    parser.add_argument(
        "--bridge", action="store_true", help="where --masks drop out for a few frames, bridge them from those around"
    )
    parser.add_argument("--save-masks", type=Path, metavar="OUT", help="also write the masks (folder or video)")
    known = ", ".join(backbones.names())
    parser.add_argument(
        "--backbone",
        default=backbones.DEFAULT,
        metavar="NAME",
        help=f"what fills the hole: {known} (default {backbones.DEFAULT})",
    )
    parser.add_argument("--backbone-weights", type=Path, metavar="FILE", help="its weight file, where it needs one")
    parser.add_argument("--grow", type=int, default=4, metavar="PX", help="make the masks larger by this (default 4)")
    parser.add_argument("--feather", type=int, default=3, metavar="PX", help="width of the soft seam (default 3)")
    parser.add_argument(
        "--no-crop", action="store_true", help="work on whole frames, not on a window that follows the object"
    )
    parser.add_argument(
        "--attention",
        action=argparse.BooleanOptionalAction,
        help="correct the masks by what other frames show (default: unless --masks gives them)",
    )
    parser.add_argument("--keep-shadows", action="store_true", help="leave the object's shadow in the picture")
    parser.add_argument(
        "--grain",
        type=float,
        default=1.0,
        metavar="X",
        help="give what is filled in the noise of the clip, times this (default 1; 0: none)",
    )
    _add_refinement(parser)
    shared.add_device(parser)
    parser.set_defaults(run=run)


def _add_refinement(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(detectors.names())
    group = parser.add_argument_group("what is left of the object")
    group.add_argument(
        "--refine",
        nargs="?",
        const="auto",
        choices=MODES,
        metavar="MODE",
        help=f"look for what is left and for masks that drop out, correct them and paint again: {', '.join(MODES)} "
        "(default off; --refine alone means auto)",
    )
    # without defaults: what is given shows by not being None
    group.add_argument("--detector", metavar="NAME", help=f"what looks: {known} (default lite)")
    group.add_argument("--detector-weights", type=Path, metavar="FILE", help="its weight file, where it needs one")
    group.add_argument("--time-budget", type=float, metavar="S", help="seconds that refinement may take (default any)")


def run(args: argparse.Namespace) -> None:
    """Read, remove, write.

    Raises:
        CiriError: bad input; nothing was written.
    """
    from ciri import media
    from ciri.inactivation.learned import shipped
    from ciri.mask_files import read_masks
    from ciri.pipeline import remove_object

    _check_options(args)
    shared.check_outputs(args)
    device = shared.choose_device(args.device)
    backbone = shared.built(backbones, args.backbone, args.backbone_weights, device)
    refinement: dict[str, Any] = {}
    if args.refine:
        refinement["detector"] = shared.built(detectors, args.detector or "lite", args.detector_weights, device)
        refinement["refine"] = RefinementSettings(mode=args.refine, time_budget=args.time_budget)
    clip = shared.read_input(args)
    options: dict[str, Any]
    if args.masks:
        masks, notes = read_masks(args.masks, start=args.start, count=args.frames, clip=clip)
        options = {"masks": masks, "bridge": args.bridge}
    else:
        annotated, key_frames, notes = shared.read_annotations(args)
        keep, more = shared.read_keep(args)
        notes += more
        options = {"first_mask": annotated, "key_frames": key_frames, "keep": keep}
        options["snapper"] = shared.snapper_of(args)
    if args.refine or args.bridge or not args.masks:
        options["propagator"] = shared.built_propagator(args, device)
    with shared.progress("removing") as bar:
        removal = remove_object(
            clip.frames,
            backbone=backbone,
            grow=args.grow,
            feather=args.feather,
            crop=not args.no_crop,
            attention=shipped() if args.attention or (args.attention is None and not args.masks) else None,
            shadows=not args.keep_shadows,
            grain=args.grain,
            on_step=bar,
            **refinement,
            **options,
        )
    notes += removal.notes + media.write_clip(args.output, removal.frames, clip)
    if args.save_masks:
        media.write_clip(args.save_masks, removal.masks.probs, clip)
    if args.overlay:
        shared.write_overlay(args.overlay, clip, removal.masks)
    shared.show_notes(notes)
    if removal.refinement is not None:
        remark(removal.refinement.report.text())
    remark(f"{args.output}: {shared.summary(removal.timings, len(clip.frames))}")


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that contradict others, or that nothing would come of: the result would not be what was meant.

    Raises:
        MaskError: of those that say what is removed.
        CiriError: of the others.
    """
    from ciri.errors import CiriError, MaskError

    if args.masks and args.mask:
        raise MaskError("Both --mask and --masks: give the mask of one frame, or a mask for every frame.")
    if args.masks and args.mask_frame:
        raise MaskError(
            "Both --mask-frame and --masks: masks of every frame have their frames; leave --mask-frame out."
        )
    if args.exact and args.masks:
        raise MaskError("Both --exact and --masks: masks of every frame are taken as they are; leave --exact out.")
    if args.keep and args.masks:
        raise MaskError("Both --keep and --masks: leave --keep out, and erase in --masks what has to stay.")
    if args.bridge and not args.masks:
        raise MaskError("--bridge without --masks: it mends masks from elsewhere. Give some, or leave it out.")
    if not args.refine:
        for option in shared.given(args, "detector", "detector_weights", "time_budget"):
            raise CiriError(f"{option} without --refine: nothing looks for what is left. Give both, or leave it out.")
    if args.masks and not (args.refine or args.bridge):
        for option in shared.given(args, "propagator", "propagator_weights"):
            raise CiriError(
                f"{option} with --masks: nothing is propagated. Give --bridge or --refine, too, or leave it out."
            )
