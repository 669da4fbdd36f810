"""Whatever was compacted shows what it showed, at every commit that is left, byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb.compaction import plan as plan_module
from mldb.log import format as fmt
from mldb.log.fs.memory import MemoryFileSystem
from mldb.tensors.scope import stored_bytes
from tests.support.compacting import (
    commits_of,
    compact_all,
    depth_of,
    events_at,
    kept_by_hand,
    kept_of,
    made_up_deltas,
    needed_by_hand,
    owners_in,
    refer,
    shown_at,
    store_shown,
    versions_of,
    view_of,
)
from tests.support.parts import examples

NAMES = ("a", "b", "c")
SECOND = timedelta(seconds=1)
OPTIONS: dict[str, Any] = {"segment_entries": 6, "durability": "os"}

policies: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    last=st.none() | st.integers(1, 3),
    every=st.none() | st.integers(1, 4),
    abandoned=st.none() | st.just(timedelta(0)) | st.just(timedelta(days=1)),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("store"), st.sampled_from(NAMES), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("many"), st.integers(1, 4), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("delete"), st.sampled_from(NAMES), st.just(0), st.booleans()),
        st.tuples(st.just("metadata"), st.sampled_from(NAMES), st.integers(0, 9), st.booleans()),
        st.tuples(st.just("relate"), st.sampled_from(NAMES), st.integers(0, 1), st.booleans()),
        st.tuples(st.just("checkpoint"), st.sampled_from("xy"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("lake"), st.integers(1, 3), st.just(0), st.booleans()),
        st.tuples(st.just("refer"), st.sampled_from(NAMES), st.integers(0, 99), st.booleans()),
        st.tuples(st.just("tag"), st.sampled_from("pq"), st.integers(0, 99), st.booleans()),
        st.tuples(st.just("pin"), st.just(""), st.integers(0, 99), st.booleans()),
        st.tuples(st.just("rewind"), st.just(""), st.integers(0, 99), st.booleans()),
        st.tuples(st.just("retain"), policies, st.just(0), st.just(False)),
        st.tuples(st.just("compact"), st.booleans(), st.just(0), st.just(False)),
        st.tuples(st.just("reopen"), st.just(""), st.just(0), st.just(False)),
    ),
    min_size=4,
    max_size=26,
)


class Run:
    """One store on which steps are done; each compaction is compared with the store before it."""

    def __init__(self) -> None:
        self.fs = MemoryFileSystem()
        self.db = mldb.MLDatabase.on(self.fs, **OPTIONS)
        self.compacted = 0
        self.pruned = 0

    def do(self, kind: str, what: Any, number: int, advance: bool) -> None:
        """Do one step; one that cannot be done now is left out."""
        db = self.db
        epoch = db.epoch + 1 if advance else db.epoch
        if kind == "store":
            db.store_tensor(
                what, value(number), {"n": number} if number == 2 else None, epoch=epoch
            )
        elif kind == "many":
            with db.transaction(epoch=epoch) as txn:
                for place in range(what):
                    txn.store_tensor(f"many/{place}", value(number + place), {"p": place})
        elif kind == "delete" and what in db:
            db.delete_tensor(what)
        elif kind == "metadata" and what in db:
            db.set_metadata(what, {"k": number})
        elif kind == "relate":
            self._relate(what, number)
        elif kind == "checkpoint":
            db.checkpoint({"w": value(number), "n": number}, epoch=epoch, name=what)
        elif kind == "lake":
            db.lake("l", dim=2).add_splats(np.eye(2, dtype=np.float32)[[0] * what], epoch=epoch)
        elif kind == "refer":
            self._refer(what, number)
        elif kind in ("tag", "pin", "rewind"):
            self._point(kind, what, number)
        elif kind == "retain":
            db.retention.set(**what)
        elif kind == "compact":
            self.compact(what)
        elif kind == "reopen":
            db.close()
            self.db = mldb.MLDatabase.on(self.fs, **OPTIONS)

    def _relate(self, what: str, number: int) -> None:
        if self.db.relationships("a", what, "k") and number:
            self.db.delete_relationship("a", what, "k")
        else:
            self.db.create_relationship("a", what, "k", {"n": number})

    def _refer(self, what: str, number: int) -> None:
        owners = owners_in(self.db)
        if owners:
            owner, entry = owners[number % len(owners)]
            refer(self.db, what, owner, entry)

    def _point(self, kind: str, what: str, number: int) -> None:
        kept = kept_of(self.db)
        if not kept:
            return
        lsn = mldb.Lsn(kept[number % len(kept)])
        if kind == "tag":
            self.db.tag(what, lsn)
        elif kind == "rewind":
            self.db.rewind(lsn)
        elif lsn in self.db.pins():
            self.db.unpin(lsn)
        else:
            self.db.pin(lsn)

    # --- compacting -------------------------------------------------------------------------------

    def compact(self, everything: bool) -> None:
        """Compact, and compare with the store as it was."""
        db = self.db
        with mldb.MLDatabase.on(MemoryFileSystem(image=self.fs.image()), mode="r") as before:
            expected = self._expected(before)
            old = versions_of(before)
            try:
                report = db.compact(cold="all" if everything else "none")
            except mldb.InvalidValueError as error:
                assert "max_bytes" in str(error)
                assert versions_of(db) == old
                return
            limit = before.retention.get().max_bytes
            if limit is not None:
                expected &= set(kept_of(db))
                assert expected >= self._fixed(before)
                assert report.bytes_after <= limit
            assert kept_of(db) == sorted(expected), report
            needed = needed_by_hand(before, sorted(expected))
            assert store_shown(db) == store_shown(before)
            versions = versions_of(db)
            assert versions.items() <= old.items()
            assert versions.keys() == needed
            for lsn in expected:
                assert shown_at(db, lsn) == shown_at(before, lsn), lsn
                assert events_at(db, lsn) == events_at(before, lsn), lsn
        self.check()
        assert report.commits_kept == len(expected)
        assert report.bytes_after == db.stats()["bytes"]
        self.compacted += 1
        self.pruned += report.commits_pruned

    def _expected(self, before: mldb.MLDatabase) -> set[int]:
        """The commits that are to be left, one after another as FORMAT.md says it."""
        rows, view = commits_of(before), view_of(before)
        if not rows:
            return set()
        policy, taken = before.retention.get(), list[int]()
        for part in view.history(b"\x05", view.intervals):
            taken += part.lsns
        count = len(taken) if policy.checkpoints is None else policy.checkpoints
        named = self._fixed(before) | set(taken[len(taken) - count :])
        kept = kept_by_hand(policy, rows, view, named, self.fs.time_ns())
        kept &= set(kept_of(before))
        newest = (_newest_checkpoint(before, lsn) for lsn in kept)
        return kept | {lsn for lsn in newest if lsn}

    @staticmethod
    def _fixed(db: mldb.MLDatabase) -> set[int]:
        """The commits that no policy takes."""
        return {int(db.lsn), *map(int, (*db.tags().values(), *db.pins()))} - {0}

    def check(self) -> None:
        """Every byte is as it was written, every chain is short."""
        report = self.db.verify()
        assert report.ok, report.problems
        assert not self.fs.list("pending")
        for name in NAMES:
            assert max(depth_of(self.db, name), default=0) <= 4


def _newest_checkpoint(db: mldb.MLDatabase, lsn: int) -> int:
    found = db._scope(mldb.Lsn(lsn)).find(b"\x05")
    return 0 if found is None else found.commit_lsn


def value(number: int) -> np.ndarray[Any, Any]:
    """Values that are nearly the same, so that a difference pays."""
    found = np.arange(60, dtype=np.int16)
    found[:number] += 1
    return found


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Any gain is worth a rewrite, two small segments are merged, and deltas are made."""
    monkeypatch.setattr(plan_module, "GAIN_SHARE", -100.0)
    monkeypatch.setattr(plan_module, "COLD_SHARE", 0.0)
    monkeypatch.setattr(plan_module, "MERGED_MIN", 2)
    with made_up_deltas():
        yield


