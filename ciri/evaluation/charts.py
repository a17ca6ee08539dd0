"""Line charts and scatter plots as SVG: sharp at any size, readable in light and dark pages, no library needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

#: Eight colours that people with any colour vision can tell apart (Okabe and Ito), without their yellow.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#8c564b")

#: Makes a file of its own follow the reader's light or dark setting.
STANDALONE = "<style>svg{color:#333}@media(prefers-color-scheme:dark){svg{color:#ccc}}</style>"


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Attributes:
        name: in the legend.
        points: (x, y).
        labels: shown when the pointer rests on a point; as many as points, or none.
        colour: index into the palette.
    """

    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()
    colour: int = 0


@dataclass(frozen=True)
class Chart:
    """A chart: ``joined`` draws lines through the points of each series.

    Attributes:
        x_title, y_title: of the axes, with units.
        joined: lines, not only points.
        size: (width, height) in pixels.
        y_range: fixes the range of the y axis, so that charts beside each other compare.
        title: over the chart.
    """

    series: Sequence[Series]
    x_title: str
    y_title: str
    joined: bool = True
    size: tuple[int, int] = (420, 280)
    y_range: tuple[float, float] | None = None
    title: str = ""

    def frame(self) -> Frame | None:
        """Where the axes are; None for a chart without any point."""
        points = [point for series in self.series for point in series.points]
        if not points:
            return None
        width, height = self.size
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        x_ticks = ticks(min(xs), max(xs), 5)
        y_ticks = ticks(*(self.y_range or (min(ys), max(ys))), 5)
        legend_rows = math.ceil(len(self.series) / 2)
        return Frame(54, width - 16, 26 if self.title else 10, height - 44 - 18 * legend_rows, x_ticks, y_ticks)

    def svg(self, *, standalone: bool = False) -> str:
        """The chart as an ``<svg>`` element; standalone: as the content of a file."""
        frame = self.frame()
        if frame is None:
            return ""
        width, height = self.size
        parts = [self._axes(frame), *(self._marks(series, frame) for series in self.series)]
        parts += [self._legend_entry(i, s, frame.bottom + 52) for i, s in enumerate(self.series)]
        named = f"<title>{escape(self.title or self.y_title)}</title>"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="system-ui, sans-serif" font-size="12" fill="currentColor" role="img">'
            f"{STANDALONE if standalone else ''}{named}{''.join(parts)}</svg>"
        )

    def _axes(self, frame: Frame) -> str:
        parts = []
        if self.title:
            parts.append(_text(frame.left, 15, self.title, weight="600"))
        for tick in frame.y_ticks:
            y = frame.y(tick)
            parts.append(_line(frame.left, y, frame.right, y, opacity=0.18))
            parts.append(_text(frame.left - 6, y + 4, number(tick, frame.y_ticks), anchor="end"))
        for tick in frame.x_ticks:
            x = frame.x(tick)
            parts.append(_line(x, frame.bottom, x, frame.bottom + 4, opacity=0.6))
            parts.append(_text(x, frame.bottom + 17, number(tick, frame.x_ticks), anchor="middle"))
        parts.append(_line(frame.left, frame.bottom, frame.right, frame.bottom, opacity=0.6))
        middle = (frame.left + frame.right) / 2
        parts.append(_text(middle, frame.bottom + 33, self.x_title, anchor="middle", opacity=0.8))
        centre = (frame.top + frame.bottom) / 2
        turned = f'transform="rotate(-90 13 {centre:.0f})"'
        parts.append(_text(13, centre, self.y_title, anchor="middle", opacity=0.8, more=turned))
        return "".join(parts)

    def _marks(self, series: Series, frame: Frame) -> str:
        colour = PALETTE[series.colour % len(PALETTE)]
        places = [(frame.x(x), frame.y(y)) for x, y in series.points]
        parts = []
        if self.joined and len(places) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        # long lines of many points are lines, not pearls
        radius = 0 if self.joined and len(places) > 12 else 3.5 if self.joined else 4.5
        for index, (x, y) in enumerate(places):
            label = series.labels[index] if series.labels else f"{series.name}: {series.points[index][1]:.2f}"
            if radius:
                parts.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" fill-opacity="0.85">'
                    f"<title>{escape(label)}</title></circle>"
                )
        return "".join(parts)

    def _legend_entry(self, index: int, series: Series, top: float) -> str:
        x = 54 + (index % 2) * (self.size[0] - 54) / 2
        y = top + 18 * (index // 2)
        colour = PALETTE[series.colour % len(PALETTE)]
        return f'<rect x="{x:.0f}" y="{y - 9:.0f}" width="12" height="10" rx="2" fill="{colour}"/>' + _text(
            x + 17, y, series.name
        )


@dataclass(frozen=True)
class Frame:
    """The plot's area in pixels, and the values at its edges: the outermost ticks."""

    left: float
    right: float
    top: float
    bottom: float
    x_ticks: list[float]
    y_ticks: list[float]

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that cover [low, high]: at least two, about as many as asked."""
    if high - low < 1e-9:
        # a single value sits in the middle of something
        pad = abs(low) * 0.1 if abs(low) > 1e-6 else 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def number(value: float, among: Sequence[float]) -> str:
    """A tick's text, with the digits that its neighbours need."""
    step = among[1] - among[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if step * 10**digits % 1 > 1e-6 and 1 - step * 10**digits % 1 > 1e-6:
        digits += 1
    return f"{value:.{digits}f}"


def _line(x1: float, y1: float, x2: float, y2: float, *, opacity: float) -> str:
    where = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {where} stroke="currentColor" stroke-opacity="{opacity}"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", weight: str = "400", opacity: float = 1, more: str = ""
) -> str:
    look = f'text-anchor="{anchor}" font-weight="{weight}" fill-opacity="{opacity}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look} {more}>{escape(text)}</text>'
