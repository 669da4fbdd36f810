"""``mldb replay``: a store written anew from its events."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mldb.tools.cli.command import Call, require_folder, store_command
from mldb.tools.cli.progress import progress_bar
from mldb.tools.cli.values import MOMENT_TYPE, shown_bytes

if TYPE_CHECKING:
    from mldb.history.as_of import AsOf

_SHOWN = 20


@store_command("replay", "TARGET", access="path")
@click.option(
    "--until", type=MOMENT_TYPE, default=None, help="The last commit; the head by default."
)
@click.option("--name", "names", multiple=True, help="Only this prefix or glob of names; again.")
@click.option("--verify", is_flag=True, help="Compare both stores at every commit.")
def command(call: Call, until: AsOf, names: tuple[str, ...], verify: bool) -> int:
    """Write a store anew from its events into TARGET, a new folder.

    Commits keep their LSN, epoch and time. The source may be in use; it is not changed. A replay
    that was interrupted goes on when it is called again with the same words.

    \b
    Example: mldb replay run small --until 40 --name encoder --verify
    """
    require_folder(call.path)
    import mldb

    with progress_bar("replay", unit="LSNs") as advance:
        report = mldb.replay(
            call.path,
            call.words[0],
            until=until,
            names=list(names) or None,
            verify=verify,
            progress=advance,
        )
    compared = report.verified
    if call.out.as_json:
        content = asdict(report)
        del content["commit_lsns"]
        content["ok"] = compared is None or compared.ok
        call.out.document(content)
        return 0 if compared is None or compared.ok else 1
    call.out.pairs(
        {
            "store": report.target,
            "until": f"commit {int(report.until)}, epoch {report.epoch}",
            "commits": f"{report.commits}, {report.left_out} left out"
            if report.left_out
            else report.commits,
            "versions": report.versions,
            "bytes": f"{shown_bytes(report.bytes)} in {report.segments} segments",
        }
    )
    if report.checkpoints_left_out:
        count = len(report.checkpoints_left_out)
        call.out.text(f"{count} checkpoints were left out: not all of their tensors were chosen")
    if report.resumed:
        call.out.text("it went on where an earlier call was interrupted")
    if compared is None:
        return 0
    if compared.ok:
        call.out.text(
            f"verified: {compared.commits} commits and {compared.versions} tensors are the same"
        )
        return 0
    for text in compared.differences[:_SHOWN]:
        call.out.text(f"differs: {text}")
    if len(compared.differences) > _SHOWN:
        call.out.text(f"and {len(compared.differences) - _SHOWN} more")
    return 1
