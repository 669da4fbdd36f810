"""Conflicts of listings and reads, judged by what changed, against a comparison of everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb import keys
from mldb.log import format as fmt
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import CommitRow, Entry, Intervals
from mldb.log.index.lineage import is_visible
from mldb.log.view import View
from mldb.write import handle
from mldb.write.rules import ReadCheck, ReadSet
from tests.support.parts import examples

NAMES = ["a", "b", "ab", "c"]
READ = [keys.TENSORS + name.encode() for name in NAMES]
LISTED = [keys.TENSORS, keys.RELATIONS, keys.relation_key(b"a", b"k", b""), keys.CHECKPOINTS]

steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "delete", "relate", "relate", "unrelate", "rewind"]),
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
        st.integers(0, 9),
    ),
    max_size=6,
)


def play(db: mldb.MLDatabase, moves: list[Any], lsns: list[mldb.Lsn]) -> View:
    for kind, name, other, number in moves:
        if kind == "put":
            db[name] = number
        elif kind == "delete":
            db.pop(name, None)
        elif kind == "relate":
            db.create_relationship(name, other, "k", {"n": number})
        elif kind == "unrelate":
            if db.relationships(name, other, "k"):
                db.delete_relationship(name, other, "k")
        else:
            db.rewind(lsns[-1 - number % len(lsns)])
        lsns.append(db.lsn)
    return db._log.head()


def version(view: View, key: bytes, intervals: Intervals) -> int:
    entry = view.newest(key, intervals)
    return 0 if entry is None or entry.flags & fmt.ENTRY_TOMBSTONE else entry.commit_lsn


def listed(view: View, prefix: bytes) -> dict[bytes, int]:
    """All that exists under a prefix; a tensor counts by its name alone."""
    by_name = prefix[:1] == keys.TENSORS
    return {
        key: 0 if by_name else entry.commit_lsn for key, entry in view.live(prefix, view.intervals)
    }


def conflicts(begin: View, now: View, reads: ReadSet) -> bool:
    """Compare everything that was read with what there is now."""
    if not reads or now.commit.lsn == begin.commit.lsn:
        return False
    if begin.commit.lsn and not is_visible(begin.commit.lsn, now.intervals):
        return True
    return any(version(now, key, now.intervals) != lsn for key, lsn in reads.keys.items()) or any(
        listed(now, prefix) != listed(begin, prefix) for prefix in reads.listings
    )


def refuses(check: Callable[[View], None], view: View) -> bool:
    try:
        check(view)
    except mldb.ConflictError as error:
        assert "Nothing was stored" in str(error)
        return True
    return False


@given(steps, steps, steps, st.sets(st.sampled_from(READ)), st.sets(st.sampled_from(LISTED)))
@examples(150)
def test_a_check_in_two_steps_refuses_what_a_comparison_of_everything_refuses(
    before: list[Any], early: list[Any], late: list[Any], read: set[bytes], listings: set[bytes]
) -> None:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os", segment_entries=5) as db:
        lsns = [mldb.Lsn(0)]
        begin = play(db, before, lsns)
        reads = ReadSet({key: version(begin, key, begin.intervals) for key in read}, listings)
        looked = play(db, early, lsns)
        check = ReadCheck(begin.commit, reads)
        refused = refuses(check.look, looked)
        assert refused == conflicts(begin, looked, reads)
        if refused:
            return
        now = play(db, late, lsns)
        assert refuses(check, now) == conflicts(begin, now, reads)
        assert refuses(check, now) == conflicts(begin, now, reads), "it may be asked again"
        assert refuses(ReadCheck(begin.commit, reads), now) == conflicts(begin, now, reads)


def test_a_rewind_behind_what_was_looked_at_is_judged_from_the_beginning() -> None:
    """What was looked at had a name come and go; the rewind brings it back."""
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        db["a"] = 1
        begin = db._log.head()
        check = ReadCheck(begin.commit, ReadSet({}, {keys.TENSORS}))
        middle = db.store_tensor("b", 1)
        del db["b"]
        check.look(db._log.head())
        assert not refuses(check, db._log.head())
        db.rewind(middle)
        assert conflicts(begin, db._log.head(), ReadSet({}, {keys.TENSORS}))
        assert refuses(check, db._log.head())


# --- in transactions ------------------------------------------------------------------------------


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What is put in here happens after the look at the reads and before the commit lock."""
    steps: list[Callable[[], object]] = []
    commit = handle.Handle.commit_staging

    def late(self: Any, staging: Any, epoch: Any, validate: Any = None) -> CommitRow:
        while steps:
            steps.pop()()
        return commit(self, staging, epoch, validate)

    monkeypatch.setattr(handle.Handle, "commit_staging", late)
    return steps