KINDS: dict[str, tuple[int, Any]] = {
    "store": (8, NAMES),
    "many": (4, (1, 2, 3, 4)),
    "delete": (1, NAMES),
    "metadata": (2, NAMES),
    "relate": (2, NAMES),
    "checkpoint": (2, ("x", "y")),
    "lake": (1, (1, 2)),
    "refer": (3, NAMES),
    "tag": (1, ("p", "q")),
    "pin": (1, ("",)),
    "rewind": (2, ("",)),
    "retain": (
        2,
        (
            {"last": 1},
            {"last": 2, "abandoned": timedelta(0)},
            {"every": 3, "checkpoints": 1},
            {"last": 2, "every": 2, "checkpoints": 0},
            {"abandoned": timedelta(0)},
            {"max_bytes": 12_000, "checkpoints": 1},
        ),
    ),
    "compact": (3, (True, False)),
    "reopen": (1, ("",)),
}
"""How often each step comes, and what it may be about."""


def long_run(seed: int, count: int) -> Run:
    """Do so many steps by chance."""
    rng = np.random.default_rng(seed)
    run = Run()
    kinds = [kind for kind, (weight, _) in KINDS.items() for _ in range(weight)]
    for _ in range(count):
        kind = kinds[rng.integers(len(kinds))]
        about = KINDS[kind][1]
        what = about[rng.integers(len(about))]
        run.do(
            kind,
            what,
            int(rng.integers(100)) % (4 if kind != "rewind" else 100),
            rng.random() < 0.5,
        )
    run.compact(bool(rng.integers(2)))
    run.db.close()
    return run


