"""``mldb backup``: copy a store while it is written to."""

from __future__ import annotations

from mldb.tools.cli.command import Call, store_command


@store_command("backup", "TARGET")
def command(call: Call) -> None:
    """Copy the store as it is now to a new folder, while writers go on.

    Sealed segments are hard-linked on the same file system and copied elsewhere; the copy has a
    store id of its own, so that both can be written to.

    \b
    mldb backup run /mnt/other/run-copy
    """
    target = call.words[0]
    call.store.backup(target)
    if call.out.as_json:
        call.out.document({"target": target, "lsn": call.store.lsn, "epoch": call.store.epoch})
    else:
        call.out.text(f"{target} has everything up to epoch {call.store.epoch}")
