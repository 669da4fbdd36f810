"""What the tests of this folder would find: each bug that they are about, brought back.

A mutant is one step left out of the store. For each there is a pair of operations in which it
shows, and words of what is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest

from mldb.log import syncing
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.memory_disk import MemoryFile, MemoryLock
from mldb.log.ownership import OwnedLock
from mldb.log.sequencer import Sequencer
from mldb.log.state import LogState
from mldb.log.syncing import Syncing
from mldb.write.metric_log import MetricLog
from mldb.write.rules import ReadCheck
from tests.support import interference
from tests.support.interference import CALM, Relation, Schedule, Tally, Trouble, sweep

Break = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """What was approved with the step in place says nothing without it, nor the other way round."""
    interference.forget()
    yield
    interference.forget()


# --- the steps ------------------------------------------------------------------------------------


def left_overs_everywhere(patch: pytest.MonkeyPatch) -> None:
    """A lock that an outer call of the thread holds is taken for one that nobody holds any more."""

    def is_inside(self: OwnedLock) -> bool:
        if (holder := self.holder) is not None:
            self.recover(holder)
        return False

    patch.setattr(OwnedLock, "_is_inside", is_inside)


def forgotten_failure(patch: pytest.MonkeyPatch) -> None:
    """The next commit begins as if no fsync had failed."""
    refuse_ended = Syncing.refuse_ended

    def refuse(self: Syncing) -> None:
        self.failed = None
        refuse_ended(self)

    patch.setattr(Syncing, "refuse_ended", refuse)


def swallowed_failure(patch: pytest.MonkeyPatch) -> None:
    """A commit is acknowledged although its fsync failed."""
    sync = Syncing._sync

    def deaf(self: Syncing, *arguments: Any) -> None:
        try:
            sync(self, *arguments)
        except Exception:  # noqa: BLE001 - that is the bug
            self.failed = None

    patch.setattr(Syncing, "_sync", deaf)


def unread_claims(patch: pytest.MonkeyPatch) -> None:
    """Who closes a segment early does not ask what others acknowledged."""
    patch.setattr(syncing, "highest_claim", lambda fs: 0)


def unfollowed_announcements(patch: pytest.MonkeyPatch) -> None:
    """Who acknowledges does not look whether somebody is closing the segment."""
    patch.setattr(Syncing, "_follow_announced", lambda self: None)


def low_lsns(patch: pytest.MonkeyPatch) -> None:
    """A writer that finds no clean close goes on behind the last commit that it finds."""
    first_lsn = Sequencer._first_lsn

    def low(self: Sequencer, count: int) -> int:
        self._began = True
        return first_lsn(self, count)

    patch.setattr(Sequencer, "_first_lsn", low)


def two_writers(patch: pytest.MonkeyPatch) -> None:
    """The kernel gives its lock to everybody."""
    patch.setattr(MemoryLock, "try_acquire", lambda self: True)


def scanned_while_written(patch: pytest.MonkeyPatch) -> None:
    """A reader scans the file that another thread of its handle is appending to."""
    patch.setattr(LogState, "is_writing", lambda self: False)


def unread_reads(patch: pytest.MonkeyPatch) -> None:
    """A transaction commits whatever became of what it read."""
    patch.setattr(ReadCheck, "__call__", lambda self, view: None)


def children_write(patch: pytest.MonkeyPatch) -> None:
    """A forked child may do what its parent may."""
    patch.setattr(MemoryFileSystem, "_require_own", lambda self, name: None)
    patch.setattr(MemoryFile, "_require_own", lambda self, call: self._require(call))


def forgotten_points(patch: pytest.MonkeyPatch) -> None:
    """What waits is taken off the list, and a commit stores only itself."""
    patch.setattr(MetricLog, "flush_before", lambda self, until=None: self.waiting.clear())


def two_flushes(patch: pytest.MonkeyPatch) -> None:
    """Two threads store what waits at the same time, and take it off when they have."""

    class Free:
        def hold_unless_inside(self) -> Any:
            return nullcontext()

    made = MetricLog.__init__

    def init(self: MetricLog, *arguments: Any) -> None:
        made(self, *arguments)
        self._turn = Free()  # type: ignore[assignment]

    patch.setattr(MetricLog, "__init__", init)


# --- where each shows -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """A step left out, where that shows, and a word of what is found."""

    leave_out: Break
    relation: Relation
    first: str
    second: str
    word: str
    trouble: Trouble = CALM
    step: int = 1
    crashes: int = 0
    stop: int = 0

    def __str__(self) -> str:
        return self.leave_out.__name__


MUTANTS = (
    Mutant(left_overs_everywhere, "handler", "commit", "commit", "", step=31),
    Mutant(forgotten_failure, "thread", "sync", "sync", "sync had failed", ("a sync alone", 1)),
    Mutant(
        swallowed_failure, "process", "commit", "read", "is gone", ("a sync lost", 1), crashes=2
    ),
    Mutant(unread_claims, "process", "seal", "commit", "is gone", ("a sync alone", 1)),
    Mutant(
        unfollowed_announcements,
        "process",
        "commit",
        "commit",
        "is gone",
        ("b sync alone", 1),
        step=3,
        stop=5,
    ),
    Mutant(low_lsns, "process", "commit", "snapshot", "was seen", crashes=2),
    Mutant(two_writers, "process", "commit", "commit", ""),
    Mutant(scanned_while_written, "thread", "seal", "snapshot", ""),
    Mutant(unread_reads, "process", "transaction", "transaction", "other values"),
    Mutant(forgotten_points, "process", "buffered", "commit", "is gone", step=17),
    Mutant(two_flushes, "thread", "buffered", "buffered", "one twice"),
    Mutant(children_write, "fork", "spill", "return", "the child: "),
)


LONG = {"children_write"}
"""These fork a process as large as all tests have made it, hundreds of times."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(mutant, marks=pytest.mark.large if str(mutant) in LONG else (), id=str(mutant))
        for mutant in MUTANTS
    ],
)
def test_a_step_left_out_is_found(
    mutant: Mutant, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant.leave_out(monkeypatch)
    tally = Tally()
    schedule = Schedule(mutant.relation, mutant.first, mutant.second, 0, mutant.trouble)
    sweep(
        tally,
        schedule,
        seed=seed,
        step=mutant.step,
        crashes=mutant.crashes,
        stop=mutant.stop,
        word=mutant.word,
    )
    print(f"{mutant}: found by schedule {tally.runs}, after {len(tally.wrong)} that went wrong")
    assert any(mutant.word in wrong for wrong in tally.wrong), tally.wrong[:2]
