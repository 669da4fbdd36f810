"""The run's timeline: epochs along the commits, checkpoints, rewinds, compactions, metrics."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from mldb.tools.cli.values import shown_bytes, shown_time
from mldb.tools.report.charts import Chart, Plot, Series, line_chart, plot_of, thinned
from mldb.tools.report.facts import Curve, NumberColumn, RunFacts
from mldb.tools.report.markup import counted, figure_text, folded, remark, safe, table
from mldb.tools.report.parts import Page, Section, figure, grid, nothing, unread

_WIDE, _HIGH = 1160, 240
_POINTS: Final = 1200
_ROWS: Final = 500
_MARKS: Final = 400


def section_run(page: Page, run: RunFacts) -> Section:
    """Draw the run. An empty store gets one line."""
    title = "Timeline"
    if not len(run.lsns):
        return nothing(title, "timeline", "The store is empty: nothing was committed yet.")
    chart = _timeline(run)
    left = int(np.count_nonzero(~run.is_kept))
    said = f"{counted(len(run.lsns), 'commit')} in the order in which they were made"
    if left:
        said += f"; {left:,} of them were left behind by rewinds (faint)"
    body = [
        unread(run.problems),
        figure(page, chart, "Epochs over commits", about=f"{said}.", wide=True),
        _tables(run),
        "<h3>Metrics</h3>",
    ]
    if run.curves:
        body.append(grid([_curve(page, curve) for curve in run.curves]))
        if run.curves_in_all > len(run.curves):
            body.append(remark(f"{len(run.curves)} of {run.curves_in_all:,} metrics are shown."))
    else:
        body.append(
            remark("No metrics: db.log() and the metrics= of checkpoints would be drawn here.")
        )
    page.figures["metrics"] = {
        curve.name: {"x": thinned(curve.x, curve.y)[0], "y": thinned(curve.x, curve.y)[1]}
        for curve in run.curves
    }
    return Section("timeline", title, "".join(body))


def _timeline(run: RunFacts) -> Chart:
    places = np.arange(1, len(run.lsns) + 1)
    chosen = _chosen(len(places))
    epochs = run.epochs.astype(np.float64)
    kept = np.where(run.is_kept, epochs, np.nan)
    left = np.where(run.is_kept, np.nan, epochs)
    x = places[chosen].tolist()
    series = [Series("epoch", x, kept[chosen].tolist(), 0)]
    if not run.is_kept.all():
        series.append(Series("left behind", x, left[chosen].tolist(), 3, is_faint=True))
    texts = [
        f"commit {lsn} at {_time(time)}"
        for lsn, time in zip(run.lsns[chosen].tolist(), run.times[chosen].tolist(), strict=True)
    ]
    label = (
        f"Epochs over {counted(len(places), 'commit')}, up to epoch {run.epoch}; "
        f"{counted(len(run.checkpoints), 'checkpoint')}, {counted(len(run.rewinds), 'rewind')}, "
        f"{counted(len(run.compactions), 'compacted segment')}"
    )
    chart = line_chart(
        series,
        label=label,
        x_label="commits, in order",
        y_label="epoch",
        x_texts=texts,
        width=_WIDE,
        height=_HIGH,
        zero_y=True,
    )
    ys = [0.0, float(epochs.max())]
    frame = plot_of([1, len(places)], ys, zero_y=True, width=_WIDE, height=_HIGH)
    marks, legend = _marks(run, frame)
    return Chart(
        chart.svg.replace("</svg>", f"{marks}</svg>"), (*chart.legend, *legend), chart.hover
    )


def _chosen(count: int) -> NumberColumn:
    if count <= _POINTS:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, _POINTS).astype(int))


def _marks(run: RunFacts, frame: Plot) -> tuple[str, list[tuple[str, int]]]:
    """Dots for checkpoints, arcs for rewinds, bands for what was compacted; and the legend."""
    parts, legend = [], []
    place = {lsn: at + 1 for at, lsn in enumerate(run.lsns.tolist())}
    bottom = frame.y.start
    for first, last, nbytes in run.compactions[:_MARKS]:
        inside = np.flatnonzero((run.lsns >= first) & (run.lsns <= last))
        if len(inside):
            left, right = (frame.x.place(int(at) + 1) for at in (inside[0], inside[-1]))
            parts.append(
                f'<rect class="bar t4" x="{left - 1:.1f}" y="{bottom - 6:.1f}" '
                f'width="{right - left + 2:.1f}" height="5"><title>compacted: commits {first} to '
                f"{last}, {shown_bytes(nbytes)}</title></rect>"
            )
    if parts:
        legend.append(("compacted", 4))
    epoch_of = dict(zip(run.lsns.tolist(), run.epochs.tolist(), strict=True))
    for item in _evenly(run.checkpoints):
        lsn = int(item.lsn)
        if lsn in place:
            x, y = frame.x.place(place[lsn]), frame.y.place(epoch_of[lsn])
            parts.append(
                f'<circle class="dot t1" cx="{x:.1f}" cy="{y:.1f}" r="2.4"><title>checkpoint '
                f"{safe(item.name, 60)}, epoch {item.epoch}</title></circle>"
            )
    if run.checkpoints:
        legend.append(("checkpoint", 1))
    for jump, target in run.rewinds[-_MARKS:]:
        if jump in place:
            parts.append(_rewind(frame, place, epoch_of, jump, target))
    if run.rewinds:
        legend.append(("rewind", 2))
    return "".join(parts), legend


def _rewind(
    frame: Plot, place: dict[int, int], epoch_of: dict[int, int], jump: int, target: int
) -> str:
    x, y = frame.x.place(place[jump]), frame.y.place(epoch_of[jump])
    start = place.get(target, 1)
    to_x, to_y = frame.x.place(start), frame.y.place(epoch_of.get(target, 0))
    bend = min(to_y, y) - 26
    return (
        f'<path class="line t2 thin" d="M{x:.1f} {y:.1f}Q{(x + to_x) / 2:.1f} {bend:.1f} '
        f'{to_x:.1f} {to_y:.1f}"><title>rewind: commit {jump} continues from {target}</title>'
        "</path>"
        f'<circle class="dot t2" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    )


def _evenly(items: list[Any]) -> list[Any]:
    if len(items) <= _MARKS:
        return items
    return [items[int(at)] for at in np.linspace(0, len(items) - 1, _MARKS)]


def _tables(run: RunFacts) -> str:
    found = []
    if run.checkpoints:
        rows = [
            (
                *(item.name, item.epoch, "-" if item.step is None else item.step),
                *(shown_time(item.time), item.tensors, shown_bytes(item.nbytes)),
                ", ".join(f"{name} {_plain(value)}" for name, value in item.metrics.items()),
            )
            for item in run.checkpoints[-_ROWS:]
        ]
        columns = ("name", "epoch", "step", "time", "tensors", "bytes", "metrics")
        found.append(
            folded(
                counted(len(run.checkpoints), "checkpoint"),
                table(columns, rows, caption=_last("Checkpoints", len(run.checkpoints))),
            )
        )
    if run.rewinds:
        rewinds = [(jump, target) for jump, target in run.rewinds[-_ROWS:]]
        made = table(
            ("commit", "continues from"), rewinds, caption=_last("Rewinds", len(run.rewinds))
        )
        found.append(folded(counted(len(run.rewinds), "rewind"), made))
    if run.tags:
        tags = list(run.tags.items())[:_ROWS]
        found.append(
            folded(counted(len(run.tags), "tag"), table(("tag", "commit"), tags, caption="Tags"))
        )
    return f'<div class="folds">{"".join(found)}</div>' if found else ""


def _plain(value: object) -> str:
    return figure_text(float(value)) if isinstance(value, int | float) else str(value)[:40]


def _last(what: str, count: int) -> str:
    return what if count <= _ROWS else f"{what}: the last {_ROWS} of {count:,}"


def _time(nanoseconds: int) -> str:
    return shown_time(datetime.fromtimestamp(nanoseconds / 1e9, UTC))


def _curve(page: Page, curve: Curve) -> str:
    x, y = thinned(curve.x, curve.y)
    if not len(y):
        return (
            f'<figure class="card"><figcaption>{safe(curve.name)}</figcaption>'
            + remark(f"none of its {len(curve.y):,} values is a finite number")
            + "</figure>"
        )
    finite = curve.y[np.isfinite(curve.y)]
    lost = len(curve.y) - len(finite)
    about = (
        f"{counted(len(curve.y), 'point')}, {curve.source}; last {figure_text(float(finite[-1]))}"
    )
    if lost:
        about += f"; {lost:,} are not finite"
    chart = line_chart(
        [Series(curve.name, x.tolist(), y.tolist(), 0)],
        label=(
            f"{curve.name} over {curve.x_label}s: from {figure_text(float(finite[0]))} to "
            f"{figure_text(float(finite[-1]))}, lowest {figure_text(float(finite.min()))}, "
            f"highest {figure_text(float(finite.max()))}"
        ),
        x_label=curve.x_label,
        x_texts=[f"{curve.x_label} {figure_text(value)}" for value in x.tolist()],
    )
    rows = zip(map(figure_text, x.tolist()), map(figure_text, y.tolist()), strict=True)
    figures = table((curve.x_label, curve.name), rows, caption=curve.name, text=0)
    return figure(page, chart, curve.name, table=figures, about=about)
