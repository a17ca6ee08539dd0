"""``python -m ciri evaluate``: measure propagators and backbones on clips, and write a report."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciri.commands import _arguments as shared
from ciri.console import remark
from ciri.errors import EvaluationError

if TYPE_CHECKING:
    from ciri.evaluation.methods import Models
    from ciri.evaluation.scores import Networks


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="measure propagators and backbones on clips; write tables and a report",
        description="CASES holds CASE/{frames,masks,clean}/00000.png (clean is optional), DAVIS, or YouTube-VOS. "
        "The same command goes on where it was interrupted.",
    )
    parser.add_argument("cases", metavar="CASES", type=Path, help="folder of cases")
    parser.add_argument("--out", "-o", type=Path, required=True, help="folder for results, tables and report.html")
    parser.add_argument("--only", type=_names, metavar="CASE,...", help="use only these cases")
    parser.add_argument("--frames", type=int, metavar="N", help="use only so many frames of each case")
    _add_methods(parser)
    _add_metrics(parser)
    shared.add_device(parser)
    parser.set_defaults(run=run)


def _add_methods(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is compared")
    what.add_argument(
        "--propagators",
        type=_names,
        metavar="NAME,...",
        help="default: all that have their weights; NAME+attention: its masks, corrected by what other frames show "
        "(without shadows, which true masks have not)",
    )
    what.add_argument("--backbones", type=_names, metavar="NAME,...", help="default: all that have their weights")
    what.add_argument("--modes", type=_names, metavar="MODE,...", help="auto, hard, blend, gate (default auto)")
    what.add_argument(
        "--ablate",
        action="store_true",
        help="the rows of the paper's Table 2: modes hard, blend, gate, or other weights",
    )
    what.add_argument("--true-masks", action="store_true", help="also inpaint the true masks")
    what.add_argument(
        "--refine",
        nargs="?",
        const="lite",
        default="",
        metavar="DETECTOR",
        help="also refine every result by a residue detector (--refine alone: lite)",
    )
    what.add_argument("--models", type=Path, metavar="DIR", help="folder of weight files; recognised by their keys")
    what.add_argument(
        "--weights",
        action="append",
        default=[],
        type=_pair,
        metavar="NAME=FILE",
        help="weight file of one model; propagator:NAME= and backbone:NAME= where both have the name; NAME@LABEL= for "
        "a further backbone of that kind (labels hard-mask, no-curriculum and ciri are rows of Table 2)",
    )
    what.add_argument(
        "--results",
        action="append",
        default=[],
        type=_pair,
        metavar="NAME=DIR",
        help="also score what another program made: DIR/CASE/00000.png",
    )
    what.add_argument("--grow", type=int, default=4, metavar="PX", help="make the masks larger by this (default 4)")
    what.add_argument("--feather", type=int, default=3, metavar="PX", help="width of the soft seam (default 3)")
    what.add_argument("--degrade", action="store_true", help="also inpaint wrong masks: 5 kinds at 5 strengths")
    what.add_argument("--degrade-cases", type=int, metavar="N", help="on so many cases only, spread over all")


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how it is measured and written")
    how.add_argument("--i3d", type=Path, metavar="FILE", help="published I3D weights, for VFID")
    how.add_argument(
        "--lpips", type=Path, action="append", default=[], metavar="FILE", help="AlexNet's and LPIPS's weights: twice"
    )
    how.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown")
    how.add_argument("--about", default="", metavar="TEXT", help="a sentence on the clips, for the report")
    how.add_argument("--fresh", action="store_true", help="make everything again, as after a change of code")


def _names(text: str) -> list[str]:
    # a method that is run twice would count twice
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _pair(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=PATH")
    return name, Path(path)


def run(args: argparse.Namespace) -> None:
    """Run what is missing, score, write.

    Raises:
        CiriError: no case, an unknown model, a weight file that is no such thing or of no model that is run, or nothing
            could be measured.
    """
    from ciri.evaluation import cases as on_disk
    from ciri.evaluation.markdown import write_markdown
    from ciri.evaluation.methods import Method, Models, choose
    from ciri.evaluation.report import make_report, write_report
    from ciri.evaluation.run import Runner, Settings
    from ciri.evaluation.tables import MODES
    from ciri.evaluation.tolerance import tolerance_curves

    _check_options(args)
    cases = chosen_cases(on_disk.find_cases(args.cases), args.only)
    models = Models(shared.choose_device(args.device), args.models, dict(args.weights))
    modes = list(MODES) if args.ablate else args.modes or ["auto"]
    methods, notes = choose(
        models,
        masks=args.propagators,
        fillers=args.backbones,
        modes=modes,
        true_masks=args.true_masks,
        refined=args.refine,
    )
    metrics = load_metrics(args, models)
    models.check_used()
    for name, _ in args.results:
        if name in {method.backbone for method in methods}:
            raise EvaluationError(
                f"--results {name}: this name is taken, by a backbone or by other results. Give another."
            )
        methods.append(Method("", name))
    if not methods:
        raise EvaluationError("Nothing to compare: " + " ".join(notes))
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"--out {args.out} cannot be made a folder: {error.strerror or error}.") from None
    settings = Settings(args.frames, args.grow, args.feather)
    runner = Runner(args.out, models, settings, metrics, dict(args.results), args.fresh)
    with shared.progress("evaluating") as bar:
        records, failures = runner.run(cases, methods, bar)
    curves: Any = {}
    if args.degrade:
        with shared.progress("wrong masks") as bar:
            curves, more = tolerance_curves(runner, spread(cases, args.degrade_cases), methods, bar)
        failures += more
    notes += failures
    report = make_report(runner, records, curves, command=command_line(args), notes=notes, about=args.about)
    with shared.progress("report") as bar:
        files = write_report(runner, report, cases, records, bar)
    if args.markdown:
        write_markdown(args.markdown, report)
        files.append(args.markdown)
    shared.show_notes(report.notes)
    for file in files:
        remark(str(file))


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that contradict others, or that nothing would come of.

    Raises:
        EvaluationError: there are such.
    """
    from ciri.evaluation.methods import AUTO
    from ciri.evaluation.tables import MODES

    if args.frames is not None and args.frames < 1:
        raise EvaluationError(f"--frames {args.frames}: expected at least one frame.")
    if args.feather < 0:
        raise EvaluationError(f"--feather {args.feather}: expected 0 or more pixels.")
    if args.degrade_cases is not None and not args.degrade:
        raise EvaluationError("--degrade-cases without --degrade: no wrong masks are inpainted. Give both, or neither.")
    if args.degrade_cases is not None and args.degrade_cases < 1:
        raise EvaluationError(f"--degrade-cases {args.degrade_cases}: expected at least one case.")
    if args.ablate and args.modes:
        raise EvaluationError("Both --ablate and --modes: --ablate runs all modes; leave one of them out.")
    for mode in args.modes or ():
        if mode not in (AUTO, *MODES):
            raise EvaluationError(f"There is no mode {mode!r}; choose from {', '.join((AUTO, *MODES))}.")
    given = [name for name, _ in args.weights]
    for name in given:
        if given.count(name) > 1:
            raise EvaluationError(f"--weights {name} is given {given.count(name)} times; give one file of it.")
    if args.models is not None and not args.models.is_dir():
        raise EvaluationError(f"--models {args.models} is no folder; expected one that holds weight files.")


