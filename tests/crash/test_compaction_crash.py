"""Crashes while a store is compacted: it opens with all that was promised, nothing half done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.compaction import compactor, folds, planning
from mldb.compaction import plan as plan_module
from mldb.log.fs.crash_states import Model as Persistence
from mldb.log.fs.crash_states import crash_states
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.memory_disk import MemoryFile
from mldb.log.segment import SEGMENTS, segment_name
from tests.support.compacting import kept_of, made_up_deltas
from tests.support.crashes import (
    PERSISTENCE,
    Recorder,
    Seen,
    add_one,
    bounds,
    disk_digest,
    violation_in,
)
from tests.support.model import Model, Verbs, content_of
from tests.support.segments import segment_names

LEAST = 60

pytestmark = [pytest.mark.usefixtures("repeatable"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plan_module, "GAIN_SHARE", -100.0)
    monkeypatch.setattr(plan_module, "COLD_SHARE", 0.0)
    monkeypatch.setattr(plan_module, "MERGED_MIN", 2)
    monkeypatch.setattr(planning, "GAIN_SHARE", -100.0)
    monkeypatch.setattr(folds, "LINKS_MAX", 2)  # so that three steps are folded
    monkeypatch.setattr(folds, "_LINKS_LEAST", 2)
    with made_up_deltas():
        yield


def step(number: int) -> object:
    def change(target: Verbs) -> None:
        target.store_tensor("counter", np.int64(number))
        target.store_tensor("w", np.arange(90, dtype=np.int16) + np.int16(number), {"n": number})
        target.store_tensor(f"t{number % 3}", np.full(3, number, ">f4"))
        if number:
            target.update_tensor("rows", [number % 2, 5], np.full((2, 4), number, np.int64))
        else:
            target.store_tensor("rows", np.zeros((8, 4), np.int64))
        if number % 3 == 2:
            target.delete_tensor("t1")

    return change


def recorded(*, prune: bool, durability: str) -> Recorder:
    """Commits, a rewind and two compactions in between; with *prune* the second one drops some."""
    run = Recorder(options={"segment_entries": 8, "durability": durability})
    for number in range(4):
        run.commit(step(number), epoch=number)  # type: ignore[arg-type]
    run.rewind(3)
    run.commit(step(4), epoch=4)  # type: ignore[arg-type]
    if prune:
        run.tag("best", 2)
        run.retain(last=1)
    run.db.compact(cold="all")
    run.commit(step(5), epoch=5)  # type: ignore[arg-type]
    run.db.compact(cold="none")
    run.commit(step(6), epoch=6)  # type: ignore[arg-type]
    run.close()
    return run


LIMITS = pytest.mark.parametrize(
    "limit",
    [70, pytest.param(150, marks=pytest.mark.large), pytest.param(1500, marks=pytest.mark.large)],
    ids=["some", "many", "most"],
)


@LIMITS
@pytest.mark.parametrize("durability", ["commit", "os"])
def test_a_crash_in_a_lossless_compaction_loses_nothing_of_any_commit(
    durability: str, limit: int, seed: int
) -> None:
    run = recorded(prune=False, durability=durability)
    seen: set[Seen] = set()
    for persistence in PERSISTENCE:
        wrong = violation_in(run, persistence, seed=seed, limit=limit, since=run.created, seen=seen)
        assert not wrong, wrong
    distinct = len({digest for digest, *_ in seen})
    print(f"{durability}: {distinct} distinct disks, {len(seen)} checks")
    assert distinct >= min(LEAST, limit)


@LIMITS
@pytest.mark.parametrize("persistence", PERSISTENCE)
def test_a_crash_in_a_compaction_that_prunes_leaves_what_retention_keeps(
    persistence: Persistence, limit: int, seed: int
) -> None:
    run = recorded(prune=True, durability="commit")
    seen: set[bytes] = set()
    pruned = 0
    for state in crash_states(
        run.fs,
        at=range(run.created, run.operations() + 1),
        model=persistence,
        seed=seed,
        limit=limit,
    ):
        digest = disk_digest(state)
        if digest not in seen:
            seen.add(digest)
            low, high = bounds(state.marks, persistence)
            what = f"{persistence}, {state.description}"
            pruned += _check(state, run.model, low, high, run.options, what)
    print(f"{persistence}: {len(seen)} distinct disks, {pruned} of them pruned")
    assert pruned > 10
    assert len(seen) - pruned > 10


def _check(
    state: MemoryFileSystem,
    model: Model,
    low: int,
    high: int,
    options: dict[str, object],
    what: str,
) -> bool:
    """Check one disk, and that it can be written to and compacted; tell whether it was pruned."""
    db = mldb.MLDatabase.on(state, **options)
    index = model.index_of(int(db.lsn))
    assert index is not None, what
    assert low <= index <= high, what
    kept = kept_of(db)
    _compare(db, model, kept, what)
    problems = db.verify().problems
    assert not problems, (what, problems)
    lsns = [commit.lsn for commit in model.commits[1 : index + 1]]
    if db.retention.get().keeps_all:
        assert kept == lsns, what
    db.compact(cold="none")
    after = kept_of(db)
    assert set(after) <= set(kept), what
    add_one(db, model.commits[index].content.draft())
    db.compact(cold="all")
    _compare(db, model, [lsn for lsn in kept_of(db) if lsn in lsns], what)
    assert db.verify().ok, what
    files = {f"{SEGMENTS}/{name}" for name in state.list(SEGMENTS)}
    sides = {info.index_file for info in db._log.state.manifest.segments if info.index_file}
    assert files == {*segment_names(state), *sides}, what
    db.close()
    assert not state.list("pending"), what
    return kept != lsns


def _compare(db: mldb.MLDatabase, model: Model, kept: list[int], what: str) -> None:
    for lsn in kept:
        place = model.index_of(lsn)
        if place is not None:
            have = content_of(db, mldb.Lsn(lsn))
            assert have == model.commits[place].content, f"{what}: commit {lsn}"


# --- steps left out -------------------------------------------------------------------------------


def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new segment is not synced before the manifest names it."""
    sync = MemoryFile.sync

    def skip(self: MemoryFile) -> None:
        if not (self.name.startswith("pending/") and self.name.endswith(".seg")):
            sync(self)

    monkeypatch.setattr(MemoryFile, "sync", skip)


