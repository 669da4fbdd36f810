"""Views: however the log is cut into segments, one moment of it answers in the same way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.log import format as fmt
from mldb.log.frame import Draft, Record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import EMPTY_COMMIT, CommitRow, Intervals
from mldb.log.index.memory import CommitField
from mldb.log.log import Log
from mldb.log.view import EMPTY_VIEW, View, make_view
from tests.support.logs import open_log, read, store
from tests.support.parts import examples

KEYS = [b"\x01", b"\x01a", b"\x01ab", b"\x01b", b"\x02", b"\xff\xff"]
PREFIXES = [b"", b"\x01", b"\x01a", b"\x01c", b"\x02", b"\xff"]

steps = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(KEYS), st.booleans(), max_size=3),  # key: is it deleted
        st.integers(0, 2),  # how much later the epoch is
        st.integers(0, 6),  # 0: rewind; the rest: go on
    ),
    max_size=10,
)


class Oracle:
    """The same history as plain lists."""

    def __init__(self) -> None:
        self.rows: list[CommitRow] = []
        self.changes: list[dict[bytes, bool]] = []

    def add(self, row: CommitRow, changes: dict[bytes, bool]) -> None:
        self.rows.append(row)
        self.changes.append(changes)

    def lineage(self, lsn: int) -> list[int]:
        """The commits that lead to one, oldest first."""
        parents = {row.lsn: row.parent for row in self.rows}
        found = []
        while lsn:
            found.append(lsn)
            lsn = parents[lsn]
        return found[::-1]

    def state(self, lsn: int) -> dict[bytes, tuple[int, bool]]:
        """Of every key its newest version at a commit: where it is from, and if it is deleted."""
        by_lsn = {row.lsn: changes for row, changes in zip(self.rows, self.changes, strict=True)}
        found: dict[bytes, tuple[int, bool]] = {}
        for own in self.lineage(lsn):
            for key, deleted in by_lsn[own].items():
                found[key] = (own, deleted)
        return found


def play(log: Log, moves: list[Any]) -> Oracle:
    """Commit *moves* to a log and to the oracle."""
    oracle = Oracle()
    for changes, later, turn in moves:
        drafts = [
            Draft(key, fmt.ENTRY_TOMBSTONE if deleted else 0, 0, 0, 0, b"", 0, b"")
            for key, deleted in changes.items()
        ]

        def decide(view: View, later: int = later, turn: int = turn) -> tuple[int, CommitRow]:
            rows = [EMPTY_COMMIT, *oracle.rows]
            parent = rows[(7 * len(rows)) // 11] if turn == 0 else rows[-1]
            return parent.epoch + later, parent

        row = log.commit([Record(16 | fmt.MUST_UNDERSTAND, drafts)], decide)
        oracle.add(row, changes)
    return oracle


def check(view: View, oracle: Oracle) -> None:
    """Compare every answer of a view with the oracle's."""
    rows = oracle.rows
    assert view.commit == (rows[-1] if rows else EMPTY_COMMIT)
    assert [row for _, row in view.commits(0, fmt.LSN_MAX)] == rows
    for low, high in ((0, 3), (3, 9), (view.commit.lsn, view.commit.lsn), (5, 4)):
        inside = [row for row in rows if low <= row.lsn <= high]
        assert [row for _, row in view.commits(low, high)] == inside
    for lsn in range(1, view.commit.lsn + 2):
        assert view.commit_at(lsn) == next((row for row in rows if row.lsn == lsn), None)
    touched = sorted({key for changes in oracle.changes for key in changes})
    for prefix in PREFIXES:
        assert list(view.keys(prefix)) == [key for key in touched if key.startswith(prefix)]
    for key in KEYS:
        own = [row.lsn for row, changes in zip(rows, oracle.changes, strict=True) if key in changes]
        assert [entry.commit_lsn for entry in view.versions(key)] == own
    for row in [EMPTY_COMMIT, *rows]:
        intervals = view.jumps.intervals_at(row.lsn)
        check_lineage(view, oracle, row.lsn, intervals)
    head = view.jumps.intervals_at(view.commit.lsn)
    assert view.intervals == head


def check_lineage(view: View, oracle: Oracle, lsn: int, intervals: Intervals) -> None:
    state = oracle.state(lsn)
    for key in KEYS:
        entry = view.newest(key, intervals)
        found = None if entry is None else (entry.commit_lsn, bool(entry.flags))
        assert found == state.get(key)
    live = {key: own for key, (own, deleted) in sorted(state.items()) if not deleted}
    for prefix in PREFIXES:
        assert [(key, entry.commit_lsn) for key, entry in view.live(prefix, intervals)] == [
            (key, own) for key, own in live.items() if key.startswith(prefix)
        ]
    own_rows = [row for row in oracle.rows if row.lsn in oracle.lineage(lsn)]
    fields: tuple[CommitField, ...] = ("epoch", "time")
    for field in fields:
        for limit in {getattr(row, field) + by for row in own_rows for by in (-1, 0, 1)}:
            below = [row for row in own_rows if getattr(row, field) <= limit]
            assert view.last_commit(intervals, field, limit) == (below[-1] if below else None)


@examples(60)
@given(steps, st.integers(1, 6), st.booleans())
def test_a_log_in_many_segments_answers_as_lists_do(
    moves: list[Any], entries: int, again: bool
) -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os", segment_entries=entries)
    oracle = play(log, moves)
    check(log.head(), oracle)
    if again:
        log.close()
        check(open_log(fs, "r").head(), oracle)  # with a hint
        for name in fs.list("hints"):
            fs.unlink(f"hints/{name}")
    check(open_log(fs, "r").head(), oracle)


def test_a_view_does_not_change_whatever_is_committed_after_it() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=3)
    views = []
    for number in range(10):
        store(log, b"\x01%d" % (number % 4), b"%d" % number, number)
        view = log.head()
        views.append((view, describe(log, view)))
    for view, known in views:
        assert describe(log, view) == known


def describe(log: Log, view: View) -> object:
    live = {key: read(log, view, key, entry) for key, entry in view.live(b"", view.intervals)}
    rows = [row.lsn for _, row in view.commits(0, fmt.LSN_MAX)]
    versions = {key: len(view.versions(key)) for key in live}
    return view.commit, view.jumps, view.intervals, live, rows, versions


def test_the_view_of_nothing_knows_nothing() -> None:
    assert EMPTY_VIEW.newest(b"\x01", ()) is None
    assert list(EMPTY_VIEW.live(b"", ())) == []
    assert EMPTY_VIEW.versions(b"\x01") == []
    assert EMPTY_VIEW.commit_at(0) == EMPTY_COMMIT
    with pytest.raises(AttributeError):
        EMPTY_VIEW.number = 1  # type: ignore[misc]


def test_a_view_made_quickly_is_the_one_that_its_class_makes() -> None:
    view = open_log(MemoryFileSystem()).head()
    made = make_view(tuple(view))
    assert type(made) is View
    assert made == view


def test_a_released_segment_is_mapped_again_by_the_next_question() -> None:
    log = open_log(MemoryFileSystem(), segment_entries=1)
    for number in range(3):
        store(log, b"\x01a", b"%d" % number)
    view = log.head()
    for part in view.sealed:
        assert part.index.entry_count() == 1
        assert part.segment.mapped_bytes
        part.release()
        assert not part.segment.mapped_bytes
    found = [read(log, view, b"\x01a", entry) for entry in view.versions(b"\x01a")]
    assert found == [b"0", b"1", b"2"]
