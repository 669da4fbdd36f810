"""The command line: run sections, print cost against size with slopes, write JSON."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from tests.bench import sections
from tests.bench_growth.row import Row

SECTIONS = ("names", "lookups", "active", "lineage", "lakes")
_PACKAGE = "tests.bench_growth"
_LIBRARIES = ("numpy", "msgpack", "sortedcontainers")


def present() -> list[str]:
    """The sections that this checkout has."""
    return sections.present(_PACKAGE, SECTIONS)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    return sections.parse(_PACKAGE, present(), __doc__, arguments)


def slope_of(rows: Sequence[Row]) -> float | None:
    """The exponent of cost against size, least squares on logarithms; None for a single size."""
    points = [
        (math.log(row.size), math.log(row.value)) for row in rows if min(row.size, row.value) > 0
    ]
    if len({size for size, _ in points}) < 2:
        return None
    middle = sum(size for size, _ in points) / len(points)
    mean = sum(value for _, value in points) / len(points)
    spread = sum((size - middle) ** 2 for size, _ in points)
    return sum((size - middle) * (value - mean) for size, value in points) / spread


def by_figure(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each figure by size, figures in the order met."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.size):
        found.setdefault(row.figure, []).append(row)
    return {row.figure: found[row.figure] for row in rows}


def verdict(rows: Sequence[Row]) -> str:
    """Whether a figure keeps its bound; "" where it has none, or none at these sizes."""
    judged = [row.met for row in rows if row.met is not None]
    return "" if not judged else "yes" if all(judged) else "no"


def render(rows: Sequence[Row]) -> str:
    """A table: each figure with its value at every size, the slope, the bound, and if it is met."""
    lines = [("figure", "cost at size", "slope", "must", "met")]
    for figure, own in by_figure(rows).items():
        values = "  ".join(f"{row.value:.3g} at {row.size:,}" for row in own)
        slope = slope_of(own)
        must = next((row.must for row in own if row.must), "")
        shown = "-" if slope is None else f"{slope:+.2f}"
        lines.append((f"{figure} [{own[0].unit}]", values, shown, must, verdict(own)))
    return sections.table(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the sections; return 0 when every measurement could be made, met or not."""
    return sections.run(_PACKAGE, parse(arguments), _LIBRARIES, render)
