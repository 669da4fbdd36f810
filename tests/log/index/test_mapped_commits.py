"""Commits of a mapped index: the same however often they are asked for, and read as seldom."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.log.index import mapped_commits
from mldb.log.index.address import CommitRow
from mldb.log.index.columns import build_index
from mldb.log.index.lineage import spelled
from mldb.log.index.mapped import MappedIndex
from mldb.log.index.memory import CommitField
from tests.support.logs import SEGMENT_ID, History, histories, reader_of


def mapped(history: History, touched: list[tuple[int, int]] | None = None) -> MappedIndex:
    return MappedIndex(reader_of(build_index(*history.memory().dump()), touched), SEGMENT_ID)


def of_commits(count: int) -> History:
    rows = [
        CommitRow(lsn, lsn - 2, lsn // 3, lsn * 10, -lsn, lsn * 100, lsn * 100 + 50, b"")
        for lsn in range(2, 2 * count + 2, 2)
    ]
    return History(rows, [[] for _ in rows], [])


@given(histories())
def test_who_asks_often_is_told_the_same(history: History) -> None:
    memory, index = history.memory(), mapped(history)
    lsns = [*range(-1, 31), 2**63 - 1]
    for _ in range(3):
        assert [index.commit_at(lsn) for lsn in lsns] == [memory.commit_at(lsn) for lsn in lsns]
    assert (index._whole is None) == (index._asked_for < mapped_commits._ASKED_OFTEN)


@given(histories(), st.integers(0, 30), st.integers(0, 30), st.integers(-1, 20))
def test_ranges_are_the_same_once_the_columns_are_looked_at_as_a_whole(
    history: History, low: int, high: int, limit: int
) -> None:
    memory, index = history.memory(), mapped(history)
    index._asked_for = mapped_commits._ASKED_OFTEN
    index.commit_at(-1)
    assert index._whole is not None
    assert list(index.commits(low, high)) == list(memory.commits(low, high))
    placed = [(SEGMENT_ID, row) for row in memory.commits(low, high)]
    assert list(index.placed(low, high)) == placed
    fields: tuple[CommitField, ...] = ("epoch", "time")
    for field in fields:
        for first, last in itertools.chain.from_iterable(map(spelled, history.heads())):
            expected = memory.last_commit(first, last, field, limit)
            assert index.last_commit(first, last, field, limit) == expected


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 600])
def test_many_commits_come_in_pieces(count: int) -> None:
    history = of_commits(count)
    assert list(mapped(history).commits(1, 4 * count)) == history.rows


def test_a_search_along_a_lineage_reads_the_columns_once() -> None:
    """Each rewind that a fresh ``as_of`` looked at cost a search in the file: 0.7 ms in all."""
    touched: list[tuple[int, int]] = []
    index = mapped(of_commits(1000), touched)
    for _ in range(mapped_commits._ASKED_OFTEN):
        assert index.commit_at(500) is not None
    touched.clear()
    assert [index.commit_at(lsn) for lsn in (2, 3, 700)] == [
        CommitRow(2, 0, 0, 20, -2, 200, 250, b""),
        None,
        CommitRow(700, 698, 233, 7000, -700, 70_000, 70_050, b""),
    ]
    assert touched == []


def test_a_part_of_very_many_commits_is_not_read_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mapped_commits, "_WHOLE_MAX", 99)
    index = mapped(of_commits(100))
    for _ in range(2 * mapped_commits._ASKED_OFTEN):
        assert index.commit_at(100) is not None
    assert index._whole is None
