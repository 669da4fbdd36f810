"""``mldb doctor``: what is wrong with a store, who uses it, and who keeps which bytes."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from mldb.tools.cli.command import Call, store_command
from mldb.tools.cli.main import OK, PROBLEM
from mldb.tools.cli.values import shown_bytes

if TYPE_CHECKING:
    from mldb.tools.doctor.examine import Examination

_KEEPERS_SHOWN: Final = 20


@store_command("doctor", access="path")
@click.option(
    "--all", "every", is_flag=True, help="Also what is well, and who keeps nothing alone."
)
def command(call: Call, every: bool) -> int:
    """Look for problems: locks, processes, registrations, damage, a full disk, failed work.

    Changes nothing, and works on a store that does not open. A note costs nothing or mends itself;
    with a problem the status is 1. Below stands who keeps which bytes: what would come back about
    if that tag, pin, process, checkpoint or rule were gone. `mldb verify` reads every byte.

    \b
    mldb doctor run
    mldb doctor run --json        everything that was seen
    """
    from mldb.tools.doctor.examine import examine

    if not os.path.isdir(call.path):
        raise click.UsageError(f"there is no store at {call.path!r}. Name its folder.")
    found = examine(call.path)
    status = PROBLEM if found.has_problem else OK
    if call.out.as_json:
        call.out.document(_document(call, found))
        return status
    shown = [item for item in found.findings if every or item.level != "ok"]
    if shown:
        call.out.table(
            ("level", "about", "what", "next"),
            ((item.level, item.subject, item.text, _next(call, item.next)) for item in shown),
        )
    keepers = [item for item in found.keepers if every or item.bytes != 0]
    if keepers:
        call.out.text()
        call.out.table(
            ("keeps", "which", "commits", "alone", "bytes alone"),
            (
                (*(item.kind, item.name, item.commits, item.alone), _bytes(item.bytes))
                for item in keepers[:_KEEPERS_SHOWN]
            ),
            right=("commits", "alone", "bytes alone"),
        )
    if len(keepers) > _KEEPERS_SHOWN:
        call.out.text(f"{len(keepers) - _KEEPERS_SHOWN:,} more; --json lists them all")
    if not found.has_problem:
        call.out.text("no problem was found; --all shows what was looked at")
    return status


def _next(call: Call, text: str) -> str:
    """What to do next, of this store."""
    return text.replace("STORE", shlex.quote(call.path))


def _bytes(count: int | None) -> str:
    return "not measured" if count is None else shown_bytes(count)


def _document(call: Call, found: Examination) -> dict[str, Any]:
    folder = found.folder
    return {
        "ok": not found.has_problem,
        "findings": [asdict(item) | {"next": _next(call, item.next)} for item in found.findings],
        "locks": [asdict(item) for item in found.locks],
        "processes": [asdict(item) for item in found.processes],
        "keepers": [asdict(item) for item in found.keepers],
        "returnable": found.returnable,
        "folder": {
            "path": folder.root,
            "files": {name or ".": count for name, count in folder.files.items()},
            "bytes": {name or ".": count for name, count in folder.bytes.items()},
            "manifests": folder.manifests,
            "announced": folder.announced,
            "free_bytes": folder.free_bytes,
            "file_system": folder.kind,
            "local": folder.is_local,
            "writable": folder.is_writable,
        },
        "stats": found.stats,
    }
