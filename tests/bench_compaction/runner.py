"""The command line: run sections, print figures beside their bounds, write JSON.

A section is a module of this package with a function ``rows(quick) -> list[Row]``; its name stands
in SECTIONS.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tests.bench import sections
from tests.bench_compaction.row import Row

SECTIONS = ("dedupe", "patches", "deltas", "retention", "background", "soc")
_PACKAGE = "tests.bench_compaction"
_LIBRARIES = ("numpy", "xxhash", "backports.zstd")


def bytes_in(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def present() -> list[str]:
    """The sections that this checkout has."""
    return sections.present(_PACKAGE, SECTIONS)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    return sections.parse(_PACKAGE, present(), __doc__, arguments)


def render(rows: Sequence[Row]) -> str:
    """A table: each figure with its value, what it must be, what it should be, and if it is met."""
    lines = [("figure", "value", "must", "aim", "met")]
    met = {None: "", True: "yes", False: "no"}
    for row in rows:
        value = f"{row.value:,.3g}" if row.value < 1000 else f"{row.value:,.0f}"
        lines.append((row.figure, f"{value} {row.unit}", row.must, row.aim, met[row.met]))
    return sections.table(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the sections; return 0 when every measurement could be made, met or not."""
    return sections.run(_PACKAGE, parse(arguments), _LIBRARIES, render)
