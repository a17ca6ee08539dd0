"""From records to tables: one line per method, in the form of the paper's Tables 1 and 2, and one per case."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ciri.errors import EvaluationError
from ciri.evaluation.features import vfid
from ciri.evaluation.methods import TRUE_MASKS, Method
from ciri.evaluation.run import Record
from ciri.evaluation.tolerance import Curves


@dataclass(frozen=True)
class Column:
    """One number of a method.

    Attributes:
        key: in JSON and CSV.
        title, unit: over the column.
        better: 1 if more is better, -1 if less is, 0 if neither.
        digits: after the point.
        meaning: one sentence for the person who reads it.
    """

    key: str
    title: str
    better: int
    digits: int
    meaning: str
    unit: str = ""

    def text(self, value: float | None) -> str:
        """The number as it is printed; a dash where there is none."""
        return "-" if value is None or math.isnan(value) else f"{value:.{self.digits}f}"


LOCAL = [
    Column("psnr_box", "PSNR", 1, 2, "Over the tight box of the true mask.", "dB"),
    Column("ssim_box", "SSIM", 1, 3, "Over the same box; uniform 65-pixel window, or the largest that fits."),
    Column("vfid_local", "VFID", -1, 3, "I3D features of the box, as the literature computes them."),
]
GLOBAL = [
    Column("psnr", "PSNR", 1, 2, "Over whole frames.", "dB"),
    Column("ssim65", "SSIM", 1, 4, "Whole frames; uniform 65-pixel window, as the video inpainting literature has it."),
    Column("vfid", "VFID", -1, 3, "I3D features of whole frames, as the literature computes them."),
]
OTHER = [
    Column("psnr_mask", "mask PSNR", 1, 2, "Over the pixels of the true mask only.", "dB"),
    Column("psnr_outside", "outside PSNR", 1, 2, "Beyond the true mask grown by 8 pixels; 100 = untouched.", "dB"),
    Column("e_warp_masked", "E_warp", -1, 3, "Warping error of inpainted pixels x 1000; flow: DIS on the clean clip."),
    Column("lpips_box", "LPIPS", -1, 3, "AlexNet, over the box."),
    Column("jf", "J&F", 1, 1, "Agreement of the masks with the true ones x 100, without first and last frame."),
    Column("cpu", "CPU time", -1, 2, "Processor seconds of all threads per frame.", "s/frame"),
    Column(
        "wall", "wall time", -1, 2, "Seconds on the clock per frame; depends on what else the machine did.", "s/frame"
    ),
]
COLUMNS = [*LOCAL, *GLOBAL, *OTHER]
#: The paper's Table 2: what its rows are called here, by the mode (of published networks) or the variant of the weights
#: (of ``lite``) that they stand for.
ABLATION = {
    "hard": "baseline, hard masks",
    "hard-mask": "baseline, hard masks",
    "blend": "w/ target inactivation, without training for it",
    "gate": "w/ target inactivation (Eq. 1)",
    "no-curriculum": "w/ target inactivation (Eq. 1)",
    "ciri": "w/ dual curriculum (Eq. 2, 3)",
}
#: Those of them that a backbone is told.
MODES = ("hard", "blend", "gate")
TABLE_2 = [*LOCAL, *(column for column in OTHER if column.key in ("jf", "cpu", "wall"))]
#: Scores that are printed multiplied.
_FACTORS = {"e_warp": 1000.0, "e_warp_masked": 1000.0}


@dataclass
class Row:
    """One method's numbers: ``values`` holds means over all frames of all cases, ``by_case`` those of each case."""

    method: Method
    values: dict[str, float | None]
    by_case: dict[str, dict[str, float | None]]


@dataclass
class Report:
    """Everything that was measured, ready to be written in any form.

    Attributes:
        rows: one per method, best local PSNR first.
        curves: of the wrong-mask benchmark, if it was run.
        cases: names, worst first.
        frames: over all cases.
        shares: geometric means of mask and box shares of the frame.
        machine: what it ran on.
        command: how to run it again.
        notes: what is missing and why, what failed.
        about: the clips, in a sentence of the person who measured.
    """

    rows: list[Row]
    curves: Curves
    cases: list[str]
    frames: int
    shares: dict[str, float | None]
    machine: dict[str, str]
    command: str
    notes: list[str] = field(default_factory=list)
    about: str = ""

    def columns(self, wanted: Iterable[Column] = COLUMNS) -> list[Column]:
        """Those columns that have a number."""
        return [c for c in wanted if any(row.values.get(c.key) is not None for row in self.rows)]

    def best(self, column: Column) -> float | None:
        """The best value of a column among automatic methods (true masks are an upper bound, not a contestant)."""
        rivals = [row for row in self.rows if row.method.masks != TRUE_MASKS]
        values = [v for row in rivals if (v := row.values.get(column.key)) is not None]
        return (max if column.better > 0 else min)(values) if values and column.better and len(values) > 1 else None

    def ablation(self) -> list[Row]:
        """The rows of the paper's Table 2: methods that differ in mode or weights alone, from hard masks on."""
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            if row.method.ablated in ABLATION and not row.method.refined:
                groups.setdefault((row.method.masks, row.method.network), []).append(row)
        order = list(ABLATION)
        return [
            row
            for rows in groups.values()
            if len(rows) > 1
            for row in sorted(rows, key=lambda row: order.index(row.method.ablated))
        ]