@pytest.mark.parametrize("number", range(6))
def test_long_runs_lose_nothing_that_is_left(number: int) -> None:
    run = long_run(number, 70)
    assert run.compacted > 1
    assert run.pruned


@pytest.mark.large
def test_many_long_runs_lose_nothing_that_is_left(seed: int) -> None:
    pruned = sum(long_run(seed + number, 90).pruned > 0 for number in range(150))
    assert pruned > 100


@examples(40)
@given(steps)
def test_every_commit_that_is_left_shows_what_it_showed(
    todo: list[tuple[str, Any, int, bool]],
) -> None:
    """Under any order of commits, rewinds, tags, pins, references, policies and compactions.

    And what is left is what the policy says, no more and no less.
    """
    run = Run()
    for step in todo:
        run.do(*step)
    run.compact(True)
    run.db.close()
    run.db = mldb.MLDatabase.on(run.fs, **OPTIONS)
    run.check()
    run.compact(False)
    run.db.close()


@pytest.mark.parametrize("folder", ["format-1", "format-2"])
def test_the_golden_stores_show_what_they_showed(folder: str, tmp_path: Path) -> None:
    """Of both versions: every layout, packed and spilled tensors, lakes, checkpoints, rewinds."""
    source = Path(__file__).parent.parent / "golden" / folder
    shutil.copytree(source, tmp_path / "before")
    shutil.copytree(source, tmp_path / "store")
    with (
        mldb.open(tmp_path / "before") as before,
        mldb.open(tmp_path / "store", durability="os") as db,
    ):
        for each in (before, db):
            each.store_tensor("one", np.arange(3))  # the torn tail is repaired, the format raised
        compact_all(db, cold="all")
        lsns = kept_of(before)
        assert kept_of(db) == lsns
        assert db.verify().ok
        assert any(info.kind == fmt.FILE_COMPACTED for info in db._log.state.manifest.segments)
        for old, new in zip(lsns, kept_of(db), strict=True):
            assert plain(db, new) == plain(before, old)
        events = [(type(event), event.lsn) for event in before.events()]
        assert [(type(event), event.lsn) for event in db.events()] == events
    with mldb.open(tmp_path / "store", mode="r") as again:
        assert again.verify().ok


def plain(db: mldb.MLDatabase, lsn: int) -> Any:
    """What a commit shows, but for what cannot be compared by itself."""
    with db.at(lsn=lsn) as snapshot:
        return (
            {name: bytes(stored(snapshot, name)) for name in snapshot.names()},
            {name: repr(snapshot.metadata(name)) for name in snapshot.names()},
            snapshot.relationships(),
            repr(snapshot.checkpoints()),
        )


def stored(snapshot: Any, name: str) -> memoryview:
    """The decoded bytes of a tensor of any layout."""
    scope = snapshot._scope()
    return stored_bytes(scope, scope.tensor_entry(name), name)
