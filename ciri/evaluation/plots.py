"""Which charts a report shows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ciri.evaluation.charts import PALETTE, STANDALONE, Chart, Series
from ciri.evaluation.methods import TRUE_MASKS, Method
from ciri.evaluation.run import Record
from ciri.evaluation.tables import Report, Row, pooled
from ciri.evaluation.tolerance import Curves

_LOCAL = "local PSNR (dB)"


def _plotted(report: Report) -> list[Row]:
    """The rows that a chart can tell apart: other weights are compared in Table 2, and colours are few."""
    rows = [row for row in report.rows if "@" not in row.method.backbone]
    return [row for row in rows if not row.method.refined] if len(rows) > len(PALETTE) else rows


def time_chart(report: Report) -> Chart | None:
    """Quality against processor time, one point per method."""
    series = [
        Series(row.method.title, [(cpu, quality)], [f"{row.method.title}: {quality:.2f} dB, {cpu:.2f} s"], index)
        for index, row in enumerate(_plotted(report))
        if (cpu := row.values.get("cpu")) is not None and (quality := row.values.get("psnr_box")) is not None
    ]
    return (
        Chart(series, "CPU seconds per frame (all threads)", _LOCAL, joined=False, size=(520, 330)) if series else None
    )


def masks_chart(report: Report) -> Chart | None:
    """Quality against the agreement of the masks, one point per case and method."""
    series = []
    for index, row in enumerate(_plotted(report)):
        points = {
            f"{case}: J&F {jf:.1f}, {quality:.2f} dB": (jf, quality)
            for case, values in row.by_case.items()
            if (jf := values.get("jf")) is not None and (quality := values.get("psnr_box")) is not None
        }
        if points and row.method.masks != TRUE_MASKS:
            series.append(Series(row.method.title, list(points.values()), list(points), index))
    return (
        Chart(series, "J&F of the masks (one point per clip)", _LOCAL, joined=False, size=(520, 330))
        if series
        else None
    )


def wrong_mask_charts(curves: Curves) -> list[Chart]:
    """Local PSNR against strength, one chart per kind of error, all on one scale."""
    values = [v for by_kind in curves.values() for row in by_kind.values() for v in row]
    if not values:
        return []
    kinds = dict.fromkeys(kind for by_kind in curves.values() for kind in by_kind)
    return [
        Chart(
            [
                Series(name, list(enumerate(by_kind[kind])), colour=index)
                for index, (name, by_kind) in enumerate(curves.items())
                if kind in by_kind
            ],
            "strength of the error",
            _LOCAL,
            size=(340, 250),
            y_range=(min(values), max(values)),
            title=kind,
        )
        for kind in kinds
    ]


def case_chart(records: Sequence[Record], order: Sequence[Method]) -> Chart | None:
    """Local PSNR over time, one line per method; a method has the colour of its place in the order."""
    series = []
    for record in records:
        row = record.scores.get("psnr_box", [])
        points = [(float(t), v) for t, v in enumerate(row) if not math.isnan(v)]
        if points:
            best = pooled([record])["psnr_box"]
            series.append(Series(f"{record.method.title} ({best:.1f})", points, colour=order.index(record.method)))
    return Chart(series, "frame", _LOCAL, size=(560, 250)) if series else None


def combined(charts: Sequence[Chart], columns: int = 3) -> str:
    """Several charts of one size as one SVG file."""
    if not charts:
        return ""
    width, height = charts[0].size
    rows = math.ceil(len(charts) / columns)
    inside = "".join(
        f'<g transform="translate({width * (i % columns)} {height * (i // columns)})">{chart.svg()}</g>'
        for i, chart in enumerate(charts)
    )
    size = (width * min(columns, len(charts)), height * rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}">'
        f"{STANDALONE}{inside}</svg>\n"
    )
