"""Arguments and steps that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ciri.console import ProgressBar, remark
from ciri.errors import CiriError, MaskError
from ciri.propagation import registry as propagators

PROPAGATORS = ", ".join(propagators.names())


def add_clip(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="INPUT", type=Path, help="video file, or folder of numbered images")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="first frame to work on (default 0)")
    parser.add_argument("--frames", type=int, metavar="N", help="how many frames (default: to the end)")


def add_propagation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mask",
        action="append",
        type=Path,
        metavar="MASK",
        help="image in which the object is white, or transparent; repeat it for corrections on further frames, "
        "or for further objects, such as a shadow, on the same frame",
    )
    parser.add_argument(
        "--mask-frame",
        action="append",
        type=int,
        metavar="N",
        help="frame of INPUT that the mask was painted on (default: the first); once for each --mask, in order",
    )
    parser.add_argument(
        "--keep",
        action="append",
        type=Path,
        metavar="MASK",
        help="image in which something is white that comes close to the object and is to stay, painted on the frame of "
        "the first --mask; repeat it for more",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="the masks are exact to the pixel: do not move their edges onto those of the objects",
    )
    # without a default: what is given shows by not being None
    parser.add_argument(
        "--propagator",
        metavar="NAME",
        help=f"what follows the object: {PROPAGATORS} (default {propagators.DEFAULT})",
    )
    parser.add_argument("--propagator-weights", type=Path, metavar="FILE", help="its weight file, where it needs one")
    parser.add_argument("--overlay", type=Path, metavar="OUT", help="also write the clip with the masks tinted over it")


def built(registry: Any, name: str, weights: Path | None, device: Any) -> Any:
    """Make a model of a registry: on the device, with the weight file if one is given.

    Raises:
        CiriError: a file for a model without weights, and as the registry says.
    """
    if weights is not None and name == "flow":
        raise CiriError(f"{weights} is given for 'flow', which has no weights. Leave it out, or choose another model.")
    return registry.build(name, device=device, **({} if weights is None else {"weights": weights}))


def built_propagator(args: argparse.Namespace, device: Any) -> Any:
    """Make what follows the object: what :func:`add_propagation` asks for."""
    return built(propagators, args.propagator or propagators.DEFAULT, args.propagator_weights, device)


def snapper_of(args: argparse.Namespace) -> Any:
    """What corrects painted masks; None where they are said to be exact."""
    from ciri.propagation.snap import shipped

    return None if args.exact else shipped()


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")


def choose_device(name: str) -> Any:
    """Return the torch.device of that name.

    Raises:
        CiriError: no such device, or not on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # also of a device without memory, "meta", which only pretends to compute
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):
        raise CiriError(f"The device {name!r} is not there; use cpu, or leave --device out.") from None
    return device


def read_input(args: argparse.Namespace) -> Any:
    """Read the clip, say what is to be said of it, and refuse folders to write to that hold images of another one.

    Raises:
        MediaError: see :func:`ciri.media.read_clip` and :func:`ciri.media.check_leftovers`.
    """
    from ciri import media

    clip = media.read_clip(args.input, start=args.start, count=args.frames)
    # now, not at the end: nobody waits minutes for half a clip unknowingly
    show_notes(clip.notes)
    for path in _outputs(args).values():
        media.check_leftovers(path, clip)
    return clip


