"""Counts of names: right after every operation, and made without asking for names."""

from __future__ import annotations

import threading
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mldb
from mldb import keys
from mldb.log import counts
from mldb.log.counts import KeyCounts
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import Entry, Intervals
from mldb.log.view import View
from tests.support.parts import examples

NAMES = [f"{group}{number}" for group in ("a", "ab", "b") for number in range(3)]
PREFIXES = ["", "a", "ab", "ab1", "b", "c"]

steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "delete", "rewind", "other", "reopen"]),
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True),
        st.integers(0, 10),
        st.sampled_from(PREFIXES),
    ),
    max_size=14,
)


def counted(db: Any, prefix: str, as_of: Any = None) -> None:
    """Compare the count with a walk."""
    names = db.names(prefix, as_of=as_of)
    assert db.count(prefix, as_of=as_of) == len(names)
    if not prefix and as_of is None:
        assert len(db) == len(names)


def write(db: mldb.MLDatabase, names: list[str], *, delete: bool) -> None:
    with db.transaction() as txn:
        for name in names:
            if not delete:
                txn[name] = 1
            elif name in txn:
                del txn[name]


@given(steps, st.integers(1, 6), st.sampled_from([0, 64]))
@examples(80)
def test_counts_are_those_of_a_walk_after_every_operation(
    moves: list[Any], entries: int, few: int
) -> None:
    """Puts, deletions and rewinds, of this handle and of another one, asked for now and then."""
    fs = MemoryFileSystem()
    options: Any = {"durability": "os", "segment_entries": entries}
    db, other = (mldb.MLDatabase.on(fs, **options) for _ in range(2))
    lsns = [mldb.Lsn(0)]
    with mock.patch.object(counts, "_CATCH_UP_MIN", few):
        for kind, names, number, prefix in moves:
            if kind == "rewind":
                db.rewind(lsns[number % len(lsns)])
            elif kind == "reopen":
                db.close()
                db = mldb.MLDatabase.on(fs, **options)
            else:
                write(other if kind == "other" else db, names, delete=kind == "delete")
            lsns.append(db.lsn)
            counted(db, prefix)
            counted(db, prefix, lsns[number % len(lsns)])
            if number % 3 == 0:
                counted(db, "")
            with db.transaction() as txn:
                txn[f"a{number}"] = txn["new"] = 1
                if "b0" in txn:
                    del txn["b0"]
                assert len(txn) == len(list(txn))
                raised = db.at(lsns[-1])
            with raised:
                assert len(raised) == len(raised.names())


class Asked:
    """Counts the lookups of single keys in all views."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.keys: list[bytes] = []
        newest = View.newest

        def noted(view: View, key: bytes, intervals: Intervals) -> Entry | None:
            self.keys.append(key)
            return newest(view, key, intervals)

        patch.setattr(View, "newest", noted)


def grown(names: int, entries: int = 40) -> mldb.MLDatabase:
    db = mldb.MLDatabase.on(MemoryFileSystem(), durability="os", segment_entries=entries)
    for low in range(0, names, 20):
        write(db, [f"n{number:04d}" for number in range(low, low + 20)], delete=False)
    return db


def test_a_count_asks_for_the_names_that_changed_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with grown(400) as db:
        asked = Asked(monkeypatch)
        assert len(db) == 400
        assert len(db) == 400
        assert asked.keys == []
        assert db.stats()["counts"]["walked"] == 1
        db["n0003"] = 2
        db["new"] = db["n0003"] = 3
        del db["n0007"]
        asked.keys.clear()
        assert len(db) == 400
        assert sorted(asked.keys) == [keys.TENSORS + name for name in (b"n0003", b"n0007", b"new")]
        assert len(db) == 400
        assert db.stats()["counts"] == {
            "remembered": 2,
            "walked": 1,
            "caught_up": 1,
            "looked_up": 3,
        }


def test_a_put_asks_for_nothing_on_behalf_of_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with grown(100) as db:
        assert len(db) == 100
        asked = Asked(monkeypatch)
        for number in range(30):
            db[f"new{number}"] = number
        assert asked.keys == []
        assert len(db) == 130


def test_rewinds_and_earlier_moments_count_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    with grown(100) as db:
        early = db.history("n0030")[0].lsn
        assert len(db) == 100
        asked = Asked(monkeypatch)
        assert db.count(as_of=early) == 40
        db.rewind(early)
        assert len(db) == 40
        assert db.count("n000") == 10
        assert asked.keys == []


def test_after_many_changes_columns_are_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    with grown(200, 1000) as db:
        assert len(db) == 200
        for low in range(200, 400, 20):
            write(db, [f"n{number:04d}" for number in range(low, low + 20)], delete=False)
        asked = Asked(monkeypatch)
        assert len(db) == 400
        assert asked.keys == []
        assert db.stats()["counts"]["walked"] == 2


def test_what_retention_took_is_no_ground_to_count_on() -> None:
    with grown(60) as db:
        view = db._log.head()
        known = KeyCounts()
        early = view.jumps.intervals_at(db.history("n0030")[0].lsn)
        assert known.count(view, keys.TENSORS, early) == 40
        pruned = view._replace(kept=((view.commit.lsn, view.commit.lsn),))
        assert known.count(pruned, keys.TENSORS, view.intervals) == 60
        assert (known.walked, known.caught_up) == (2, 0)
        del db["n0001"]
        assert known.count(db._log.head(), keys.TENSORS, db._log.head().intervals) == 59
        assert (known.walked, known.caught_up) == (2, 1)


def test_no_more_counts_are_remembered_than_there_is_room_for() -> None:
    with grown(20) as db:
        for number in range(200):
            assert db.count(f"n{number:04d}") == (number < 20)
            db["x"] = number
            assert len(db) == 21
        assert db.stats()["counts"]["remembered"] == counts._COUNTS_MAX


def test_many_threads_count_while_others_store() -> None:
    with grown(100) as db:
        failures: list[BaseException] = []
        done = threading.Event()

        def count() -> None:
            try:
                least = 100
                while not done.is_set():
                    found = len(db)
                    assert least <= found <= 300
                    least = found
                    with db.at() as fixed:
                        assert len(fixed) == len(fixed.names())
            except BaseException as error:  # noqa: BLE001 - handed to the test
                failures.append(error)

        threads = [threading.Thread(target=count) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(200):
            db[f"new{number}"] = number
        done.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(db) == 300


@pytest.mark.parametrize("prefix", [1, b"n", None])
def test_a_prefix_is_text(prefix: Any) -> None:
    with grown(20) as db, pytest.raises(mldb.InvalidTypeError, match="prefix"):
        db.count(prefix)
