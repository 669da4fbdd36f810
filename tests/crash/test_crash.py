"""Crashes at any point of a store's life: what was promised is there, and nothing else.

Workloads run on a recorded disk in memory. Every disk that a power loss or a kill could leave is
opened again: a prefix of the history, every acknowledged commit, each read of the past to the last
byte. The second half leaves steps out and shows that this finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import pytest

import mldb
from mldb.history.kinds.changes import attr_draft
from mldb.log import format as fmt
from mldb.log import state as log_state
from mldb.log.active import Active, open_active
from mldb.log.fs.crash_states import Model as Persistence
from mldb.log.fs.crash_states import crash_states
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.memory_disk import (
    Inode,
    MemoryFile,
    Names,
    Operation,
    Sync,
    SyncFolder,
    Write,
)
from mldb.log.fs.protocol import Buffer, OpenMode
from mldb.log.manifest import manifest_name
from mldb.log.sealing import Sealer
from mldb.log.sequencer import Sequencer
from mldb.write import metric_log, metric_plans
from tests.support.crashes import (
    PERSISTENCE,
    Promise,
    Recorder,
    Seen,
    add_one,
    bounds,
    disk_digest,
    given_lsns,
    violation_in,
    violation_of,
)
from tests.support.model import Change, Model, Verbs
from tests.support.parts import one_of, some_and_many

pytestmark = pytest.mark.usefixtures("repeatable")

Durability = Literal["commit", "os"]
LARGE = 66_000
SPILL = LARGE  # a little above the size from which a tensor is not packed with others


# --- workloads ------------------------------------------------------------------------------------


def small(number: int) -> Change:
    """A few small tensors of several types; some names come and go."""

    def change(target: Verbs) -> None:
        target.store_tensor("counter", np.int64(number))
        target.store_tensor(f"t{number % 3}", np.full((2, 3), number, ">f4"), {"n": number})
        if number % 4 == 3:
            target.delete_tensor("t0")
            target.create_relationship("t1", f"t{number}", "next", {"n": number})
        elif number % 4 == 2:
            target.store_tensor(f"only{number}", np.array([], bool))

    return change


def sized(number: int, size: int) -> Change:
    """One tensor of so many bytes beside a counter."""

    def change(target: Verbs) -> None:
        target.store_tensor("counter", np.int64(number))
        body = np.arange(size, dtype=np.int64).astype(np.uint8)
        target.store_tensor("big", body + np.uint8(number), {"size": size})

    return change


def create(run: Recorder) -> None:
    """Make a store and close it; make the first commits of its life; close it again."""
    run.reopen()
    run.commit(small(0))
    run.close()


def commits(run: Recorder) -> None:
    for number in range(6):
        run.commit(small(number), epoch=number // 2)
        if number == 3:
            run.sync()
        elif number % 2:
            run.put("single", np.full(70, number, np.int16))
    run.close()


def seals(run: Recorder) -> None:
    """Some segments close because of their size, the last one for good."""
    for number in range(7):
        run.commit(sized(number, 700 + 50 * number), epoch=number)
        if number == 4:
            run.sync()
    run.close()


def spills(run: Recorder) -> None:
    """Batches too large for a segment, and a tensor written at the call, between small ones."""
    for number, size in enumerate((100, 5000, 30, SPILL, 6000, 40)):
        run.commit(sized(number, size), epoch=number)
    run.sync()
    run.commit(small(6))


def streams(run: Recorder) -> None:
    """Transactions whose tensors are written at the call, once they are so many, and given up."""

    def several(target: Verbs, number: int) -> None:
        small(number)(target)
        for part in range(3):
            body = np.arange(LARGE, dtype=np.int64).astype(np.uint8)
            target.store_tensor(f"part{part}", body + np.uint8(number + part))
        if number % 2:
            target.store_tensor("part0", np.int64(number))
            target.store_tensor("part3", np.arange(LARGE, dtype=np.int64).astype(np.uint8))

    for number in range(3):
        run.commit(partial(several, number=number), epoch=number)
        run.commit(small(number + 10))
    run.close()


def rewinds(run: Recorder) -> None:
    for number in range(4):
        run.commit(small(number), epoch=number)
    run.tag("best", 2)
    run.pin(3)
    run.rewind(2)
    run.sync()
    run.commit(small(4), epoch=1)
    run.tag("best", 4)
    run.rewind(7)
    run.commit(sized(5, 900), epoch=9)
    run.close()


def reopenings(run: Recorder) -> None:
    """Clean closes, kills, and a close with nothing to say."""
    for number in range(3):
        run.commit(small(number), epoch=number)
        run.reopen(kill=number == 1)
    run.reopen()
    run.commit(sized(3, 1200), epoch=3)
    run.commit(sized(4, 1200))
    run.reopen(kill=True)
    run.commit(small(5))
    run.close()


def two_handles(run: Recorder) -> None:
    """Two handles take turns, as two processes do; each syncs what the other wrote."""
    other = run.open()
    for number in range(7):
        run.commit(small(number), epoch=number // 3)
        run.db, other = other, run.db
        if number % 3 == 1:
            run.put("single", np.full(70, number, np.int16))
        if number in {2, 5}:
            run.sync()
    run.close()
    other.close()


def logs(run: Recorder) -> None:
    """Points alone and waiting: stored in front of commits, of a rewind, by a sync; one kill."""
    with patch.object(metric_log.MetricLog, "_start", lambda self: None):  # no thread stores them
        for number in range(5):
            run.log({"loss": number / 2, "lr": 0.5}, number)
            for step in range(3):
                run.log({"loss": -step, f"m{step}": number}, step, buffer=True)
            if number == 1:
                run.reopen(kill=True)
            elif number == 2:
                run.rewind(4)
            elif number == 3:
                run.sync()
            else:
                run.commit(small(number), epoch=number)
        run.log({"last": 1.0}, 9)
        run.close()


@dataclass(frozen=True)
class Case:
    """A workload, how its store is opened, how many states are drawn, how many must differ."""

    play: Callable[[Recorder], None]
    least: int
    options: dict[str, Any] = field(default_factory=dict)
    limit: int = 90
    whole: bool = False
    """The creation of the store is part of it."""

    def run(self, durability: Durability, fs: MemoryFileSystem | None = None) -> Recorder:
        """Play the workload on a recorded disk."""
        options = {"durability": durability, "map_bytes": 256, **self.options}
        run = Recorder(options, MemoryFileSystem(record=True) if fs is None else fs)
        self.play(run)
        return run


CASES = {
    "create": Case(create, 170, whole=True),
    "commits": Case(commits, 160),
    "seals": Case(seals, 140, {"segment_bytes": 2000}),
    "entries": Case(commits, 140, {"segment_entries": 7}, limit=100),
    "spills": Case(spills, 115, {"segment_bytes": 2000, "spill_bytes": SPILL}),
    "streams": Case(streams, 115, {"segment_bytes": 2 * LARGE, "spill_bytes": 2 * LARGE}),
    "rewinds": Case(rewinds, 120, {"segment_bytes": 1200}),
    "reopenings": Case(reopenings, 115, {"segment_bytes": 2000}),
    "logs": Case(logs, 120, {"segment_bytes": 1500}),
    "two handles": Case(two_handles, 135, {"segment_bytes": 1500}, limit=100),
}


SHARES = some_and_many("share", 3, 1)
"""Of the states: every so many of those that a large run checks."""


def least_of(many: int, share: int) -> int:
    """How many of them must differ: fewer, as the models begin with the same few."""
    return many if share == 1 else many // (2 * share)


def test_the_cases_are_at_least_two_thousand_states() -> None:
    assert 2 * sum(case.least for case in CASES.values()) >= 2000


@SHARES
@pytest.mark.slow
@pytest.mark.parametrize("durability", ["commit", "os"])
@pytest.mark.parametrize("name", CASES)
def test_every_crash_leaves_a_prefix_with_all_that_was_promised(
    name: str, durability: Durability, share: int, seed: int
) -> None:
    """The states of the three models together; alike disks count once."""
    case = CASES[name]
    limit = case.limit // share
    run = case.run(durability)
    seen: set[Seen] = set()
    since = 0 if case.whole else run.created
    for persistence in PERSISTENCE:
        wrong = violation_in(run, persistence, seed=seed, limit=limit, since=since, seen=seen)
        assert not wrong, wrong
    distinct = len({digest for digest, *_ in seen})
    print(f"{name}, {durability}, {one_of(share)}: {distinct} disks, {len(seen)} checks")
    assert distinct >= least_of(case.least, share)


# --- crashes of crashed disks ---------------------------------------------------------------------

LOSSES: tuple[tuple[Persistence, Persistence], ...] = (
    ("posix", "posix"),
    ("process", "posix"),
    ("posix", "process"),
    ("process", "process"),
    ("ordered", "ordered"),
)
NESTED_LEAST = 30  # for each pair and durability


def crash_twice(
    run: Recorder,
    losses: tuple[Persistence, Persistence],
    at: Iterable[int],
    *,
    seed: int,
    limit: int,
    nested: int = 6,
) -> set[bytes]:
    """Open each crashed disk, commit, and crash at any point of that; return the distinct disks."""
    first, second = losses
    told: Persistence = "process" if losses == ("process", "process") else "posix"
    distinct: set[bytes] = set()
    for disk in crash_states(run.fs, at=at, model=first, seed=seed, limit=limit, record=True):
        low, _ = bounds(disk.marks, told)
        journal, marks = disk.journal, len(disk.marks)
        assert journal is not None
        start = len(journal.operations)
        db = mldb.MLDatabase.on(disk, **run.options)
        index = run.model.index_of(int(db.lsn))
        assert index is not None
        # Of what recovery has dropped nothing comes back, whatever happens then.
        model = Model(run.model.commits[: index + 1])
        content = model.head.content.draft()
        disk.mark(Promise("begun", index + 1))
        model.add(add_one(db, content), None, content)
        disk.mark(Promise(run.acknowledges or "told", index + 1))
        given = given_lsns(disk, run.heads)
        later = range(start + 1, len(journal.operations) + 1)
        for again in crash_states(disk, at=later, model=second, seed=seed, limit=nested):
            distinct.add(disk_digest(again))
            told_now, begun = bounds(again.marks[marks:], second)
            bottom, top = max(low, told_now), max(index, begun)
            seen = max(run.given[disk.operations_done], given[again.operations_done])
            wrong = violation_of(again, model, bottom, top, seen, run.options)
            assert not wrong, f"{losses}: {disk.description}; then {again.description}: {wrong}"
    return distinct


@SHARES
@pytest.mark.slow
@pytest.mark.parametrize("durability", ["commit", "os"])
@pytest.mark.parametrize("losses", LOSSES)
def test_a_crash_during_recovery_loses_nothing_either(
    losses: tuple[Persistence, Persistence], durability: Durability, share: int, seed: int
) -> None:
    run = CASES["seals"].run(durability)
    points = range(run.created, run.operations() + 1)
    distinct = crash_twice(run, losses, points, seed=seed, limit=14 // share)
    print(f"{losses}, {durability}, {one_of(share)}: {len(distinct)} distinct nested disks")
    assert len(distinct) >= NESTED_LEAST // share


@SHARES
@pytest.mark.slow
@pytest.mark.parametrize("done", [Write, Names])
def test_who_goes_on_after_a_kill_syncs_what_the_dead_did_not(
    done: type[Operation], share: int, seed: int
) -> None:
    """A process is killed between a change and its sync, the next one goes on, and power fails.

    Two things used to be trusted because they could be seen. A footer: the manifest that sealed its
    segment was installed without a sync of the segment, which then was shorter than the manifest
    says. The name of a manifest: commits were acknowledged in the segment that it started, and were
    gone when the name was.
    """
    run = CASES["seals"].run("commit")
    assert run.fs.journal is not None
    steps = list(pairwise(run.fs.journal.operations))
    points = [
        place
        for place, (step, following) in enumerate(steps, 1)
        if place > run.created
        and isinstance(step, done)
        and isinstance(following, Sync | SyncFolder)
    ]
    assert len(points) >= 10
    print(f"{len(points[seed % share :: share])} of {len(points)} points")
    for point in points[seed % share :: share]:
        crash_twice(run, ("process", "posix"), [point], seed=seed, limit=1, nested=9)


# --- what the tests would find --------------------------------------------------------------------

Step = Callable[[str, str, int], bool]
"""Given a call, the name and the kind of the file that it is about: whether it is left out."""


class Careless(MemoryFile):
    """A file of a Forgetful disk."""

    __slots__ = ("fs",)

    def __init__(self, fs: Forgetful, name: str, inode: Inode) -> None:
        super().__init__(fs._disk, name, inode, True)
        self.fs = fs

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        head = b"".join(map(bytes, buffers))[: fmt.FILE_HEADER_SIZE]
        if offset == 0 and self.fs.forgets("order", self.name, kind_in(head)):
            number = fmt.FileHeader._make(fmt.FILE_HEADER.unpack(head)).file_id
            self.fs.link(self.name, manifest_name(number))
        return super().pwritev(buffers, offset)

    def sync(self) -> None:
        if not self.fs.forgets("sync", self.name, kind_in(self.pread(fmt.FILE_HEADER_SIZE, 0))):
            super().sync()


def kind_in(head: bytes) -> int:
    """The kind of file that starts with these bytes; 0 when they are no header."""
    return int.from_bytes(head[10:12], "little") if len(head) == fmt.FILE_HEADER_SIZE else 0


class Forgetful(MemoryFileSystem):
    """A recorded disk on which a step is left out, or a manifest gets its name too early."""

    def __init__(self, forgets: Step) -> None:
        super().__init__(record=True)
        self.forgets = forgets

    def open(self, name: str, mode: OpenMode) -> MemoryFile:
        file = super().open(name, mode)
        return file if mode == "r" else Careless(self, name, self._find("open", name))

    def link(self, source: str, target: str) -> bool:
        is_manifest = target.startswith("MANIFEST")
        named = is_manifest and self.forgets("order", source, fmt.FILE_MANIFEST)
        return (named and self.exists(target)) or super().link(source, target)

    def sync_dir(self, folder: str) -> None:
        if not self.forgets("sync_dir", folder, 0):
            super().sync_dir(folder)


def expect_found(run: Recorder, models: set[Persistence], seed: int, words: str = "") -> None:
    """Something is wrong under these models and, as far as a look tells, nothing under others."""
    for persistence in PERSISTENCE:
        limit = 400 if persistence in models else 30
        wrong = violation_in(run, persistence, seed=seed, limit=limit, since=run.created)
        assert bool(wrong) == (persistence in models), f"{persistence}: {wrong}"
        assert not wrong or words in wrong


LEFT_OUT: dict[str, tuple[str, Durability, Step, set[Persistence]]] = {
    "the sync of a commit": (
        "commits",
        "commit",
        lambda call, name, kind: call == "sync" and name.startswith("segments/"),
        {"posix", "ordered"},
    ),
    "the sync of a segment that is sealed": (
        "seals",
        "os",
        lambda call, name, kind: call == "sync" and name.endswith(".seg"),
        {"posix", "ordered"},
    ),
    "the sync of a new segment's header": (
        "seals",
        "os",
        lambda call, name, kind: (call, kind) == ("sync", fmt.FILE_SEGMENT) and name[-3:] == "tmp",
        {"posix", "ordered"},
    ),
    "the sync of a spilled segment": (
        "spills",
        "commit",
        lambda call, name, kind: call == "sync" and name.endswith(".seg") and name[:3] == "pen",
        {"posix", "ordered"},
    ),
    "the sync of a manifest": (
        "seals",
        "commit",
        lambda call, name, kind: (call, kind) == ("sync", fmt.FILE_MANIFEST),
        {"posix", "ordered"},
    ),
    "the sync of the folder of the manifests": (
        "seals",
        "commit",
        lambda call, name, kind: call == "sync_dir" and not name,
        {"posix"},
    ),
    "the sync of the folder of the segments": (
        "seals",
        "commit",
        lambda call, name, kind: call == "sync_dir" and name == "segments",
        {"posix"},
    ),
    "writing a manifest before it has its name": (
        "seals",
        "commit",
        lambda call, name, kind: (call, kind) == ("order", fmt.FILE_MANIFEST),
        {"posix", "ordered", "process"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["a point", "half of a flush"])
def test_points_that_are_lost_are_found(
    lost: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the claims above would not see, nobody would."""
    changes = metric_plans.MetricRows.changes

    def some(self: metric_plans.MetricRows) -> Any:
        made = changes(self)
        return made[:1] if lost == "half of a flush" else made

    def none(key: bytes, rows: bytes) -> Any:
        return attr_draft(key, rows[:16] + bytes(len(rows) - 16))

    if lost == "a point":
        monkeypatch.setattr("mldb.write.metric_verbs.attr_draft", none)
    else:
        monkeypatch.setattr(metric_plans.MetricRows, "changes", some)
    run = CASES["logs"].run("commit")
    wrong = violation_in(run, "posix", seed=seed, limit=40, since=run.created)
    assert "content" in wrong


