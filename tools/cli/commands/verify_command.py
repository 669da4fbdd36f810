"""``mldb verify``: read and check every byte of a store."""

from __future__ import annotations

import time
from dataclasses import asdict

from mldb.tools.cli.command import Call, store_command
from mldb.tools.cli.main import OK, PROBLEM
from mldb.tools.cli.progress import progress_bar
from mldb.tools.cli.values import shown_bytes


@store_command("verify")
def command(call: Call) -> int:
    """Read and check every byte: headers, bodies, payloads, digests, footers, manifests.

    Changes nothing. Damage is listed with its file and offset, and the status is 1; what else is
    there stays readable. `mldb repair` takes what is whole into a new store.
    """
    started = time.monotonic()
    with progress_bar("verifying", quiet=call.out.as_json) as moved:
        report = call.store.verify(moved)
    seconds = time.monotonic() - started
    if call.out.as_json:
        call.out.document({"ok": report.ok, "seconds": seconds, **asdict(report)})
        return OK if report.ok else PROBLEM
    rate = f"{report.bytes / seconds / 1e6:,.0f} MB/s" if seconds else "at once"
    call.out.text(
        f"{report.segments:,} segments, {report.commits:,} commits, "
        f"{shown_bytes(report.bytes)} in {seconds:.1f} s ({rate})"
    )
    for problem in report.problems:
        commits = f", commits {', '.join(map(str, problem.lsns))}" if problem.lsns else ""
        call.out.text(f"{problem.file} at {problem.offset}: {problem.message}{commits}")
    if report.ok:
        call.out.text("every byte is as it was written")
        return OK
    call.out.text(
        f"{len(report.problems):,} problems. What they do not name stays readable; "
        "mldb repair STORE TARGET takes what is whole into a new store."
    )
    return PROBLEM