def _outputs(args: argparse.Namespace) -> dict[str, Path]:
    """What a clip is written to, by the argument that says so."""
    given = {_flag(name): getattr(args, name, None) for name in ("output", "save_masks", "overlay")}
    return {flag: path for flag, path in given.items() if path is not None}


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse outputs that cannot be written, or would take the place of an input, before any work is done.

    Raises:
        MediaError: see :func:`ciri.media.check_output` and :func:`ciri.media.check_apart`.
    """
    from ciri import media

    outputs = _outputs(args)
    inputs = {"INPUT": args.input}
    if getattr(args, "masks", None):
        inputs["--masks"] = args.masks
    for name in ("mask", "keep"):
        for number, path in enumerate(getattr(args, name) or ()):
            inputs[_flag(name) + (f" {number + 1}" if number else "")] = path
    for path in outputs.values():
        media.check_output(path)
    media.check_apart(outputs, inputs)


def given(args: argparse.Namespace, *names: str) -> list[str]:
    """Those of some arguments without a default that were given, as they are typed."""
    return [_flag(name) for name in names if getattr(args, name) is not None]


def _flag(name: str) -> str:
    """The argument as it is typed."""
    return "--" + name.replace("_", "-")


def read_annotations(args: argparse.Namespace) -> tuple[Any, list[int], list[str]]:
    """Return the painted masks (K, H, W), the frame of the clip each belongs to, and notes.

    Raises:
        MaskError: no mask, masks of different sizes, another number of masks than of frame numbers, or a mask that
            would be taken for a frame.
        MediaError: a file is not readable.
    """
    if not args.mask:
        raise MaskError("No --mask: give an image in which the object is white, painted on one frame of the clip.")
    numbers = args.mask_frame if args.mask_frame is not None else [args.start] * (len(args.mask) == 1)
    if len(numbers) != len(args.mask):
        raise MaskError(
            f"{len(args.mask)} --mask but {len(numbers)} --mask-frame; give one frame number for each mask (the same "
            "one again for another object)."
        )
    early = [number for number in numbers if number < args.start]
    if early:
        raise MaskError(
            f"--mask-frame {early[0]} lies before --start {args.start}; the frames are INPUT's own numbers."
        )
    for file, number in [*zip(args.mask, numbers, strict=True), *((file, numbers[0]) for file in args.keep or ())]:
        _check_beside(file, number, args.input)
    masks, notes = _read_masks(args.mask)
    return masks, [number - args.start for number in numbers], notes


def _check_beside(mask: Path, number: int, clip: Path) -> None:
    """Refuse a mask that lies in the folder of the clip, unless it was painted on the very frame.

    Raises:
        MaskError: it is read as a frame, too.
    """
    from ciri.media import image_files

    if not (clip.is_dir() and mask.parent.resolve() == clip.resolve()):
        return
    names = [file.name for file in image_files(clip)]
    if mask.name in names and names[number : number + 1] != [mask.name]:
        raise MaskError(
            f"{mask} lies among the frames of {clip} and would be taken for one of them; move it to another folder."
        )


def read_keep(args: argparse.Namespace) -> tuple[Any, list[str]]:
    """Return the masks (N, H, W) of what is to stay, None if there are none, and notes.

    Raises:
        MaskError: masks of different sizes.
        MediaError: a file is not readable.
    """
    return _read_masks(args.keep) if args.keep else (None, [])


def _read_masks(files: list[Path]) -> tuple[Any, list[str]]:
    import torch

    from ciri.mask_files import read_mask

    masks, notes = zip(*[read_mask(file) for file in files], strict=True)
    for file, mask in zip(files, masks, strict=True):
        if mask.shape != masks[0].shape:
            raise MaskError(f"{file} has another size than {files[0]}; paint all masks on frames of the same clip.")
    return torch.stack(masks), [note for more in notes for note in more]


@contextmanager
def progress(title: str) -> Iterator[ProgressBar]:
    """A progress bar whose line is ended also when the work was not."""
    bar = ProgressBar(title)
    try:
        yield bar
    finally:
        bar.close()


def show_notes(notes: list[str]) -> None:
    for note in notes:
        remark(f"note: {note}")


def write_overlay(path: Path, clip: Any, track: Any) -> None:
    """Write the clip with the masks tinted over it, so that a person can see where they are wrong."""
    from ciri.compare import overlay
    from ciri.media import write_clip

    write_clip(path, overlay(clip.frames, track.probs), clip)


def summary(timings: dict[str, float], frames: int) -> str:
    """Say how many frames took how long."""
    parts = ", ".join(f"{stage} {1000 * seconds / frames:.0f} ms" for stage, seconds in timings.items())
    return f"{frames} frames in {sum(timings.values()):.1f} s ({parts} a frame)"
