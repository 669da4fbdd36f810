"""``mldb repair``: what is readable of a damaged store, in a new one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mldb.tools.cli.command import Call, require_folder, store_command
from mldb.tools.cli.progress import progress_bar
from mldb.tools.cli.values import shown_bytes

if TYPE_CHECKING:
    from mldb.tools.repair.report import Lost

_SHOWN = 50


@store_command("repair", "TARGET", access="path")
@click.option("--all", "is_all", is_flag=True, help="List all that is lost, however much it is.")
def command(call: Call, is_all: bool) -> int:
    """Salvage what is readable into TARGET, a new folder, and name what is lost.

    The damaged store is only read, and left as it is. What is lost by name does not exist in the
    new store from its commit on, until it was stored again. The status is 1 when anything is lost,
    or when that cannot be told.

    \b
    Example: mldb repair broken-run salvaged-run
    """
    require_folder(call.path)
    import mldb

    with progress_bar("repair", unit="steps") as advance:
        report = mldb.repair(call.path, call.words[0], progress=advance)
    status = 0 if report.ok else 1
    if call.out.as_json:
        content = asdict(report)
        content["damage"] = [item._asdict() for item in report.damage]
        call.out.document({**content, "ok": report.ok})
        return status
    call.out.pairs(
        {
            "store": report.target,
            "commits": report.commits,
            "versions": report.versions,
            "bytes": f"{shown_bytes(report.bytes)} from {report.files} files",
            "damaged places": len(report.damage),
            "lost": len(report.lost),
        }
    )
    limit = None if is_all else _SHOWN
    if report.lost:
        call.out.text()
        call.out.table(
            ("lost", "name", "epoch", "commit", "file", "offset", "why"),
            [_row(lost) for lost in report.lost[:limit]],
            right=("epoch", "commit", "offset"),
        )
        if limit is not None and len(report.lost) > limit:
            call.out.text(f"and {len(report.lost) - limit} more; --all lists them")
    if report.reattached:
        count = len(report.reattached)
        call.out.text(f"{count} commits continue an older one: their parent is lost")
    for name in report.unused:
        call.out.text(f"not used: {name}")
    for note in report.notes:
        call.out.text(f"note: {note}")
    return status


def _row(lost: Lost) -> tuple[object, ...]:
    commits = "" if lost.lsn is None else str(lost.lsn)
    if lost.last_lsn is not None and lost.last_lsn != lost.lsn:
        commits = f"{commits}..{lost.last_lsn}"
    epoch = "" if lost.epoch is None else lost.epoch
    return lost.what, lost.name, epoch, commits, lost.file, lost.offset, lost.why
