"""``mldb ls``: the tensors of a store at a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    """List tensors with type, shape, epoch and size, in the order of their names."""
    db = call.store
    with db.at(as_of) as snapshot:
        names = snapshot.names(prefix)
        found = [_row(snapshot.tensor(name)) for name in names[:limit]]
    if call.out.as_json:
        call.out.document({"tensors": found, "count": len(names)})
        return
    call.out.table(
        ("name", "dtype", "shape", "epoch", "bytes"),
        (
            (row["name"], row["dtype"], shown_shape(row["shape"]), row["epoch"], row["nbytes"])
            if not call.out.is_terminal
            else (
                *(row["name"], row["dtype"], shown_shape(row["shape"]), row["epoch"]),
                shown_bytes(row["nbytes"]),
            )
            for row in found
        ),
        right=("epoch", "bytes"),
        empty=f"no tensor{' of this prefix' if prefix else ''} at this moment",
    )
    if limit is not None and len(names) > limit:
        call.out.text(f"{len(names) - limit} more; --limit shows them")


def _row(handle: Any) -> dict[str, Any]:
    return {
        "name": handle.name,
        "dtype": str(handle.dtype),
        "shape": tuple(handle.shape),
        "epoch": handle.epoch,
        "lsn": int(handle.lsn),
        "nbytes": handle.nbytes,
    }
