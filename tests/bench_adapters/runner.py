"""The command line: run sections, print figures beside their bounds, write JSON.

A section is a module of this package with a function ``rows(quick) -> list[Row]``; its name stands
in SECTIONS. Rows and their table are those of ``tests.bench_compaction``. One whose framework is
not installed has no rows.
"""

from __future__ import annotations

import argparse

from tests.bench import sections
from tests.bench_compaction.runner import render

SECTIONS = ("dcp", "files", "lightning_epoch")
_PACKAGE = "tests.bench_adapters"
_LIBRARIES = ("numpy", "xxhash", "msgpack")


def present() -> list[str]:
    """The sections that this checkout has."""
    return sections.present(_PACKAGE, SECTIONS)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    return sections.parse(_PACKAGE, present(), __doc__, arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the sections; return 0 when every measurement could be made, met or not."""
    return sections.run(_PACKAGE, parse(arguments), _LIBRARIES, render)
