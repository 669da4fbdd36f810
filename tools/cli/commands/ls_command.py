"""``mldb ls``: the tensors of a store at a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mldb.tools.cli.command import Call, store_command
from mldb.tools.cli.values import MOMENT_TYPE, shown_bytes, shown_shape

if TYPE_CHECKING:
    from mldb.history.as_of import AsOf


@store_command("ls")
@click.option(
    "--as-of", "as_of", type=MOMENT_TYPE, default=None, help="The moment; now by default."
)
@click.option("--prefix", default="", help="Only names that start with this.")
@click.option("-n", "--limit", type=click.IntRange(0), default=None, help="So many at most.")
def command(call: Call, as_of: AsOf, prefix: str, limit: int | None) -> None:
    """List tensors with type, shape, epoch and size, in the order of their names.

    \b
    mldb ls run
    mldb ls run --as-of 3 --prefix encoder.
    """
    from mldb.tensors.dtypes import dtype_name

    with call.store.at(as_of) as snapshot:
        shown = snapshot.listing(prefix, limit=limit)
        count = len(shown) if limit is None else snapshot.count(prefix)
    if call.out.as_json:
        fields = ("shape", "epoch", "lsn", "nbytes")
        rows = [
            {
                "name": name,
                "dtype": dtype_name(version.dtype),
                **{field: getattr(version, field) for field in fields},
            }
            for name, version in shown.items()
        ]
        call.out.document({"tensors": rows, "count": count})
        return
    size = shown_bytes if call.out.is_terminal else str
    call.out.table(
        ("name", "dtype", "shape", "epoch", "bytes"),
        (
            (name, dtype_name(item.dtype), shown_shape(item.shape), item.epoch, size(item.nbytes))
            for name, item in shown.items()
        ),
        right=("epoch", "bytes"),
        empty=f"no tensor{' of this prefix' if prefix else ''} at this moment",
    )
    if count > len(shown):
        call.out.text(f"{count - len(shown):,} more; --limit shows them")
