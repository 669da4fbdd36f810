"""``mldb tag``: names for commits, and commits that stay whatever retention says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mldb.tools.cli.command import Call, opened, store_command
from mldb.tools.cli.values import MOMENT_TYPE, shown_time

if TYPE_CHECKING:
    from mldb.database import MLDatabase
    from mldb.history.as_of import AsOf


@store_command("tag", access="path")
@click.option("--set", "name", help="Give this name to a commit; a name that is there moves.")
@click.option("--delete", "gone", help="Take this name away.")
@click.option("--pin", is_flag=True, help="Keep the commit readable whatever retention says.")
@click.option("--unpin", is_flag=True, help="Leave the commit to retention again.")
@click.option("--as-of", "as_of", type=MOMENT_TYPE, default=None, help="The commit; the head.")
def command(
    call: Call, name: str | None, gone: str | None, pin: bool, unpin: bool, as_of: AsOf
) -> None:
    """List tags and pins; set or delete one.

    \b
    mldb tag run                          list them
    mldb tag run --set best --as-of 12    name the last commit of epoch 12
    mldb tag run --delete best
    mldb tag run --pin --as-of lsn:340
    """
    wishes = [name is not None, gone is not None, pin, unpin]
    if sum(wishes) > 1:
        raise click.UsageError("one of --set, --delete, --pin and --unpin at a time")
    if as_of is not None and (gone is not None or not any(wishes)):
        raise click.UsageError("--as-of goes with --set, --pin and --unpin")
    with opened(call.path, mode="rw" if any(wishes) else "r") as db:
        if name is not None:
            db.tag(name, as_of)
        elif gone is not None:
            db.untag(gone)
        elif pin:
            db.pin(as_of)
        elif unpin:
            db.unpin(as_of)
        _list(call, db)


def _list(call: Call, db: MLDatabase) -> None:
    named = [("tag", name, lsn) for name, lsn in sorted(db.tags().items())]
    named += [("pin", "", lsn) for lsn in db.pins()]
    rows = []
    for kind, name, lsn in named:
        commit = db.at(lsn=lsn)
        with commit:
            rows.append((kind, name, int(lsn), commit.epoch, commit.time))
    if call.out.as_json:
        fields = ("kind", "name", "lsn", "epoch", "time")
        call.out.document({"tags": [dict(zip(fields, row, strict=True)) for row in rows]})
        return
    call.out.table(
        ("kind", "name", "lsn", "epoch", "time"),
        ((*row[:4], shown_time(row[4])) for row in rows),
        right=("lsn", "epoch"),
        empty="no tag and no pin",
    )
