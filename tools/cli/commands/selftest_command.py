"""``mldb selftest``: check that this installation does what it says."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from dataclasses import asdict

import click

from mldb.tools.cli.main import OK, PROBLEM
from mldb.tools.cli.output import Output
from mldb.tools.cli.progress import progress_bar


@click.command("selftest")
@click.option("--path", help="The folder to try it in; that for temporary files by default.")
@click.option("--gpu", is_flag=True, help="Also the Vulkan device, which takes a minute or two.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(path: str | None, gpu: bool, as_json: bool) -> int:
    """Check in some ten seconds that mldb keeps its promises on this machine.

    Processes are killed while they write, past epochs are read, a bit is turned on the disk, a lake
    is passed over, a training goes on from its checkpoint. The status is 1 when a promise does not
    hold. Packages that are not there are named with what needs them.

    \b
    mldb selftest --path /mnt/data      on the disk that a run will write to
    """
    from mldb.tools.selftest import checks
    from mldb.tools.selftest.run_checks import optional_parts, run_checks

    out = Output(as_json=as_json)
    parent = os.path.abspath(path) if path is not None else tempfile.gettempdir()
    if not os.path.isdir(parent):
        raise click.UsageError(f"there is no folder {parent!r} to try it in")
    chosen = (*checks.CHECKS, checks.gpu) if gpu else checks.CHECKS
    with (
        tempfile.TemporaryDirectory(prefix="mldb-selftest-", dir=parent) as folder,
        progress_bar("checking", unit="promises", quiet=as_json) as moved,
    ):
        found = []
        for outcome in run_checks(chosen, folder, lambda _name: None):
            found.append(outcome)
            moved(len(found), len(chosen))
    parts = list(optional_parts())
    broken = [outcome for outcome in found if outcome.state == "broken"]
    if as_json:
        out.document(
            {
                "ok": not broken,
                "python": sys.version.split()[0],
                "path": parent,
                "checks": [asdict(outcome) for outcome in found],
                "optional": [asdict(outcome) for outcome in parts],
            }
        )
        return PROBLEM if broken else OK
    out.table(
        ("promise", "state", "seconds", "what was seen"),
        (
            (outcome.name, outcome.state, f"{outcome.seconds:.1f}", outcome.text)
            for outcome in (*found, *(part for part in parts if part.state == "skipped"))
        ),
        right=("seconds",),
    )
    counts = Counter(outcome.state for outcome in found)
    out.text(
        f"of {len(found)} promises {counts['held']} held, {counts['broken']} were broken, "
        f"{counts['skipped']} not tried"
    )
    return PROBLEM if broken else OK
