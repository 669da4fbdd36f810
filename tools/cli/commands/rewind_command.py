"""``mldb rewind``: continue a run from an earlier moment."""

from __future__ import annotations

import click

from mldb.tools.cli.command import Call, store_command
from mldb.tools.cli.values import moment


@store_command("rewind", "AS_OF", access="rw")
def command(call: Call) -> None:
    """Make the state of an earlier moment the head; later commits build on it.

    What is left behind stays readable by its LSN (`lsn:340`), and retention may let it go. Tags,
    pins and retention are not rewound. To undo it, rewind to the LSN that is printed as "left".

    \b
    mldb rewind run 12            to the last commit of epoch 12
    mldb rewind run best          to a tag
    """
    db = call.store
    try:
        target = moment(call.words[0])
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if target is None:
        raise click.UsageError("the head is where the store is; name an earlier moment")
    left, epoch_left = db.lsn, db.epoch
    lsn = db.rewind(target)
    if call.out.as_json:
        call.out.document({"lsn": lsn, "epoch": db.epoch, "left": left, "epoch_left": epoch_left})
        return
    call.out.text(
        f"the head is commit {int(lsn)} at epoch {db.epoch}; left lsn:{int(left)} "
        f"(epoch {epoch_left}), which stays readable"
    )
