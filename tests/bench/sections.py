"""A benchmark in sections: run some of them, print a table of each, write all rows as JSON.

A section is a module of the benchmark's package with a function ``rows(quick)``, which returns
dataclasses; what they are and how they are shown is the package's own.
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
from typing import Any

from tests.bench.pure import add_pure, check_pure
from tests.bench.runner import MEMORY_FILESYSTEMS, default_folder, machine


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """A new folder on a disk, removed at the end; the store belongs in a folder inside it."""
    root = Path(tempfile.mkdtemp(prefix="mldb-bench-", dir=default_folder()))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def present(package: str, names: Sequence[str]) -> list[str]:
    """Those of the sections that this checkout has."""
    return [name for name in names if importlib.util.find_spec(f"{package}.{name}")]


def parse(
    package: str, sections: Sequence[str], about: str | None, arguments: list[str] | None
) -> argparse.Namespace:
    """Return the options of the command line; ``only`` are the sections to run."""
    parser = argparse.ArgumentParser(prog=f"python -m {package}", description=about)
    parser.add_argument("--only", default="", help=f"comma list of {', '.join(sections)}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes or less")
    parser.add_argument("--json", type=Path, help="write every row here")
    add_pure(parser)
    options = parser.parse_args(arguments)
    check_pure(parser, options)
    options.only = [name.lower() for name in options.only.split(",") if name] or list(sections)
    unknown = set(options.only) - set(sections)
    if unknown:
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}")
    return options


def table(lines: Sequence[Sequence[str]]) -> str:
    """The text of lines of cells, each column as wide as it has to be."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def run(
    package: str,
    options: argparse.Namespace,
    libraries: Sequence[str],
    render: Callable[[list[Any]], str],
) -> int:
    """Run the sections; return 0 when every measurement could be made, met or not.

    *libraries* are those on which the figures depend, *render* makes the table of one section.
    """
    about = machine(default_folder(), "quick" if options.quick else "full", 1, libraries)
    print("; ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    if about["filesystem"] in MEMORY_FILESYSTEMS:
        print(f"warning: {about['filesystem']} makes fsync free")
    rows: dict[str, list[Any]] = {}
    for name in options.only:
        section: Callable[[bool], list[Any]] = importlib.import_module(f"{package}.{name}").rows
        rows[name] = section(options.quick)
        print(f"\n{name}\n{render(rows[name])}", flush=True)
    if options.json is not None:
        found = {name: [asdict(row) for row in section_rows] for name, section_rows in rows.items()}
        options.json.write_text(json.dumps({"machine": about, "sections": found}, indent=1))
        print(f"\nrows written to {options.json}", file=sys.stderr)
    return 0