@pytest.mark.slow
@pytest.mark.parametrize("step", LEFT_OUT)
def test_a_step_left_out_is_found(step: str, seed: int) -> None:
    name, durability, forgets, models = LEFT_OUT[step]
    expect_found(CASES[name].run(durability, Forgetful(forgets)), models, seed)


def test_an_early_acknowledgement_is_found(seed: int) -> None:
    """The store syncs later than it says, as with durability="os"."""
    run = Recorder({"durability": "os"}, MemoryFileSystem(record=True), acknowledges="durable")
    commits(run)
    expect_found(run, {"posix", "ordered"}, seed)


def test_a_commit_whose_payload_is_trusted_is_found(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power loss may keep a commit frame and lose what lies in front of it."""

    def trusting(*arguments: Any, **options: Any) -> Active:
        active = open_active(*arguments, **options)
        active.verify_until = 0
        return active

    run = Case(seals, 0).run("os")
    monkeypatch.setattr(log_state, "open_active", trusting)
    expect_found(run, {"posix"}, seed)


def test_a_recovery_that_drops_too_much_is_found(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One commit too many goes with the torn tail."""
    close_at = Sealer.close_at

    def greedy(self: Sealer, last_lsn: int, durable: int) -> None:
        rows = list(self._state.view.commits(1, last_lsn - 1))
        last_lsn = rows[-1][1].lsn if rows else last_lsn
        close_at(self, last_lsn, min(durable, last_lsn))

    run = CASES["commits"].run("commit")
    monkeypatch.setattr(Sealer, "close_at", greedy)
    expect_found(run, set(PERSISTENCE), seed)


@pytest.mark.slow
def test_an_lsn_that_is_given_again_is_found(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handle that goes on behind the last LSN in the log, as if nobody could have seen more.

    Power fails at the border of a batch: there is no torn tail, and nothing tells the next writer
    of the commits that readers had seen and that are gone.
    """

    def trusting(self: Sequencer, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **{**options, "began": True})

    made = Sequencer.__init__
    run = CASES["commits"].run("os")
    monkeypatch.setattr(Sequencer, "__init__", trusting)
    expect_found(run, {"posix", "ordered"}, seed, "may be given again")
