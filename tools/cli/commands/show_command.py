"""``mldb show``: one tensor, its values as a histogram and over epochs."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, get_args

import click

from mldb.tools.cli.charts import bin_lines, prints_blocks, sparkline
from mldb.tools.cli.command import Call, store_command
from mldb.tools.cli.main import OK, PROBLEM
from mldb.tools.cli.output import Output
from mldb.tools.cli.portrait import CurveFigure, Portrait, Wanted, portrait_of
from mldb.tools.cli.progress import progress_bar
from mldb.tools.cli.values import MOMENT_TYPE, shown_bytes, shown_shape, shown_time

if TYPE_CHECKING:
    from mldb.history.as_of import AsOf

_WIDTH: Final = 80
"""Of charts where nobody looks."""
_LISTED: Final = 10
"""Relationships that are printed; --json has all."""
_LONG: Final = 1000
"""Characters of a value of metadata."""


@store_command("show", "TENSOR")
@click.option(
    "--as-of", "as_of", type=MOMENT_TYPE, default=None, help="The moment; now by default."
)
@click.option("--values", is_flag=True, help="Also the first values, as NumPy prints them.")
@click.option(
    "--curve",
    type=click.Choice(get_args(CurveFigure)),
    default="norm",
    show_default=True,
    help="What is drawn over epochs.",
)
@click.option(
    "--points",
    type=click.IntRange(0),
    default=40,
    show_default=True,
    help="Versions that are read for it; 0 for none.",
)
@click.option("--brief", is_flag=True, help="Only what is known without reading values.")
@click.option("--ascii", "only_ascii", is_flag=True, help="Draw with ASCII characters.")
def command(
    call: Call,
    as_of: AsOf,
    values: bool,
    curve: CurveFigure,
    points: int,
    brief: bool,
    only_ascii: bool,
) -> int:
    """Show a tensor: what it is, its statistics, a histogram, and a curve over epochs.

    NaN count in their share alone. Complex numbers count by their magnitude, a sparse tensor as the
    dense one that it stands for; its histogram is that of the values that are stored. What is
    damaged is named, the rest is shown, and the status is 1.

    \b
    mldb show run encoder.weight
    mldb show run encoder.weight --as-of 3 --values
    """
    out = call.out
    wanted = Wanted(values, brief, points, curve)
    with call.store.at(as_of) as snapshot, progress_bar("reading", quiet=out.as_json) as moved:
        found = portrait_of(snapshot, call.words[0], wanted, moved)
    if out.as_json:
        out.document(_document(found, curve))
    else:
        _print(out, found, curve, blocks=not only_ascii and prints_blocks())
    return PROBLEM if found.problems else OK


def _print(out: Output, found: Portrait, curve: CurveFigure, *, blocks: bool) -> None:
    out.text(found.name)
    out.pairs(_told(found))
    width = min(shutil.get_terminal_size((_WIDTH, 24)).columns, 100) if out.is_terminal else _WIDTH
    if found.bins is not None:
        kind = "magnitudes" if _is_complex(found) else "values"
        stored = "" if found.stored_values is None else f" of {found.stored_values:,} stored"
        out.text()
        out.text(f"histogram of {kind}{stored}")
        for line in bin_lines(found.bins, width, blocks=blocks):
            out.text(line)
    if found.curve:
        figures = [point.value for point in found.curve]
        known = [value for value in figures if math.isfinite(value)]
        ends = f"epochs {found.curve[0].epoch} to {found.curve[-1].epoch}"
        span = f", {min(known):.4g} to {max(known):.4g}" if known else ""
        out.text()
        out.text(f"{curve} over {ends}{span}")
        out.text(sparkline(figures, blocks=blocks))
    if found.first is not None:
        out.text()
        _print_values(out, found, width)
    for problem in found.problems:
        out.problem(problem)


def _told(found: Portrait) -> list[tuple[str, object]]:
    """What is printed in lines of a name and a value."""
    from mldb.tensors.dtypes import dtype_name

    version = found.version
    since = "" if found.versions == 1 else f", the first of epoch {found.first_epoch}"
    stored = shown_bytes(version.stored_bytes)
    pairs: list[tuple[str, object]] = [
        ("dtype", dtype_name(version.dtype)),
        (
            "shape",
            shown_shape(version.shape) + (f" = {found.size:,}" if len(version.shape) > 1 else ""),
        ),
        ("layout", found.layout or "-"),
        ("epoch", version.epoch),
        ("commit", f"lsn:{int(version.lsn)}"),
        ("time", shown_time(version.time)),
        ("bytes", shown_bytes(version.nbytes)),
        ("stored", f"{stored}, {found.encoding}" if found.encoding else stored),
        ("versions", f"{found.versions:,}{since}"),
    ]
    pairs += [(key, str(value)[:_LONG]) for key, value in found.metadata.items()]
    pairs += [
        ("relationship", f"{item.source} -> {item.target} ({item.kind})")
        for item in found.relationships[:_LISTED]
    ]
    if len(found.relationships) > _LISTED:
        more = len(found.relationships) - _LISTED
        pairs.append(("", f"{more:,} more relationships; mldb graph has all"))
    if found.statistics is not None:
        figures = found.statistics._asdict()
        pairs += [(name.replace("_", " "), _number(name, item)) for name, item in figures.items()]
    return pairs


def _number(name: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2%}" if name.endswith("_share") else f"{value:.6g}"


def _is_complex(found: Portrait) -> bool:
    return "c" in found.version.dtype[1:2] or found.version.dtype.endswith("complex32")


def _print_values(out: Output, found: Portrait, width: int) -> None:
    import numpy as np

    assert found.first is not None
    total = found.size if found.stored_values is None else found.stored_values
    with np.printoptions(threshold=found.first.size + 1, linewidth=width):
        text = str(found.first)
    for line in text.splitlines():
        out.text(line)
    if found.first.size < total:
        out.text(f"the first {found.first.size:,} of {total:,}")


def _document(found: Portrait, curve: CurveFigure) -> dict[str, Any]:
    from mldb.tensors.dtypes import dtype_name

    version = found.version
    fields = ("lsn", "epoch", "time", "shape", "nbytes", "stored_bytes")
    document: dict[str, Any] = {
        "name": found.name,
        **{field: getattr(version, field) for field in fields},
        "dtype": dtype_name(version.dtype),
        "layout": found.layout,
        "encoding": found.encoding,
        "versions": found.versions,
        "first_epoch": found.first_epoch,
        "metadata": found.metadata,
        "relationships": [asdict(item) for item in found.relationships],
        "statistics": None if found.statistics is None else _known(found.statistics._asdict()),
        "histogram": None if found.bins is None else asdict(found.bins),
        "curve": {"figure": curve, "points": [asdict(point) for point in found.curve]},
        "problems": found.problems,
    }
    if found.stored_values is not None:
        document["stored_values"] = found.stored_values
    if found.first is not None:
        document["values"] = found.first
    return document


def _known(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in figures.items()}
