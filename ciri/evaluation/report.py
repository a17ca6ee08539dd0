"""From records to files: ``results.json``, ``results.csv`` and ``report.html``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ciri.errors import CiriError, EvaluationError
from ciri.evaluation.cases import Case
from ciri.evaluation.machine import describe
from ciri.evaluation.page import build_page
from ciri.evaluation.pictures import picture_case, picture_errors
from ciri.evaluation.plots import case_chart
from ciri.evaluation.run import CaseRun, Record, Runner
from ciri.evaluation.store import write_json
from ciri.evaluation.tables import Report, as_json, geometric_shares, make_rows, worst_first, write_csv
from ciri.evaluation.tolerance import Curves
from ciri.progress import OnStep, ignore

#: Shown where a column is empty because a user's file is missing.
WITHOUT_I3D = (
    "VFID is not available: it needs the published I3D weights (rgb_imagenet.pt, also called i3d_rgb_imagenet.pt). "
    "Give the file with --i3d, or put it into the folder that --models names."
)
WITHOUT_CLEAN = (
    "PSNR, SSIM, VFID and LPIPS need the clip without the target; no case has one (CASE/clean). "
    "What the masks, flicker and time say is below."
)


def make_report(
    runner: Runner,
    records: Sequence[Record],
    curves: Curves,
    *,
    command: str,
    notes: Sequence[str] = (),
    about: str = "",
) -> Report:
    """Gather everything that was measured.

    Raises:
        EvaluationError: there is no record at all; the notes say why.
    """
    if not records:
        raise EvaluationError("Nothing was measured. " + " ".join(notes))
    rows = make_rows(records)
    names = list(dict.fromkeys(record.case for record in records))
    remarks = list(notes) + [f"{record.case}: {note}" for record in records for note in record.notes]
    if not any("psnr" in record.scores for record in records):
        remarks.insert(0, WITHOUT_CLEAN)
    elif runner.networks.i3d is None:
        remarks.insert(0, WITHOUT_I3D)
    elif all(row.values["vfid"] is None for row in rows):
        remarks.insert(0, "VFID is not available: it needs two clips or more, of at least 16 frames of 112 pixels.")
    frames = {record.case: record.frames for record in records}
    return Report(
        rows,
        curves,
        worst_first(rows, names),
        sum(frames.values()),
        geometric_shares(records),
        describe(runner.models.device),
        command,
        list(dict.fromkeys(remarks)),
        about,
    )


def write_report(
    runner: Runner, report: Report, cases: Sequence[Case], records: Sequence[Record], on_step: OnStep = ignore
) -> list[Path]:
    """Write all files of a report and return their paths.

    Raises:
        EvaluationError: one cannot be written.
    """
    write_json(runner.out / "results.json", as_json(report))
    write_csv(runner.out / "results.csv", report)
    by_name = {case.name: case for case in cases}
    order = [row.method for row in report.rows]
    pictures, lines = [], {}
    for done, name in enumerate(report.cases):
        own = sorted((r for r in records if r.case == name), key=lambda record: order.index(record.method))
        pictures.append(picture_case(runner, by_name[name], own))
        chart = case_chart(own, order)
        if chart:
            lines[name] = chart
        on_step(done + 1, len(report.cases))
    page = runner.out / "report.html"
    try:
        errors = _errors(runner, by_name[report.cases[-1]]) if report.curves else []
        page.write_text(build_page(report, pictures, lines, errors), encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{page} cannot be written: {error.strerror or error}.") from None
    return [runner.out / "results.json", runner.out / "results.csv", page]


def _errors(runner: Runner, case: Case) -> list[tuple[str, str]]:
    """Pictures of the wrong masks; a report without them is better than none."""
    try:
        return picture_errors(CaseRun(runner, case))
    except CiriError:
        return []
