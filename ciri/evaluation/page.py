"""The report: one HTML file that needs nothing else, neither a network nor other files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from ciri.evaluation.charts import Chart
from ciri.evaluation.methods import TRUE_MASKS
from ciri.evaluation.pictures import SHOWN_STRENGTH, CasePictures
from ciri.evaluation.plots import masks_chart, time_chart, wrong_mask_charts
from ciri.evaluation.tables import ABLATION, COLUMNS, GLOBAL, LOCAL, OTHER, TABLE_2, Column, Report, Row

_ASSETS = Path(__file__).with_name("assets")


def build_page(
    report: Report, cases: Sequence[CasePictures], lines: dict[str, Chart], errors: Sequence[tuple[str, str]] = ()
) -> str:
    """Return the report as HTML.

    Args:
        report: the numbers.
        cases: pictures, in the order in which they shall be shown.
        lines: per case, local PSNR over time.
        errors: pictures of the kinds of wrong masks.
    """
    body = [
        _head(report),
        _tables(report),
        _charts(report),
        _wrong_masks(report, errors),
        _cases(report, cases, lines),
        _method(report),
    ]
    style = (_ASSETS / "report.css").read_text(encoding="utf-8")
    script = (_ASSETS / "report.js").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Object removal, measured</title><style>{style}</style></head>\n"
        f"<body><main>{''.join(body)}</main>\n<script>{script}</script></body></html>\n"
    )


def summary(report: Report) -> str:
    """One sentence: what was compared, and which method is best."""
    clips = f"{len(report.cases)} clip{'s' * (len(report.cases) != 1)} ({report.frames} frames)"
    text = f"{len(report.rows)} method{'s' * (len(report.rows) != 1)} on {clips}."
    automatic = [row for row in report.rows if row.method.masks != TRUE_MASKS]
    if automatic and (best := automatic[0].values.get("psnr_box")) is not None:
        text += f" Best near the target: {automatic[0].method.title}, {best:.2f} dB"
        bounds = [
            v
            for row in report.rows
            if row.method.masks == TRUE_MASKS
            and row.method.filler == automatic[0].method.filler
            and (v := row.values.get("psnr_box")) is not None
        ]
        text += f" ({bounds[0]:.2f} dB with perfect masks)." if bounds else "."
    return text


def _head(report: Report) -> str:
    notes = "".join(f'<div class="note">{escape(note)}</div>' for note in report.notes)
    about = f"<p>{escape(report.about)}</p>" if report.about else ""
    where = f"{report.machine.get('date', '')} · {report.machine.get('processor', '')}"
    if report.machine.get("device") not in (None, "cpu"):
        where += f" · {report.machine['device']}"
    return (
        f'<h1>Object removal, measured</h1><p class="lead">{escape(summary(report))}</p>'
        f'<p class="soft">{escape(where)}</p>{about}{notes}'
    )


# ------------------------------------------------------------------------------------------------ tables


def _tables(report: Report) -> str:
    quality = (("Local", LOCAL), ("Global", GLOBAL))
    rest = [c for c in OTHER if c in report.columns()]
    return (
        "<h2>Quality</h2><p>Local numbers are taken over the tight box of the true mask, as in Table 1 of the paper. "
        "Numbers with true masks show what perfect tracking would give; they take no part in the comparison.</p>"
        + _table(report, quality)
        + "<h2>Masks, flicker, time</h2>"
        + _table(report, (("", rest),))
        + _ablation(report)
    )


def _ablation(report: Report) -> str:
    rows = report.ablation()
    if not rows:
        return ""
    table = _table(report, (("", TABLE_2),), rows, ablation_title)
    return f"<h2>Ablation</h2><p>The rows of Table 2 in the paper, as they came out.</p>{table}"


def ablation_title(row: Row) -> str:
    """What Table 2 calls a row, and which models it was measured with."""
    return f"{row.method.masks} + {row.method.network}: {ABLATION[row.method.ablated]}"


def method_title(row: Row) -> str:
    """What every other table calls it."""
    return row.method.title


def _table(
    report: Report,
    groups: Sequence[tuple[str, Sequence[Column]]],
    rows: Sequence[Row] | None = None,
    title: Callable[[Row], str] = method_title,
) -> str:
    """One line per method; the best of each column is marked."""
    columns = [column for _, group in groups for column in group]
    over = "".join(f'<th colspan="{len(group)}">{name}</th>' for name, group in groups)
    group_row = f'<tr class="group"><th></th>{over}</tr>' if any(name for name, _ in groups) else ""
    titles = "".join(f'<th title="{escape(c.meaning)}">{_title(c)}</th>' for c in columns)
    lines = "".join(_line(report, row, columns, title(row)) for row in (report.rows if rows is None else rows))
    return (
        f'<div class="scroll"><table><thead>{group_row}<tr><th>Method</th>{titles}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _title(column: Column) -> str:
    arrow = {1: " &uarr;", -1: " &darr;", 0: ""}[column.better]
    return f"{escape(column.title)}{arrow}" + (f"<br><small>{escape(column.unit)}</small>" if column.unit else "")


def _line(report: Report, row: Row, columns: Sequence[Column], title: str) -> str:
    bound = row.method.masks == TRUE_MASKS
    cells = []
    for column in columns:
        value = row.values.get(column.key)
        best = not bound and value is not None and value == report.best(column)
        cells.append(f"<td{' class=best' * best}>{column.text(value)}</td>")
    return f"<tr{' class=bound' * bound}><td>{escape(title)}</td>{''.join(cells)}</tr>"


# ------------------------------------------------------------------------------------------------ charts


def _charts(report: Report) -> str:
    charts = "".join(f"<figure>{chart.svg()}</figure>" for chart in (time_chart(report), masks_chart(report)) if chart)
    return f'<h2>Quality against time and against the masks</h2><div class="charts">{charts}</div>' if charts else ""


def _wrong_masks(report: Report, errors: Sequence[tuple[str, str]]) -> str:
    charts = "".join(f"<figure>{chart.svg()}</figure>" for chart in wrong_mask_charts(report.curves))
    if not charts:
        return ""
    shown = "".join(
        f'<figure><img src="{uri}" alt="mask, {escape(kind)}"><figcaption>{escape(kind)}, strength {SHOWN_STRENGTH}'
        "</figcaption></figure>"
        for kind, uri in errors
    )
    return (
        "<h2>Tolerance to wrong masks</h2><p>The true masks with one kind of error at five strengths: local PSNR over "
        "the box of the true mask. A flat line is a method that does not mind.</p>"
        f'<div class="errors">{shown}</div><div class="charts">{charts}</div>'
    )


# ------------------------------------------------------------------------------------------------ cases


def _cases(report: Report, cases: Sequence[CasePictures], lines: dict[str, Chart]) -> str:
    if not cases:
        return ""
    cards = "".join(_card(report, case, lines.get(case.case)) for case in cases)
    return (
        "<h2>Case by case, worst first</h2><p>Move the pointer over a picture: left of the line one clip, right of it "
        "another. Click a small picture to look at that moment.</p>" + cards
    )


def _card(report: Report, case: CasePictures, line: Chart | None) -> str:
    names = [strip.name for strip in case.strips]
    results = [row.method.title for row in report.rows if row.method.title in names]
    automatic = [row.method.title for row in report.rows if row.method.masks != TRUE_MASKS]
    chosen = next((name for name in automatic if name in results), results[0] if results else names[-1])
    moment = len(case.moments) // 2
    strips = "".join(
        f'<div class="name">{escape(strip.name)}</div>'
        + "".join(
            f'<button data-strip="{escape(strip.name)}" data-moment="{i}" aria-label="frame {case.moments[i]}">'
            f'<img src="{uri}" alt=""></button>'
            for i, uri in enumerate(strip.pictures)
        )
        for strip in case.strips
    )
    value = next((row.by_case[case.case].get("psnr_box") for row in report.rows if row.method.title == chosen), None)
    quality = f"{value:.2f} dB near the target, {escape(chosen)}" if value is not None else escape(chosen)
    frames = " ".join(map(str, case.moments))
    start = f"--at:{100 * case.centre:.0f}%;aspect-ratio:{case.aspect:.4f}"
    return (
        f'<section class="card" data-case="{escape(case.case)}" data-moment="{moment}" data-frames="{frames}">'
        f'<header><h3>{escape(case.case)}</h3><span class="soft">{quality}</span></header><div class="look"><div>'
        f'<div class="wipe" tabindex="0" aria-label="wipe" style="{start}">'
        '<img alt="left"><img class="over" alt="right"><span class="edge"></span></div>'
        f'<div class="controls">{_select(names, "input")}<span>|</span>{_select(names, chosen)}<output></output></div>'
        f"{line.svg() if line else ''}</div>"
        f'<div class="strips" style="grid-template-columns:repeat({len(case.moments)},1fr)">{strips}</div>'
        "</div></section>"
    )


def _select(names: Sequence[str], chosen: str) -> str:
    options = "".join(f"<option{' selected' * (name == chosen)}>{escape(name)}</option>" for name in names)
    return f"<select>{options}</select>"


# ------------------------------------------------------------------------------------------------ how


def _method(report: Report) -> str:
    columns = report.columns(COLUMNS)
    meanings = "".join(f"<dt>{escape(_group(c) + c.title)}</dt><dd>{escape(c.meaning)}</dd>" for c in columns)
    machine = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in report.machine.items())
    return (
        "<h2>What the numbers mean</h2><p>Means over all frames of all clips, of E_warp and J&amp;F over each clip's "
        "frames and then over clips; frames without a target have no local value."
        f"{escape(shares_text(report))}</p><dl>{meanings}</dl>"
        f"<h2>Made with</h2><dl>{machine}</dl><p><code>{escape(report.command)}</code></p>"
    )


def _group(column: Column) -> str:
    return "local " if column in LOCAL else "global " if column in GLOBAL else ""


def shares_text(report: Report) -> str:
    """How large the targets are, and whether that explains how far local and global numbers lie apart."""
    mask, box = report.shares.get("share_mask"), report.shares.get("share_box")
    if mask is None or box is None:
        return ""
    text = f" The true masks cover {100 * mask:.1f} % of a frame and their boxes {100 * box:.1f} % (geometric means)."
    best = report.rows[0].values
    inside, everywhere = best.get("psnr_box"), best.get("psnr")
    if inside is not None and everywhere is not None:
        share = 100 * 10 ** ((inside - everywhere) / 10)
        text += (
            f" Local and global PSNR of the first row lie as far apart as errors inside {share:.1f} % of a frame do."
        )
    return text
