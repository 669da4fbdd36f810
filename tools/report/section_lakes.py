"""Splat lakes: concentration, mass, rows over time, and what consolidation merged."""

from __future__ import annotations

from typing import Final

import numpy as np

from mldb.tools.report.charts import Series, column_chart, is_wide, line_chart
from mldb.tools.report.facts import LakeFacts, LakesFacts, NumberColumn
from mldb.tools.report.markup import counted, figure_text, remark, safe, table
from mldb.tools.report.parts import Page, Section, figure, grid, nothing, tiles, unread

_BINS: Final = 36
_ROWS: Final = 200


def section_lakes(page: Page, facts: LakesFacts) -> Section:
    """Draw the lakes. Without any there is one line."""
    title = "Lakes"
    if not facts.lakes_in_all:
        return nothing(title, "lakes", "No splat lake exists at this moment.")
    body = [unread(facts.problems), *(_lake(page, lake) for lake in facts.lakes)]
    if facts.lakes_in_all > len(facts.lakes) + len(facts.problems):
        body.append(remark(f"{len(facts.lakes)} of {facts.lakes_in_all:,} lakes are shown."))
    page.figures["lakes"] = {
        lake.name: {"rows": lake.rows, "mass": lake.mass, "merges": len(lake.merges)}
        for lake in facts.lakes
    }
    return Section("lakes", title, "".join(body))


def _lake(page: Page, lake: LakeFacts) -> str:
    merged = sum(merge.sources for merge in lake.merges)
    made = sum(merge.made for merge in lake.merges)
    pairs = [
        ("rows", f"{lake.rows:,}"),
        ("dimension", f"{lake.dim:,} ({lake.geometry})"),
        ("mass", figure_text(lake.mass)),
        ("merged", f"{merged:,} rows into {made:,}" if lake.merges else "nothing yet"),
    ]
    charts = [
        _spread(page, lake, lake.kappa, "Concentration (kappa)", "kappa", log_y=False),
        _spread(page, lake, lake.alpha, "Mass (alpha)", "alpha", log_y=True),
        _growth(page, lake),
    ]
    sizes = [merge.sizes for merge in lake.merges if len(merge.sizes)]
    if sizes:
        charts.append(_merge_sizes(page, lake, np.concatenate(sizes)))
    avalanches = [merge.avalanches for merge in lake.merges if len(merge.avalanches)]
    if avalanches:
        charts.append(_avalanches(page, lake, avalanches))
    said = ""
    if not lake.merges:
        said = remark("No consolidation yet: lake.consolidate() merges near-copies.")
    elif not avalanches:
        said = remark("No sandpile ran that told the sizes of its avalanches.")
    return f"<h3>{safe(lake.name)}</h3>{tiles(pairs)}{grid(charts)}{_runs(lake)}{said}"


def _spread(
    page: Page, lake: LakeFacts, values: NumberColumn, title: str, name: str, *, log_y: bool
) -> str:
    """A histogram; along powers where values span much, and with counts by powers for masses."""
    found = values[np.isfinite(values)]
    if not len(found):
        return figure(page, column_chart([0, 1], [0], label=title, x_label=name), title)
    is_log = bool(found.min() > 0) and is_wide([float(found.min()), float(found.max())])
    low, high = float(found.min()), float(found.max())
    if low == high:
        low, high = low - max(abs(low), 1.0) * 0.5, high + max(abs(high), 1.0) * 0.5
    edges = np.geomspace(low, high, _BINS + 1) if is_log else np.linspace(low, high, _BINS + 1)
    edges[0], edges[-1] = low, high
    counts, _ = np.histogram(found, edges)
    log_y = log_y and is_wide(counts.tolist())
    chart = column_chart(
        edges.tolist(),
        counts.astype(float).tolist(),
        label=f"{title} of the {len(found):,} rows of lake {lake.name}: from {figure_text(low)} to "
        f"{figure_text(high)}, median {figure_text(float(np.median(found)))}",
        x_label=name,
        y_label="rows, log scale" if log_y else "rows",
        log_x=is_log,
        log_y=log_y,
        tone=0 if name == "kappa" else 4,
    )
    quantiles = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
    rows = [
        (f"{100 * share:g} %", figure_text(float(value)))
        for share, value in zip(quantiles, np.quantile(found, quantiles), strict=True)
    ]
    return figure(page, chart, title, table=table(("below", name), rows, caption=title, text=0))