def _unlinked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is replaced goes before the manifest is there."""
    install = compactor.__dict__["install"]

    def early(log: Any, rules: Any, plan: Any, gone: Any = (), new: Any = None) -> Any:
        for part in gone:
            log.fs.unlink(segment_name(part.info.id))
        return install(log, rules, plan, gone, new)

    monkeypatch.setattr(compactor, "install", early)


def _without_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of the new segment is not made durable before the manifest."""
    sync_dir = MemoryFileSystem.sync_dir

    def skip(self: MemoryFileSystem, folder: str) -> None:
        if folder != SEGMENTS:
            sync_dir(self, folder)

    monkeypatch.setattr(MemoryFileSystem, "sync_dir", skip)


@pytest.mark.parametrize("mutant", [_unsynced, _unlinked_first, _without_folder])
def test_a_step_that_is_left_out_is_found(
    mutant: Callable[[pytest.MonkeyPatch], None], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact = mldb.MLDatabase.compact

    def mutated(self: mldb.MLDatabase, **options: Any) -> Any:
        with monkeypatch.context() as inner:
            mutant(inner)
            return compact(self, **options)

    with monkeypatch.context() as outer:
        outer.setattr(mldb.MLDatabase, "compact", mutated)
        run = recorded(prune=False, durability="commit")
    assert any(
        violation_in(run, persistence, seed=seed, limit=150, since=run.created)
        for persistence in PERSISTENCE
    )
