"""Lineages: intervals against a walk along the parents, one commit at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.log.index.address import Intervals
from mldb.log.index.lineage import (
    Jump,
    checked_jumps,
    intervals_at,
    is_visible,
    newest_visible,
    visible_mask,
)

Parents = dict[int, int]


@st.composite
def histories(draw: st.DrawFn) -> Parents:
    """Commits with gaps between their LSNs, and the parent of each; most follow the one before."""
    parents: Parents = {}
    lsn = 0
    for _ in range(draw(st.integers(0, 12))):
        before = lsn
        lsn += draw(st.integers(1, 3))
        rewinds = draw(st.integers(0, 3)) == 0
        parents[lsn] = draw(st.sampled_from([0, *parents])) if rewinds else before
    return parents


def jumps_of(parents: Parents) -> list[Jump]:
    """The pairs that the log notes: commits that do not continue the one before them."""
    before = {lsn: last for last, lsn in zip([0, *parents], parents, strict=False)}
    return [(lsn, parent) for lsn, parent in parents.items() if parent != before[lsn]]


def walk(parents: Parents, lsn: int) -> set[int]:
    """The commits that lead to *lsn*, itself included."""
    found = set()
    while lsn:
        found.add(lsn)
        lsn = parents[lsn]
    return found


@given(histories())
def test_intervals_are_what_the_parents_lead_to(parents: Parents) -> None:
    jumps = jumps_of(parents)
    for lsn in parents:
        intervals = intervals_at(jumps, lsn)
        assert {item for item in parents if is_visible(item, intervals)} == walk(parents, lsn)


@given(histories())
def test_intervals_ascend_and_do_not_touch_each_other(parents: Parents) -> None:
    for lsn in parents:
        intervals = intervals_at(jumps_of(parents), lsn)
        edges = [edge for interval in intervals for edge in interval]
        assert edges == sorted(edges)
        assert all(low <= high for low, high in intervals)
        assert intervals[-1][1] == lsn


@given(histories(), st.data())
def test_newest_visible_is_the_last_along_the_parents(
    parents: Parents, data: st.DataObject
) -> None:
    head = data.draw(st.sampled_from([0, *parents]))
    lsns = sorted(data.draw(st.sets(st.sampled_from([*parents]))) if parents else ())
    index = newest_visible(lsns, intervals_at(jumps_of(parents), head))
    seen = [lsn for lsn in lsns if lsn in walk(parents, head)]
    assert (lsns[index] if index >= 0 else None) == (seen[-1] if seen else None)


@given(histories())
def test_jumps_of_a_history_are_taken_back_from_a_file(parents: Parents) -> None:
    jumps = jumps_of(parents)
    assert checked_jumps([list(jump) for jump in jumps]) == tuple(jumps)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=4), st.integers(0, 8))
def test_jumps_that_are_taken_never_send_a_walk_in_circles(stored: list[Jump], lsn: int) -> None:
    """A jump to itself, or forward, once kept intervals_at busy until memory ran out."""
    try:
        jumps = checked_jumps(stored)
    except ValueError:
        return
    assert len(intervals_at(jumps, lsn)) <= len(jumps) + 1


@pytest.mark.parametrize(
    "stored",
    [[(5, 7)], [(5, 5)], [(6, 1), (5, 1)], [(5, 1), (5, 2)], [(5, -1)], [("5", 1)], [(5.0, 1)]],
)
def test_impossible_jumps_are_refused(stored: list[tuple[object, object]]) -> None:
    with pytest.raises(ValueError, match="jump"):
        checked_jumps(stored)


def test_the_example_of_the_format_document() -> None:
    assert intervals_at([(6, 2)], 8) == ((1, 2), (6, 8))
    assert intervals_at([(6, 2)], 5) == ((1, 5),)
    assert intervals_at([(6, 2)], 0) == ()


def test_a_rewind_to_the_empty_state_sees_nothing_before() -> None:
    intervals: Intervals = intervals_at([(6, 0)], 8)
    assert intervals == ((6, 8),)
    assert newest_visible([1, 5], intervals) == -1


@given(histories(), st.lists(st.integers(0, 40)))
def test_many_commits_are_judged_as_each_is(parents: Parents, lsns: list[int]) -> None:
    jumps = jumps_of(parents)
    for intervals in [(), *(intervals_at(jumps, lsn) for lsn in parents)]:
        found = visible_mask(np.array(lsns, np.uint64), intervals)
        assert found.dtype == np.bool_
        assert found.tolist() == [is_visible(lsn, intervals) for lsn in lsns]