def _growth(page: Page, lake: LakeFacts) -> str:
    x = list(range(1, len(lake.growth) + 1))
    chart = line_chart(
        [Series("rows", x, [float(rows) for _, _, rows in lake.growth], 2, has_dots=len(x) < 40)],
        label=f"Live rows of lake {lake.name} after each of its {len(x)} changes",
        x_label="changes, in order",
        x_texts=[f"epoch {epoch}, commit {lsn}" for lsn, epoch, _ in lake.growth],
        zero_y=True,
    )
    rows = [(lsn, epoch, f"{count:,}") for lsn, epoch, count in lake.growth[-_ROWS:]]
    figures = table(("commit", "epoch", "rows"), rows, caption="Live rows", text=0)
    return figure(page, chart, "Live rows", table=figures)


def power_counts(sizes: NumberColumn) -> tuple[list[float], list[float], list[float]]:
    """Return edges, means per size and counts of bins 1, 2-3, 4-7, ... of sizes from 1 on. Pure."""
    power = np.floor(np.log2(np.maximum(sizes, 1))).astype(int)
    counts = np.bincount(power).astype(float)
    edges = (2.0 ** np.arange(len(counts) + 1)).tolist()
    widths = np.diff(edges)
    return edges, (counts / widths).tolist(), counts.tolist()


def _merge_sizes(page: Page, lake: LakeFacts, sizes: NumberColumn) -> str:
    edges, shares, counts = power_counts(sizes)
    chart = column_chart(
        edges,
        shares,
        label=f"Sizes of {len(sizes):,} merges of lake {lake.name}, on logarithmic axes: up to "
        f"{int(sizes.max()):,} rows in one",
        x_label="rows in a merge",
        y_label="merges per size",
        log_x=True,
        log_y=True,
        tone=1,
    )
    figures = _power_table(edges, counts, "Sizes of merges", "merges")
    return figure(page, chart, "Sizes of merges (log-log)", table=figures)


def _avalanches(page: Page, lake: LakeFacts, told: list[NumberColumn]) -> str:
    """Counts of avalanches by size; the first count is of those without a toppling."""
    longest = max(len(counts) for counts in told)
    sums = np.zeros(longest)
    for counts in told:
        sums[: len(counts)] += counts
    counts_above = sums[1:] if longest > 1 else np.zeros(1)
    edges = 2.0 ** np.arange(len(counts_above) + 1)
    middles = np.sqrt(edges[:-1] * (edges[1:] - 1).clip(min=1))
    density = counts_above / np.diff(edges)
    there = density > 0
    total = float(sums.sum())
    mean_field = density[there][0] * (middles / middles[there][0]) ** -1.5 if there.any() else None
    series = [Series("avalanches per size", middles[there].tolist(), density[there].tolist(), 1,
                     has_dots=True)]  # fmt: skip
    if mean_field is not None:
        line = np.where(mean_field >= density[there].min() / 4, mean_field, np.nan)
        series.append(Series("size^-1.5, mean field", middles.tolist(), line.tolist(), 3))
    chart = line_chart(
        series,
        label=f"Sizes of {total:,.0f} avalanches of lake {lake.name} on logarithmic axes; "
        f"{sums[0]:,.0f} had no toppling",
        x_label="topplings of an avalanche",
        log_x=True,
        log_y=True,
    )
    figures = _power_table(edges.tolist(), counts_above.tolist(), "Avalanches", "avalanches")
    about = f"{total:,.0f} grains; {sums[0]:,.0f} of them set nothing off."
    return figure(page, chart, "Avalanche sizes (log-log)", table=figures, about=about)


def _power_table(edges: list[float], counts: list[float], caption: str, what: str) -> str:
    rows = [
        (f"{low:.0f}" if high - low == 1 else f"{low:.0f} to {high - 1:.0f}", f"{count:,.0f}")
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return table(("size", what), rows, caption=caption, text=0)


def _runs(lake: LakeFacts) -> str:
    if not lake.merges:
        return ""
    rows = [
        (merge.method, merge.lsn, merge.epoch, f"{merge.sources:,}", f"{merge.made:,}")
        for merge in lake.merges[-_ROWS:]
    ]
    columns = ("method", "commit", "epoch", "rows merged", "splats made")
    made = table(columns, rows, caption=f"Consolidations of {lake.name}")
    return (
        f"<details><summary>{counted(len(lake.merges), 'consolidation')}</summary>{made}</details>"
    )
