"""``python -m ciri propagate``: follow an object that was painted on one frame; write its masks."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ciri.commands import _arguments as shared
from ciri.console import remark
from ciri.numbering import number


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("propagate", help="follow an object that was painted on one frame; write its masks")
    shared.add_clip(parser)
    parser.add_argument(
        "--output",
        "-o",
        type=Path,
        required=True,
        metavar="OUT",
        help="the masks: folder for PNG images, or video file",
    )
    shared.add_propagation(parser)
    shared.add_device(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Read, propagate, write.

    Raises:
        CiriError: bad input; nothing was written.
    """
    from ciri import media
    from ciri.pipeline import propagate
    from ciri.propagation.snap import snapped

    shared.check_outputs(args)
    device = shared.choose_device(args.device)
    propagator = shared.built_propagator(args, device)
    clip = shared.read_input(args)
    annotated, key_frames, notes = shared.read_annotations(args)
    keep, more = shared.read_keep(args)
    notes += more
    started = time.perf_counter()
    with shared.progress("propagating") as bar:
        if (snapper := shared.snapper_of(args)) is not None:
            annotated, keep, more = snapped(clip.frames, annotated, key_frames, snapper, keep=keep)
            notes += more
        track = propagate(clip.frames, annotated, propagator, key_frames=key_frames, keep=keep, on_step=bar)
    timings = {"propagation": time.perf_counter() - started}
    notes += track.notes + media.write_clip(args.output, track.probs, clip)
    if args.overlay:
        shared.write_overlay(args.overlay, clip, track)
    shared.show_notes(notes)
    lowest = int(track.confidence.argmin())
    mean, worst = track.confidence.mean(), track.confidence[lowest]
    remark(f"confidence: mean {mean:.2f}, lowest {worst:.2f} in frame {number(lowest)}")
    remark(f"{args.output}: {shared.summary(timings, len(clip.frames))}")
