"""Charts as SVG: curves, columns, bars, heat maps. Pure; every text in them is escaped.

A chart has a label for who does not see it, classes in place of colours (the page's style sheet
gives those, for light and dark), and where something can be pointed at a *hover*: positions along
x with what stands there, which the page's script reads. Nothing uses ``style=``, so that the page
may forbid it. Coordinates have one digit behind the point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from mldb.tools.cli.printable import printable
from mldb.tools.report.facts import NumberColumn
from mldb.tools.report.markup import figure_text, safe
from mldb.tools.report.pixels import heat_image
from mldb.tools.report.ticks import Axis, axis_of, tick_text

WIDTH: Final = 380
HEIGHT: Final = 210
TONES: Final = 8
POINTS_MOST: Final = 240

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 34


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart; *y* has NaN where there is no point. ``tone`` is its colour, from 0."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    tone: int = 0
    is_faint: bool = False
    has_dots: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """An SVG element, the names of its colours, and what may be pointed at in it."""

    svg: str
    legend: tuple[tuple[str, int], ...] = ()
    hover: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plot:
    """The place of a chart: its size and its axes."""

    x: Axis
    y: Axis
    width: int
    height: int

    def open(self, label: str) -> str:
        """The start of the element."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{safe(label, 400)}">'
        )

    def axes(self, x_label: str, y_label: str, *, x_ticks: bool = True) -> str:
        """Grid lines, marks and their texts."""
        parts = []
        bottom, left = self.height - _BOTTOM, _LEFT
        for value in self.y.ticks(4):
            y = self.y.place(value)
            parts.append(
                f'<path class="grid" d="M{left} {y:.1f}H{self.width - _RIGHT}"/>'
                f'<text class="tick e" x="{left - 6}" y="{y + 4:.1f}">{tick_text(value)}</text>'
            )
        for value in self.x.ticks(max(2, self.width // 80)) if x_ticks else ():
            x = self.x.place(value)
            parts.append(
                f'<path class="mark" d="M{x:.1f} {bottom}v4"/>'
                f'<text class="tick m" x="{x:.1f}" y="{bottom + 16}">{tick_text(value)}</text>'
            )
        parts.append(f'<path class="axis" d="M{left} {bottom}H{self.width - _RIGHT}"/>')
        middle = (left + self.width - _RIGHT) / 2
        parts.append(
            f'<text class="tick m" x="{middle:.0f}" y="{self.height - 4}">{safe(x_label, 60)}'
            "</text>"
        )
        if y_label:
            parts.append(
                f'<text class="tick" x="{left + 4}" y="{_TOP + 2}">{safe(y_label, 40)}</text>'
            )
        return "".join(parts)


def plot_of(
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    log_x: bool = False,
    log_y: bool = False,
    zero_y: bool = False,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> Plot:
    """Lay axes around values."""
    return Plot(
        axis_of(xs, _LEFT, width - _RIGHT, is_log=log_x, whole=True),
        axis_of(ys, height - _BOTTOM, _TOP + 8, is_log=log_y, with_zero=zero_y),
        width,
        height,
    )


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_label: str = "",
    log_x: bool = False,
    log_y: bool = False,
    zero_y: bool = False,
    x_texts: Sequence[str] | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> Chart:
    """Draw lines. With *log_y* values that are not above 0 are gaps. *x_texts*: for hovering."""
    xs = [value for line in series for value in line.x]
    ys = [value for line in series for value in line.y]
    frame = plot_of(xs, ys, log_x=log_x, log_y=log_y, zero_y=zero_y, width=width, height=height)
    parts = [frame.open(label), frame.axes(x_label, y_label)]
    if not any(map(frame.y.holds, ys)):
        middle = (_LEFT + width - _RIGHT) // 2
        parts.append(f'<text class="tick m" x="{middle}" y="{height // 2}">no values</text>')
    for line in series:
        faint = " faint" if line.is_faint else ""
        path, dots = _path(frame, line)
        parts.append(f'<path class="line t{line.tone % TONES}{faint}" d="{path}"/>')
        parts.append(
            "".join(f'<circle class="dot t{line.tone % TONES}" cx="{x}" cy="{y}" r="2.6"/>'
                    for x, y in dots)
        )  # fmt: skip
    parts.append("</svg>")
    legend = tuple((line.name, line.tone % TONES) for line in series if line.name)
    return Chart("".join(parts), legend, _hover(frame, series, x_texts))


def _path(frame: Plot, line: Series) -> tuple[str, list[tuple[str, str]]]:
    """The path of a line, broken where there is no value; and dots where it is asked, or alone."""
    commands: list[str] = []
    dots: list[tuple[str, str]] = []
    run = 0
    last: tuple[str, str] | None = None
    for x, y in zip(line.x, line.y, strict=True):
        if not (frame.x.holds(x) and frame.y.holds(y)):
            if run == 1 and last is not None:
                dots.append(last)
            run = 0
            continue
        last = f"{frame.x.place(x):.1f}", f"{frame.y.place(y):.1f}"
        commands.append(f"{'L' if run else 'M'}{last[0]} {last[1]}")
        run += 1
        if line.has_dots:
            dots.append(last)
    if run == 1 and last is not None and not line.has_dots:
        dots.append(last)
    return "".join(commands), dots


def _hover(frame: Plot, series: Sequence[Series], x_texts: Sequence[str] | None) -> dict[str, Any]:
    """Positions along the x of the first line, and what all lines with as many points have."""
    if not series or not len(series[0].x):
        return {}
    first = series[0]
    shown = [line for line in series if len(line.x) == len(first.x) and not line.is_faint]
    places = [at for at, x in enumerate(first.x) if frame.x.holds(x)]
    return {
        "x": [round(frame.x.place(first.x[at]), 1) for at in places],
        "at": [x_texts[at] if x_texts else tick_text(first.x[at]) for at in places],
        "rows": [
            {
                "name": printable(line.name, limit=60),
                "tone": line.tone % TONES,
                "y": [figure_text(float(line.y[at])) for at in places],
                "py": [_pixel(frame, float(line.y[at])) for at in places],
            }
            for line in shown
        ],
        "box": [_TOP, frame.height - _BOTTOM],
    }


def _pixel(frame: Plot, value: float) -> float | None:
    return round(frame.y.place(value), 1) if frame.y.holds(value) else None


def column_chart(
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    label: str,
    x_label: str,
    y_label: str = "",
    log_x: bool = False,
    log_y: bool = False,
    tone: int = 0,
) -> Chart:
    """Draw a histogram: *counts* between *edges*, one more than they are."""
    above = [count for count in counts if count > 0]
    ys = [*counts, 0.0] if not log_y else [*above, min(above, default=1.0) / 2]
    frame = plot_of(edges, ys, log_x=log_x, log_y=log_y, zero_y=not log_y)
    base = frame.height - _BOTTOM
    parts = [frame.open(label), frame.axes(x_label, y_label)]
    places, texts, values, tops = [], [], [], []
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if not count > 0:
            continue
        left, right = frame.x.place(low), frame.x.place(high)
        top = frame.y.place(count)
        wide = max(right - left - 0.8, 0.8)
        parts.append(
            f'<rect class="bar t{tone % TONES}" x="{left:.1f}" y="{top:.1f}" '
            f'width="{wide:.1f}" height="{max(base - top, 0.5):.1f}"/>'
        )
        places.append(round((left + right) / 2, 1))
        texts.append(f"{tick_text(low)} to {tick_text(high)}")
        values.append(figure_text(count))
        tops.append(round(top, 1))
    parts.append("</svg>")
    row = {"name": y_label or "count", "tone": tone % TONES, "y": values, "py": tops}
    hover = {"x": places, "at": texts, "rows": [row], "box": [_TOP, base]} if places else {}
    return Chart("".join(parts), (), hover)


def heat_chart(
    histogram: NumberColumn, edges: NumberColumn, epochs: Sequence[int], *, label: str, x_label: str
) -> Chart:
    """Draw histograms [columns, bins] beside each other, the values upwards, darker for more."""
    columns = len(epochs)
    frame = plot_of([0, max(columns, 1)], [float(edges[0]), float(edges[-1])])
    box = (_LEFT, _TOP + 8, frame.width - _RIGHT - _LEFT, frame.height - _BOTTOM - _TOP - 8)
    peak = float(histogram.max()) if histogram.size else 0.0
    image = heat_image(histogram.T[::-1] / peak if peak else histogram.T)
    parts = [frame.open(label), frame.axes(x_label, "value", x_ticks=False)]
    parts.append(
        f'<image x="{box[0]}" y="{box[1]}" width="{box[2]}" height="{box[3]}" '
        f'preserveAspectRatio="none" class="pixels" href="{image}"/>'
    )
    for place in sorted({0, columns // 3, 2 * columns // 3, columns - 1}) if columns else ():
        x = frame.x.place(place + 0.5)
        parts.append(
            f'<text class="tick m" x="{x:.1f}" y="{frame.height - _BOTTOM + 16}">'
            f"{epochs[place]}</text>"
        )
    parts.append("</svg>")
    return Chart("".join(parts), (), _heat_hover(frame, histogram, edges, epochs))


def _heat_hover(
    frame: Plot, histogram: NumberColumn, edges: NumberColumn, epochs: Sequence[int]
) -> dict[str, Any]:
    """Below each column: the bins in which a tenth, half and nine tenths of the values end."""
    middles = (edges[:-1] + edges[1:]) / 2
    sums = np.cumsum(histogram, axis=1)
    places = [at for at in range(len(epochs)) if sums[at, -1] > 0]
    rows = []
    for name, share in (("90 % below", 0.9), ("median", 0.5), ("10 % below", 0.1)):
        found = [float(middles[int(np.searchsorted(sums[at], share))]) for at in places]
        rows.append(
            {
                "name": name,
                "tone": 1,
                "y": [figure_text(value, 3) for value in found],
                "py": [_pixel(frame, value) for value in found],
            }
        )
    if not places:
        return {}
    return {
        "x": [round(frame.x.place(at + 0.5), 1) for at in places],
        "at": [f"epoch {epochs[at]}" for at in places],
        "rows": rows,
        "box": [_TOP, frame.height - _BOTTOM],
    }


def bar_rows(
    rows: Sequence[tuple[str, float, float, str]], *, label: str, width: int = WIDTH
) -> Chart:
    """Draw lines of (name, filled, outlined, text): how much of the outlined is filled."""
    height = len(rows) * 36 + 6
    most = max((max(row[1], row[2]) for row in rows), default=0) or 1
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{safe(label, 400)}">']
    room = width - 4
    for number, (name, filled, outlined, text) in enumerate(rows):
        y = number * 36 + 14
        shown = safe(_shortened(name, int((room - len(text) * 6.2) / 6.4)), 200)
        parts.append(
            f'<g><title>{safe(name)}: {safe(text)}</title><text class="name" x="2" y="{y}">{shown}'
            f'</text><text class="tick e" x="{room}" y="{y}">{safe(text)}</text>'
            f'<rect class="track" x="2" y="{y + 5}" width="{room - 2}" height="9" rx="2"/>'
            f'<rect class="bar pale" x="2" y="{y + 5}" width="{room * outlined / most:.1f}" '
            f'height="9" rx="2"/>'
            f'<rect class="bar t0" x="2" y="{y + 5}" '
            f'width="{max(room * filled / most, 0):.1f}" height="9" rx="2"/></g>'
        )
    parts.append("</svg>")
    return Chart("".join(parts))


def _shortened(name: str, most: int) -> str:
    """A name cut in its middle: both ends say which one it is."""
    if len(name) <= max(most, 8):
        return name
    half = max(most, 8) // 2
    return f"{name[: half - 1]}…{name[-half:]}"


def thinned(
    x: NumberColumn, y: NumberColumn, most: int = POINTS_MOST
) -> tuple[NumberColumn, NumberColumn]:
    """Return about *most* points of a curve: of each stretch the lowest and the highest one.

    What is not finite is left out, unless nothing else is there.
    """
    finite = np.isfinite(y)
    if not finite.any():
        return x[:0], y[:0]
    x, y = x[finite], y[finite]
    if len(x) <= most:
        return x, y
    bounds = np.linspace(0, len(x), most // 2 + 1).astype(int)
    places: set[int] = {0, len(x) - 1}
    for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        places |= {low + int(np.argmin(y[low:high])), low + int(np.argmax(y[low:high]))}
    chosen = np.array(sorted(places))
    return x[chosen], y[chosen]


def is_wide(values: Sequence[float]) -> bool:
    """Whether positive values span so much that a logarithmic axis shows more."""
    found = [value for value in values if math.isfinite(value) and value > 0]
    return bool(found) and max(found) / min(found) > 50
