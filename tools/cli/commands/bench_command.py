"""``mldb bench``: short measurements of this machine."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mldb.tools.cli.output import Output
from mldb.tools.cli.progress import progress_bar
from mldb.tools.cli.values import SIZE_TYPE, shown_bytes

if TYPE_CHECKING:
    from mldb.tools.measure.rounds import Measurement

_SECTIONS = 4


@click.command("bench")
@click.option("--path", help="The folder to measure in; that for temporary files by default.")
@click.option("--state", "state_bytes", type=SIZE_TYPE, default=None, help="64M by default.")
@click.option("--budget", type=click.FloatRange(0.0, 60.0), default=3.0, hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(path: str | None, state_bytes: int | None, budget: float, as_json: bool) -> None:
    """Measure how fast mldb is on this machine, in some 15 seconds.

    A state is saved and read, small tensors are read at past epochs, and small commits are made;
    each beside what the machine does at best in the same seconds: a copy in memory, a plain file
    written and synced. Every figure is the median of some rounds, with the lowest and the highest.
    What is written goes into a folder of its own, and away again.

    \b
    mldb bench --path /mnt/data      the disk that a run will write to
    """
    from mldb.tools.measure.sections import STATE_BYTES, BenchSizes, Workbench

    out = Output(as_json=as_json)
    parent = os.path.abspath(path) if path is not None else tempfile.gettempdir()
    if not os.path.isdir(parent):
        raise click.UsageError(f"there is no folder {parent!r} to measure in")
    sizes = BenchSizes(state_bytes or STATE_BYTES, budget)
    found: list[Measurement] = []
    with (
        tempfile.TemporaryDirectory(prefix="mldb-bench-", dir=parent) as folder,
        progress_bar("measuring", unit="sections", quiet=as_json) as moved,
    ):
        bench = Workbench(folder, sizes)
        try:
            for number, section in enumerate(bench.sections(), 1):
                found += section
                moved(number, _SECTIONS)
        finally:
            bench.close()
    if as_json:
        out.document(
            {
                "path": parent,
                "file_system": bench.kind,
                "state_bytes": bench.bytes,
                "figures": [asdict(item) | {"spread": item.spread} for item in found],
            }
        )
        return
    out.text(f"in {parent} ({bench.kind or 'file system not known'}), a state of "
             f"{shown_bytes(bench.bytes)}")  # fmt: skip
    out.table(
        ("what", "median", "unit", "lowest", "highest", "rounds", "against"),
        (
            (
                *(item.name, f"{item.median:,.1f}", item.unit),
                *(f"{item.low:,.1f}", f"{item.high:,.1f}", item.rounds),
                "" if item.ratio is None else f"{item.ratio:.2f} x {item.against}",
            )
            for item in found
        ),
        right=("median", "lowest", "highest", "rounds"),
    )
