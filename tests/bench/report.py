"""Tables on the screen and the same figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.bench.peer_mldb import MLDB
from tests.bench.targets import TARGETS, Bound, Target
from tests.bench.timing import Samples, median


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Samples of one measurement; ``limit`` names the line that all others are divided by.

    ``absent`` are lines without figures, and why.
    """

    workload: str
    title: str
    unit: str
    samples: Samples
    limit: str = ""
    higher_is_better: bool = True
    notes: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def speed(self, name: str, reference: str) -> float:
        """Return how many times as good *name* is as *reference*; medians."""
        own, other = median(self.samples[name]), median(self.samples[reference])
        return own / other if self.higher_is_better else other / own

    def best_of(self, names: list[str]) -> str:
        """Return the line with the best median among those of *names* that were measured, or ""."""
        measured = [name for name in names if name in self.samples]
        sign = 1 if self.higher_is_better else -1
        return max(measured, key=lambda name: sign * median(self.samples[name]), default="")

    def against_best(self, limits: list[str]) -> Table:
        """Return this table with the best of *limits* as its limit."""
        best = self.best_of(limits)
        return replace(self, limit=best, notes={**self.notes, best: "the limit of this table"})


@dataclass(slots=True)
class Outcome:
    """What one workload brought: tables, and the measured values that targets refer to."""

    tables: list[Table] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)

    def compare(self, key: str, table: Table, name: str, reference: str) -> None:
        """Record ``median(name) / median(reference)`` under *key* if both were measured."""
        if name in table.samples and reference in table.samples:
            base = median(table.samples[reference])
            self.measures[key] = median(table.samples[name]) / base

    def keep(self, key: str, table: Table, name: str) -> None:
        """Record the median of *name* under *key* if it was measured."""
        if name in table.samples:
            self.measures[key] = median(table.samples[name])

    def add(self, other: Outcome) -> None:
        """Append the tables and measures of *other*."""
        self.tables.extend(other.tables)
        self.measures.update(other.measures)


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.3g}"


def _grid(header: list[str], lines: list[list[str]], text: tuple[int, ...]) -> str:
    """Lay out cells in columns; those of *text* are flush left, the others flush right."""
    widths = [max(len(line[place]) for line in [header, *lines]) for place in range(len(header))]
    rows = [header, ["-" * width for width in widths], *lines]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place in text else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def render_table(table: Table) -> str:
    """Return one table: medians, extremes, share of the limit, and mldb against each line."""
    header = [f"{table.workload} {table.title}", table.unit, "best", "worst", "x limit"]
    header += ["mldb/this", "how"]
    lines = []
    for name, values in table.samples.items():
        ends = sorted(values, reverse=table.higher_is_better)
        share = f"{table.speed(name, table.limit):.2f}" if table.limit in table.samples else ""
        versus = f"{table.speed(MLDB, name):.2f}" if MLDB in table.samples else ""
        figures = [_number(median(values)), _number(ends[0]), _number(ends[-1])]
        lines.append([name, *figures, share, versus, table.notes.get(name, "")])
    lines += [[name, *[""] * 5, reason] for name, reason in table.absent.items()]
    return _grid(header, lines, (0, 6))


def _verdict(bounds: tuple[Bound, ...], measures: dict[str, float]) -> str:
    if not bounds:
        return "-"
    if any(bound.measure not in measures for bound in bounds):
        return "?"
    return "yes" if all(bound.met(measures[bound.measure]) for bound in bounds) else "NO"


def _measured(bounds: tuple[Bound, ...], measures: dict[str, float]) -> str:
    units = {bound.measure: bound.unit for bound in bounds if bound.measure in measures}
    return "; ".join(f"{_number(measures[key])} {unit}" for key, unit in units.items())


def render_targets(
    measures: dict[str, float], workloads: list[str], targets: Sequence[Target] = TARGETS
) -> str:
    """Return the final table over the targets of *workloads*; "met" names must, then aim."""
    lines = []
    for target in targets:
        if target.workload in workloads:
            met = f"{_verdict(target.must, measures)} / {_verdict(target.aim, measures)}"
            must = "; ".join(map(str, target.must))
            aim = "; ".join(map(str, target.aim))
            measured = _measured(target.must + target.aim, measures) or "not measured"
            lines.append([f"{target.workload} {target.figure}", must, aim, measured, met])
    header = ["figure", "must", "aim", "measured", "met? must / aim"]
    return _grid(header, lines, (0, 1, 2, 3, 4))


def write_json(
    path: Path, machine: dict[str, Any], outcome: Outcome, targets: Sequence[Target] = TARGETS
) -> None:
    """Write every sample, every measured value and the verdicts to *path*."""
    verdicts = [
        {
            "workload": target.workload,
            "figure": target.figure,
            "must": _verdict(target.must, outcome.measures),
            "aim": _verdict(target.aim, outcome.measures),
        }
        for target in targets
    ]
    document = {
        "machine": machine,
        "tables": [asdict(table) for table in outcome.tables],
        "measures": outcome.measures,
        "targets": verdicts,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