def chosen_cases(cases: list[Any], only: list[str] | None) -> list[Any]:
    """Cases by name. Raises EvaluationError: a name that is not there."""
    names = [case.name for case in cases]
    unknown = [name for name in only or () if name not in names]
    if unknown:
        raise EvaluationError(f"There is no case {unknown[0]!r}; the cases are {', '.join(names)}.")
    return [case for case in cases if only is None or case.name in only]


def spread(cases: list[Any], count: int | None) -> list[Any]:
    """So many cases, evenly spread over all."""
    if count is None or count >= len(cases):
        return cases
    return [cases[round(index * len(cases) / count)] for index in range(count)]


def load_metrics(args: argparse.Namespace, models: Models) -> Networks:
    """I3D and LPIPS from the files that were given, or found among the models."""
    from ciri.evaluation.scores import load_networks

    return load_networks(args.i3d or models.file_of("metric", "i3d"), args.lpips, models.device)


def command_line(args: argparse.Namespace) -> str:
    """The command as somebody else would type it: of paths, only the last part."""
    words = sys.argv[1:] if sys.argv[1:2] == ["evaluate"] else ["evaluate", str(args.cases), "--out", str(args.out)]
    return "python -m ciri " + " ".join(shlex.quote(_short(word)) for word in words)


def _short(word: str) -> str:
    """Drop what only this machine knows of a path."""
    name, equals, path = word.rpartition("=")
    return name + equals + (Path(path).name if Path(path).is_absolute() else path)
