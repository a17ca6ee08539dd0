"""The report as a Markdown page for the repository: tables, and the curves as SVG files beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ciri.errors import EvaluationError
from ciri.evaluation.methods import TRUE_MASKS
from ciri.evaluation.page import ablation_title, method_title, shares_text, summary
from ciri.evaluation.plots import combined, masks_chart, time_chart, wrong_mask_charts
from ciri.evaluation.tables import GLOBAL, LOCAL, OTHER, TABLE_2, Column, Report, Row


def write_markdown(path: Path, report: Report) -> None:
    """Write the page, and its pictures into ``images`` beside it.

    Raises:
        EvaluationError: it cannot be written.
    """
    pictures = {
        "results_wrong_masks.svg": combined(wrong_mask_charts(report.curves)),
        "results_quality.svg": combined([c for c in (time_chart(report), masks_chart(report)) if c], columns=2),
    }
    images = path.parent / "images"
    try:
        images.mkdir(parents=True, exist_ok=True)
        for name, svg in pictures.items():
            if svg:
                (images / name).write_text(svg, encoding="utf-8")
        path.write_text(build_markdown(report, [name for name, svg in pictures.items() if svg]), encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{path} cannot be written: {error.strerror or error}.") from None


def build_markdown(report: Report, pictures: Sequence[str] = ()) -> str:
    """The page's text; it names the machine, the command and everything that is missing."""
    quality = [*LOCAL, *GLOBAL]
    titles = [f"{'Local' if c in LOCAL else 'Global'} {c.title}" for c in quality]
    rest = report.columns(OTHER)
    machine = report.machine
    lines = [
        "# Results",
        "",
        f"<!-- Written by the command below; do not edit. -->\n\n{summary(report)}",
        "",
        *([report.about, ""] if report.about else []),
        f"Measured on {machine['date']}: {machine['processor']}, {machine['system']}, Python {machine['Python']}, "
        f"PyTorch {machine['PyTorch']}, OpenCV {machine['OpenCV']}; device: {machine['device']}. To measure again:",
        "",
        f"    {report.command}",
        "",
        *(f"> {without_folders(note)}\n>" for note in report.notes),
        "",
        "## Quality",
        "",
        "Local numbers are taken over the tight box of the true mask. Methods in italics use the true masks: what "
        "perfect tracking would give." + shares_text(report),
        "",
        *table(report, quality, titles),
        "",
        "## Masks, flicker, time",
        "",
        *table(report, rest, [c.title for c in rest]),
        "",
        *(f"- **{c.title}**: {c.meaning}" for c in rest),
        "",
    ]
    if rows := report.ablation():
        lines += ["## Ablation", "", "The rows of Table 2 in the paper, as they came out.", ""]
        lines += [*table(report, TABLE_2, [c.title for c in TABLE_2], rows, ablation_title), ""]
    if "results_quality.svg" in pictures:
        lines += ["![Quality against time and against mask quality](images/results_quality.svg)", ""]
    if report.curves:
        lines += ["## Tolerance to wrong masks", "", *wrong_mask_table(report), ""]
    if "results_wrong_masks.svg" in pictures:
        lines += ["![Local PSNR against the strength of mask errors](images/results_wrong_masks.svg)", ""]
    lines += ["## Every clip, worst first", "", *case_table(report), ""]
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def without_folders(text: str) -> str:
    """Leave only the last part of full paths: a published page has no business with somebody's folders."""
    return re.sub(r"(?<!\S)(?:[A-Za-z]:)?[/\\](?:[^\s/\\]+[/\\])+", "", text)


def table(
    report: Report,
    columns: Sequence[Column],
    titles: Sequence[str],
    rows: Sequence[Row] | None = None,
    name_of: Callable[[Row], str] = method_title,
) -> list[str]:
    """One line per method; the best of each column is bold."""
    heads = [
        f"{title}{f' ({c.unit})' if c.unit else ''} {({1: '&uarr;', -1: '&darr;'}).get(c.better, '')}".rstrip()
        for title, c in zip(titles, columns, strict=True)
    ]
    lines = ["| Method | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(columns)]
    for row in report.rows if rows is None else rows:
        bound = row.method.masks == TRUE_MASKS
        cells = []
        for column in columns:
            value = row.values.get(column.key)
            best = not bound and value is not None and value == report.best(column)
            cells.append(f"**{column.text(value)}**" if best else column.text(value))
        name = f"*{name_of(row)}*" if bound else name_of(row)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def wrong_mask_table(report: Report) -> list[str]:
    """Local PSNR with true masks, and how much of it each error costs at strength 1, 3 and 5."""
    lines = [
        "Local PSNR (dB) when the true masks get one kind of error; in brackets the difference to true masks.",
        "",
        "| Backbone | Error | true | strength 1 | strength 3 | strength 5 |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, by_kind in report.curves.items():
        for kind, row in by_kind.items():
            cells = [f"{row[s]:.2f} ({row[s] - row[0]:+.2f})" for s in (1, 3, 5)]
            lines.append(f"| {name} | {kind} | {row[0]:.2f} | " + " | ".join(cells) + " |")
    return lines


def case_table(report: Report) -> list[str]:
    """Local PSNR of every clip and method."""
    # other weights are compared in Table 2; a table this wide is hard enough to read
    rows = [row for row in report.rows if "@" not in row.method.backbone]
    titles = [row.method.title for row in rows]
    lines = ["Local PSNR (dB).", "", "| Clip | " + " | ".join(titles) + " |", "| --- |" + " ---: |" * len(titles)]
    for case in report.cases:
        values = [row.by_case.get(case, {}).get("psnr_box") for row in rows]
        lines.append(f"| {case} | " + " | ".join("-" if v is None else f"{v:.2f}" for v in values) + " |")
    return lines
