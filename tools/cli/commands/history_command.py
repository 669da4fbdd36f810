"""``mldb history``: every version of one tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mldb.tools.cli.command import Call, store_command
from mldb.tools.cli.values import MOMENT_TYPE, shown_bytes, shown_shape, shown_time

if TYPE_CHECKING:
    from mldb.history.as_of import AsOf


@store_command("history", "TENSOR")
@click.option("--as-of", "as_of", type=MOMENT_TYPE, default=None, help="Up to this moment; now.")
@click.option("-n", "--limit", type=click.IntRange(1), help="Only the newest so many.")
def command(call: Call, as_of: AsOf, limit: int | None) -> None:
    """List the versions of a tensor along the lineage, oldest first.

    Each stays readable: `mldb show run TENSOR --as-of lsn:17`, or `db.query_tensor(name,
    as_of=mldb.Lsn(17))`.
    """
    from mldb.tensors.dtypes import dtype_name

    name = call.words[0]
    db = call.store
    versions = db.history(name, as_of=as_of)
    if not versions:
        db.tensor(name, as_of=as_of)  # says that there is none, and which name is near
    shown = versions[-limit:] if limit is not None else versions
    if call.out.as_json:
        fields = ("lsn", "epoch", "time", "dtype", "shape", "nbytes")
        found = [
            {field: getattr(version, field) for field in fields}
            | {"dtype": dtype_name(version.dtype)}
            for version in shown
        ]
        call.out.document({"name": name, "count": len(versions), "versions": found})
        return
    call.out.table(
        ("lsn", "epoch", "time", "dtype", "shape", "bytes"),
        (
            (
                *(
                    int(version.lsn),
                    version.epoch,
                    shown_time(version.time),
                    dtype_name(version.dtype),
                ),
                shown_shape(version.shape),
                shown_bytes(version.nbytes) if call.out.is_terminal else version.nbytes,
            )
            for version in shown
        ),
        right=("lsn", "epoch", "bytes"),
        empty=f"{name} was deleted, and no version of it is left",
    )