def mean(values: Iterable[float]) -> float | None:
    """Mean of the numbers among some values; None if there is none."""
    numbers = [v for v in values if not math.isnan(v)]
    return sum(numbers) / len(numbers) if numbers else None


def pooled(records: Sequence[Record], reduce: Callable[[Iterable[float]], float | None] = mean) -> dict[str, Any]:
    """All scores over all frames of some records (the convention of FuseFormer, E2FGVI and ProPainter), and times."""
    names = dict.fromkeys(name for record in records for name in record.scores)
    values = {n: reduce(v for record in records for v in record.scores.get(n, ())) for n in names}
    for name, factor in _FACTORS.items():
        if (value := values.get(name)) is not None:
            values[name] = factor * value
    j, f = values.get("J"), values.get("F")
    values["jf"] = None if j is None or f is None else 50 * (j + f)
    timed = [record for record in records if record.timing]
    count = sum(record.frames for record in timed)
    for clock in ("cpu", "wall"):
        values[clock] = sum(record.seconds(clock) or 0.0 for record in timed) / count if count else None
    return values


def make_rows(records: Sequence[Record]) -> list[Row]:
    """One row per method, best local PSNR first."""
    rows = []
    for method in dict.fromkeys(record.method for record in records):
        own = [record for record in records if record.method == method]
        values = pooled(own)
        for region, name in (("global", "vfid"), ("local", "vfid_local")):
            values[name] = vfid(own, region, "literature")
            values[f"{name}_eval"] = vfid(own, region, "evaluation")
        # a mean of means as well: the other convention in use weighs every clip alike
        per_case = {record.case: pooled([record]) for record in own}
        values["psnr_by_case"] = _by_case(per_case, "psnr")
        # as their authors define them
        values |= {name: _by_case(per_case, name) for name in ("jf", *_FACTORS)}
        if method.masks == TRUE_MASKS:
            values["jf"] = None
        rows.append(Row(method, values, per_case))
    return sorted(rows, key=lambda row: -(row.values.get("psnr_box") or -math.inf))


def _by_case(per_case: dict[str, dict[str, Any]], name: str) -> float | None:
    """The mean of every clip's own mean."""
    return mean(value for values in per_case.values() if (value := values.get(name)) is not None)


def worst_first(rows: Sequence[Row], cases: Sequence[str]) -> list[str]:
    """Case names by the local PSNR of the best automatic method, lowest first."""
    automatic = [row for row in rows if row.method.masks != TRUE_MASKS] or list(rows)

    def quality(case: str) -> float:
        value = automatic[0].by_case.get(case, {}).get("psnr_box") if automatic else None
        return math.inf if value is None else value

    return sorted(cases, key=quality)


def geometric_shares(records: Sequence[Record]) -> dict[str, float | None]:
    """How much of a frame masks and boxes cover, as geometric means over frames (each clip once)."""
    once = list({record.case: record for record in records}.values())
    found = {}
    for name in ("share_mask", "share_box"):
        logs = mean(math.log(v) for record in once for v in record.scores.get(name, ()) if v > 0)
        found[name] = None if logs is None else math.exp(logs)
    return found


def as_json(report: Report) -> dict[str, Any]:
    """The whole report for programs."""
    return {
        "machine": report.machine,
        "command": report.command,
        "notes": report.notes,
        "frames": report.frames,
        "shares": report.shares,
        "columns": {c.key: {"title": c.title, "unit": c.unit, "meaning": c.meaning} for c in COLUMNS},
        "methods": [
            {"title": row.method.title, **asdict(row.method), "values": row.values, "by_case": row.by_case}
            for row in report.rows
        ],
        "wrong_masks": report.curves,
    }


def write_csv(path: Path, report: Report) -> None:
    """One line per case and method, all scores; an empty field where there is no number.

    Raises:
        EvaluationError: it cannot be written.
    """
    lines = [
        {
            "case": case,
            "masks": row.method.masks,
            "backbone": row.method.backbone,
            "mode": row.method.mode,
            "refined": row.method.refined,
            **values,
        }
        for row in report.rows
        for case, values in row.by_case.items()
    ]
    names = list(dict.fromkeys(name for line in lines for name in line))
    try:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows({k: "" if v is None else v for k, v in line.items()} for line in lines)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be written: {error.strerror or error}.") from None
