"""The command line: run sections, print figures beside their bounds, write JSON.

A section is a module of this package with a function ``rows(quick) -> list[Row]``; its name stands
in SECTIONS.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tests.bench.runner import MEMORY_FILESYSTEMS, default_folder, machine
from tests.bench_compaction.row import Row

SECTIONS = ("dedupe", "patches", "deltas", "retention", "background", "consolidation")
_PACKAGES = ("numpy", "xxhash", "backports.zstd")


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """A new folder on a disk, removed at the end; the store belongs in a folder inside it."""
    root = Path(tempfile.mkdtemp(prefix="mldb-bench-compaction-", dir=default_folder()))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def bytes_in(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def present() -> list[str]:
    """The sections that this checkout has."""
    return [name for name in SECTIONS if importlib.util.find_spec(f"tests.bench_compaction.{name}")]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench_compaction", description=__doc__)
    parser.add_argument("--only", default="", help=f"comma list of {', '.join(present())}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes or less")
    parser.add_argument("--json", type=Path, help="write every row here")
    options = parser.parse_args(arguments)
    options.only = [name.lower() for name in options.only.split(",") if name] or present()
    unknown = set(options.only) - set(present())
    if unknown:
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}")
    return options


def render(rows: Sequence[Row]) -> str:
    """A table: each figure with its value, what it must be, what it should be, and if it is met."""
    lines = [("figure", "value", "must", "aim", "met")]
    met = {None: "", True: "yes", False: "no"}
    for row in rows:
        value = f"{row.value:,.3g}" if row.value < 1000 else f"{row.value:,.0f}"
        lines.append((row.figure, f"{value} {row.unit}", row.must, row.aim, met[row.met]))
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
        section = importlib.import_module(f"tests.bench_compaction.{name}").rows
        rows[name] = section(options.quick)
        print(f"\n{name}\n{render(rows[name])}", flush=True)
    if options.json is not None:
        found = {name: [asdict(row) for row in section_rows] for name, section_rows in rows.items()}
        options.json.write_text(json.dumps({"machine": about, "sections": found}, indent=1))
        print(f"\nrows written to {options.json}", file=sys.stderr)
    return 0
