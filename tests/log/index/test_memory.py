"""The index of the active segment against a list of everything, searched from end to end."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.log.index import memory
from mldb.log.index.address import CommitRow, Entry, Intervals
from mldb.log.index.lineage import is_visible, spelled
from mldb.log.index.memory import CommitField, MemoryIndex
from tests.support.logs import KEYS, SEGMENT_ID, History, histories


def newest(history: History, key: bytes, intervals: Intervals) -> Entry | None:
    """The last version of a key inside the intervals, by looking at all of them."""
    every = [entry for entries in history.entries for name, entry in entries if name == key]
    seen = [entry for entry in every if is_visible(entry.commit_lsn, intervals)]
    return seen[-1] if seen else None


def keys_of(history: History) -> set[bytes]:
    return {key for entries in history.entries for key, _ in entries}


@given(histories())
def test_newest_and_versions_are_what_a_search_of_everything_finds(history: History) -> None:
    index = history.memory()
    index.check()
    for key in keys_of(history) | {b"\x01never"}:
        every = [entry for entries in history.entries for name, entry in entries if name == key]
        assert list(index.versions(key)) == every
        for intervals in history.heads():
            assert index.newest(key, intervals) == newest(history, key, intervals)


@given(histories(), st.binary(max_size=2) | KEYS, KEYS, st.integers(0, 12))
def test_keys_are_sorted_and_start_with_the_prefix(
    history: History, prefix: bytes, start: bytes, few: int
) -> None:
    """As few, sorted anew, as many, sorted in, and at the step from one to the other."""
    index, known = MemoryIndex(), set[bytes]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_FEW_NAMES", few)
        for commit, entries in zip(history.rows, history.entries, strict=True):
            index.add(commit, entries)
            known.update(key for key, _ in entries)
            want = sorted(key for key in known if key.startswith(prefix))
            assert list(index.keys(prefix)) == want
            assert list(index.keys_from(prefix, start)) == [key for key in want if key >= start]


@given(histories(), st.integers(0, 30), st.integers(0, 30))
def test_commits_by_lsn(history: History, low: int, high: int) -> None:
    index = history.memory()
    assert list(index.commits(low, high)) == [row for row in history.rows if low <= row.lsn <= high]
    by_lsn = {row.lsn: row for row in history.rows}
    assert [index.commit_at(lsn) for lsn in range(31)] == [by_lsn.get(lsn) for lsn in range(31)]
    ends = (history.rows[0].lsn, history.rows[-1].lsn) if history.rows else (0, 0)
    assert (index.first_lsn, index.last_lsn) == ends


@given(histories(), st.integers(-1, 20), st.sampled_from(["epoch", "time"]))
def test_last_commit_along_every_lineage(history: History, limit: int, field: CommitField) -> None:
    index = history.memory()
    for intervals in history.heads():
        for low, high in spelled(intervals):
            inside = [row for row in history.rows if low <= row.lsn <= high]
            fitting = [row for row in inside if getattr(row, field) <= limit]
            assert index.last_commit(low, high, field, limit) == (fitting[-1] if fitting else None)


@given(histories(), st.integers(0, 8))
def test_a_snapshot_does_not_see_what_is_added_later(history: History, count: int) -> None:
    """Readers hold intervals while the writer adds; every answer stays as it was."""
    index = MemoryIndex()
    early = History(history.rows[:count], history.entries[:count], history.jumps)
    for row, entries in zip(early.rows, early.entries, strict=True):
        index.add(row, entries)
    intervals = early.heads()[-1]
    before = {key: index.newest(key, intervals) for key in keys_of(history)}
    for row, entries in zip(history.rows[count:], history.entries[count:], strict=True):
        index.add(row, entries)
    assert {key: index.newest(key, intervals) for key in keys_of(history)} == before
    assert index.entry_count() == sum(map(len, history.entries))


def row(lsn: int) -> CommitRow:
    return CommitRow(lsn, lsn - 1, lsn, lsn, lsn, 128, 200, b"")


def entry(lsn: int) -> Entry:
    return Entry(lsn, SEGMENT_ID, 128, 256, 4, b"", 0, 0, 0, b"", b"")


@pytest.mark.parametrize("few", [300, 1 << 10])
def test_keys_may_be_listed_while_others_are_added(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first listing after an addition sorts the new keys in; two threads may list at once."""
    monkeypatch.setattr(memory, "_FEW_NAMES", few)
    index = MemoryIndex()
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                found = list(index.keys(b""))
                assert found == sorted(set(found))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for lsn in range(1, 1500):
        index.add(row(lsn), [(b"\x01%d" % (lsn % 700), entry(lsn))])
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert len(list(index.keys(b""))) == 700
    index.check()


def test_an_iterator_of_keys_is_not_disturbed_by_additions() -> None:
    index = MemoryIndex()
    index.add(row(1), [(b"\x01a", entry(1)), (b"\x01c", entry(1))])
    keys = index.keys(b"\x01")
    assert next(keys) == b"\x01a"
    index.add(row(2), [(b"\x01b", entry(2))])
    assert list(keys) == [b"\x01c"]
    assert list(index.keys(b"\x01")) == [b"\x01a", b"\x01b", b"\x01c"]


def test_check_finds_what_must_not_be() -> None:
    index = MemoryIndex()
    index.add(row(2), [(b"\x01a", entry(2))])
    index.add(row(1), [(b"\x01a", entry(1))])
    with pytest.raises(AssertionError):
        index.check()
