"""``mldb diff``: what changed between two moments, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mldb.tools.cli.command import Call, store_command
from mldb.tools.cli.main import OK, PROBLEM
from mldb.tools.cli.progress import progress_bar
from mldb.tools.cli.values import moment, shown_shape

if TYPE_CHECKING:
    from mldb.history.diff import TensorDiff


@store_command("diff", "BEFORE", "AFTER")
@click.option("--prefix", default="", help="Only names that start with this.")
@click.option("--no-values", is_flag=True, help="Only which tensors changed; nothing is read.")
@click.option("--all", "same", is_flag=True, help="Also those that are the same.")
@click.option("--exit-code", is_flag=True, help="Status 1 when anything changed.")
def command(call: Call, prefix: str, no_values: bool, same: bool, exit_code: bool) -> int:
    """Compare two moments: which tensors changed, by how much, in which direction.

    "norm" is that of the difference, "relative" is it over the norm before, "cosine" that of the
    angle between the two. Tensors of other shapes, and sparse ones, only count as changed.

    \b
    mldb diff run 3 7
    mldb diff run best head --prefix encoder.
    """
    try:
        before, after = map(moment, call.words)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    db = call.store
    count = db.count(prefix, as_of=after)
    with progress_bar("comparing", unit="tensors", quiet=call.out.as_json) as moved:
        found = []
        for item in db.diff(before, after, prefix=prefix, values=not no_values, same=same):
            found.append(item)
            moved(len(found), max(count, len(found)))
    changed = sum(item.change != "same" for item in found)
    if call.out.as_json:
        call.out.document({"changed": changed, "tensors": [asdict(item) for item in found]})
    else:
        call.out.table(
            ("name", "change", "shape", "norm", "relative", "cosine", "largest"),
            _rows(found),
            right=("norm", "relative", "cosine", "largest"),
            empty="no tensor changed",
        )
    return PROBLEM if exit_code and changed else OK


def _rows(found: list[TensorDiff]) -> Iterator[tuple[str, ...]]:
    for item in found:
        one, two = item.shapes
        shape = shown_shape(two if two is not None else one or ())
        if one is not None and two is not None and one != two:
            shape = f"{shown_shape(one)} -> {shown_shape(two)}"
        numbers = (item.norm, item.relative, item.cosine, item.largest)
        yield item.name, item.change, shape, *map(_number, numbers)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"
