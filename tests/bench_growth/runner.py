"""The command line: run sections, print cost against size with slopes, write JSON."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.bench.runner import MEMORY_FILESYSTEMS, default_folder, machine
from tests.bench_growth.row import Row

SECTIONS = ("names", "lookups", "active", "lineage", "lakes")
_PACKAGES = ("numpy", "msgpack", "sortedcontainers")


def present() -> list[str]:
    """The sections that this checkout has."""
    return [name for name in SECTIONS if importlib.util.find_spec(f"tests.bench_growth.{name}")]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench_growth", description=__doc__)
    parser.add_argument("--only", default="", help=f"comma list of {', '.join(present())}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes or less")
    parser.add_argument("--json", type=Path, help="write every row here")
    options = parser.parse_args(arguments)
    options.only = [name.lower() for name in options.only.split(",") if name] or present()
    unknown = set(options.only) - set(present())
    if unknown:
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}")
    return options


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
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the sections; return 0 when every measurement could be made, met or not."""
    options = parse(arguments)
    about = machine(default_folder(), "quick" if options.quick else "full", 1, _PACKAGES)
    print("; ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    if about["filesystem"] in MEMORY_FILESYSTEMS:
        print(f"warning: {about['filesystem']} makes fsync free")
    rows: dict[str, list[Row]] = {}
    for name in options.only:
        section: Callable[[bool], list[Row]]
        section = importlib.import_module(f"tests.bench_growth.{name}").rows
        rows[name] = section(options.quick)
        print(f"\n{name}\n{render(rows[name])}", flush=True)
    if options.json is not None:
        found = {name: [asdict(row) for row in section_rows] for name, section_rows in rows.items()}
        options.json.write_text(json.dumps({"machine": about, "sections": found}, indent=1))
        print(f"\nrows written to {options.json}", file=sys.stderr)
    return 0