def edges(db: mldb.MLDatabase) -> Any:
    return db.create_relationship("a", "b", "k")


@pytest.mark.parametrize("how", ["len", "iter", "edges"])
@pytest.mark.parametrize("when", ["before", "between"])
@pytest.mark.parametrize("what", ["new", "gone", "again", "edge", "rewound", "nothing"])
def test_a_listing_is_refused_when_its_names_changed(
    between: list[Callable[[], object]], how: str, when: str, what: str
) -> None:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        db["a"] = db["b"] = 1
        edges(db)
        start = db.lsn
        db["c"] = 1
        change: Callable[[], object] = {
            "new": lambda: db.store_tensor("d", 1),
            "gone": lambda: db.delete_tensor("a"),
            "again": lambda: db.store_tensor("a", 2),
            "edge": lambda: edges(db),
            "rewound": lambda: db.rewind(start),
            "nothing": lambda: None,
        }[what]
        expected = {"len": ("new", "gone", "rewound"), "edges": ("edge", "rewound")}
        wrong = what in expected.get(how, expected["len"])

        def attempt() -> None:
            with db.transaction() as txn:
                if how == "edges":
                    assert len(txn.relationships()) == 1
                else:
                    assert (len(txn) if how == "len" else len(list(txn))) == 3
                txn["mine"] = 1
                if when == "before":
                    change()
                else:
                    between.append(change)

        if wrong:
            with pytest.raises(mldb.ConflictError):
                attempt()
        else:
            attempt()
        assert ("mine" in db) != wrong
        assert between == []


def test_under_the_commit_lock_only_what_came_in_between_is_asked_for(
    between: list[Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os", segment_entries=100) as db:
        with db.transaction() as txn:
            for number in range(500):
                txn[f"n{number:03d}"] = 1
        asked: list[bytes] = []
        listings: list[bytes] = []
        newest, live = View.newest, View.live_keys

        def noted(view: View, key: bytes, intervals: Intervals) -> Entry | None:
            asked.append(key)
            return newest(view, key, intervals)

        def walked(view: View, prefix: bytes, intervals: Intervals) -> Any:
            listings.append(prefix)
            return live(view, prefix, intervals)

        monkeypatch.setattr(View, "newest", noted)
        monkeypatch.setattr(View, "live_keys", walked)

        def late() -> None:
            db["n001"] = 2
            asked.clear()

        with db.transaction() as txn:
            assert len(list(txn)) == 500
            txn["mine"] = 1
            for number in range(100, 120):
                db[f"n{number:03d}"] = 2
            between.append(late)
        assert asked == [keys.TENSORS + b"n001"]
        assert listings == [keys.TENSORS], "that of the transaction itself"


def test_of_many_reads_those_that_changed_are_asked_for(
    between: list[Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with mldb.MLDatabase.on(MemoryFileSystem(), durability="os") as db:
        names = [f"n{number:03d}" for number in range(200)]
        for name in names:
            db[name] = 1
        asked: list[bytes] = []
        newest = View.newest

        def noted(view: View, key: bytes, intervals: Intervals) -> Entry | None:
            asked.append(key)
            return newest(view, key, intervals)

        monkeypatch.setattr(View, "newest", noted)

        def late() -> None:
            db["other"] = 2
            asked.clear()

        with db.transaction() as txn:
            assert sum(int(txn[name]) for name in names) == 200
            txn["mine"] = 1
            between.append(late)
        assert asked == []
        with (  # noqa: PT012
            pytest.raises(mldb.ConflictError, match="'n007' changed"),
            db.transaction() as txn,
        ):
            assert sum(int(txn[name]) for name in names) == 200
            txn["mine"] = 2
            between.append(lambda: db.store_tensor("n007", 3))
        assert int(db["mine"]) == 1
