"""The command of a background worker: ``python -m mldb.worker ORDER``. Started by a handle.

It imports no more than opening a store does: neither torch nor a library of a device.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any, Final

from mldb.compaction import compactor
from mldb.compaction.gain import expected_gain
from mldb.compaction.retention import Retention
from mldb.compaction.rules import EventRules
from mldb.compaction.worker import (
    CONSOLIDATION,
    FAILED,
    Bench,
    Job,
    JobReport,
    WorkerOrder,
    run_worker,
    tell_error,
)
from mldb.database import MLDatabase
from mldb.errors import ConflictError, LockedError, MldbError
from mldb.lake.consolidation.run import run_policy
from mldb.log.aside import Promptly
from mldb.log.fs.child import detach, parent_pid
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.priority import go_first
from mldb.log.index.address import CommitRow
from mldb.write.compacting import COLD_AGE

_CACHE_BYTES: Final = 64 << 20
RUNS_EACH: Final = 16
"""Runs of one lake by one worker."""
_COLD: Final = COLD_AGE // timedelta(microseconds=1) * 1000


class WorkerDatabase(MLDatabase):
    """A store as its background worker opens it."""

    @property
    def store_id(self) -> bytes:
        """The identity of the store."""
        return self._log.store_id

    def call_promptly(self, promptly: Promptly) -> None:
        """Let *promptly* make the calls that hold the commit lock."""
        self._log.sequencer.promptly = promptly

    def compact_behind(self, bench: Bench) -> JobReport | None:
        """Make a pass where it gives back enough; without ``drops`` nothing is lost by it."""
        order = bench.order
        rules = _held(self._event_rules(), bench)
        if not order.drops:
            rules = replace(rules, policy=lambda view: Retention())
        gain = expected_gain(self._log, rules, _COLD, bench.gate)
        size = int(self._log.stats()["bytes"])  # without the footer that the newest segment lacks
        bench.say(looked=bench.fs.time_ns(), size=size, expected=gain.returned, left=gain.returned)
        if not gain.is_worth(order.gain_bytes, order.gain_share):
            return None
        began = time.monotonic()
        try:
            report = compactor.compact(
                self._log, rules, _COLD, progress=bench.tell, pause=bench.gate
            )
        except LockedError:
            return None  # somebody compacts already
        report = replace(report, seconds=time.monotonic() - began)
        bench.say(size=report.bytes_after, left=0)
        return JobReport(max(report.bytes_returned, 0), _plain(report))

    def consolidate_behind(self, bench: Bench) -> JobReport | None:
        """Consolidate the lakes whose stored policy asks for it."""
        merged: dict[str, Any] = {}
        for name in self.lakes():
            bench.gate()
            for _ in range(RUNS_EACH):  # rows go on coming, or a run was cut off by its budget
                try:
                    report = run_policy(self._lake_host(), name, bench.gate)
                except ConflictError:
                    break  # others changed what it was to merge; the next worker tries again
                if report is None:
                    break
                told = merged.setdefault(name, {"rows_before": report.rows_before})
                told["rows_after"] = report.rows_after
                if report.lsn is None:
                    break
        return JobReport(0, merged) if merged else None

    def _commit(self, *arguments: Any, **options: Any) -> CommitRow:
        """Commit by the thread that does not wait for a free core: others wait for its lock."""
        made: list[CommitRow] = []
        commit = super()._commit
        self._log.sequencer.promptly(lambda: made.append(commit(*arguments, **options)))
        return made[0]


JOBS: Final = (
    Job("compaction", WorkerDatabase.compact_behind),
    Job(CONSOLIDATION, WorkerDatabase.consolidate_behind),
)
"""What a worker does, in this order."""


def _held(rules: EventRules, bench: Bench) -> EventRules:
    """The rules, by which the gate is passed before each version that is encoded."""

    def encode(attr: bytes, data: memoryview, base: memoryview | None) -> tuple[int, bytes] | None:
        bench.gate()
        return rules.encode(attr, data, base)

    return replace(rules, encode=encode)


def _plain(report: Any) -> dict[str, Any]:
    """The figures of a report, without its names, of which there may be any number."""
    figures = asdict(report)
    figures.pop("names")
    return {**figures, "bytes_returned": report.bytes_returned}


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one order; return the exit status."""
    (text,) = sys.argv[1:] if arguments is None else arguments
    try:
        order = WorkerOrder.of(text)
        fs = OsFileSystem(order.store)
    except MldbError as error:
        tell_error(error)
        return FAILED

    def open_store() -> WorkerDatabase:
        return WorkerDatabase.on(
            fs,
            background_compaction=False,
            cache_bytes=_CACHE_BYTES,
            segment_bytes=order.segment_bytes,
            segment_entries=order.segment_entries,
        )

    return run_worker(fs, order, JOBS, open_store, lambda: parent_pid() != order.parent)


if __name__ == "__main__":
    detach()
    go_first()
    sys.exit(main())
