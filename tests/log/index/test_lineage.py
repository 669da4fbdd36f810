"""Lineages: what is asked of them against a walk along the parents, one commit at a time."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.log.index import lineage
from mldb.log.index.address import Interval, Intervals, Run
from mldb.log.index.lineage import (
    NO_JUMPS,
    Jump,
    Jumps,
    around,
    below,
    checked_jumps,
    in_ranges,
    is_visible,
    lowest,
    newest_unless,
    newest_visible,
    spelled,
    visible_mask,
    within,
)

Parents = dict[int, int]


@st.composite
def histories(draw: st.DrawFn) -> Parents:
    """Commits with gaps between their LSNs, and the parent of each; most follow the one before."""
    rng = draw(st.randoms(use_true_random=False))
    return grown(rng, draw(st.integers(0, 20)), draw(st.sampled_from([0.1, 0.4, 1.0])))


def grown(rng: random.Random, commits: int, rewinds: float) -> Parents:
    """A tree of so many commits, of which this share continue from any older one."""
    parents: Parents = {}
    lsn, known = 0, [0]
    for _ in range(commits):
        before = lsn
        lsn += rng.randint(1, 3)
        parents[lsn] = rng.choice(known[-10:] if rng.random() < 0.7 else known)
        if rng.random() >= rewinds:
            parents[lsn] = before
        known.append(lsn)
    return parents


def jumps_of(parents: Parents) -> Jumps:
    """The pairs that the log notes: commits that do not continue the one before them."""
    before = {lsn: last for last, lsn in zip([0, *parents], parents, strict=False)}
    return Jumps.of((lsn, parent) for lsn, parent in parents.items() if parent != before[lsn])


def walk(parents: Parents, lsn: int) -> set[int]:
    """The commits that lead to *lsn*, itself included."""
    found = set()
    while lsn:
        found.add(lsn)
        lsn = parents[lsn]
    return found


def flat(jumps: Jumps, lsn: int) -> tuple[Interval, ...]:
    """The intervals of a lineage, oldest first, the way they once were made: all of them."""
    found: list[Interval] = []
    while lsn > 0:
        before = [jump for jump in jumps if jump[0] <= lsn]
        if not before:
            found.append((1, lsn))
            break
        found.append((before[-1][0], lsn))
        lsn = before[-1][1]
    return tuple(reversed(found))


# --- what a lineage answers -----------------------------------------------------------------------


@given(histories())
def test_a_commit_is_visible_when_the_parents_lead_to_it(parents: Parents) -> None:
    jumps = jumps_of(parents)
    top = max(parents, default=0) + 2
    for lsn in parents:
        intervals = jumps.intervals_at(lsn)
        seen = walk(parents, lsn)
        assert {item for item in parents if is_visible(item, intervals)} == seen
        lsns = np.array([*parents], np.uint64)
        assert visible_mask(lsns, intervals).tolist() == [item in seen for item in parents]
        every = np.arange(top, dtype=np.int64).reshape(-1, 1)
        mask = visible_mask(every, intervals)
        assert mask.shape == every.shape
        assert mask[:, 0].tolist() == [is_visible(item, intervals) for item in range(top)]


@given(histories())
def test_a_path_is_the_list_of_intervals_that_it_stands_for(parents: Parents) -> None:
    jumps = jumps_of(parents)
    for lsn in [0, *parents]:
        intervals, listed = jumps.intervals_at(lsn), flat(jumps, lsn)
        assert spelled(intervals) == listed
        assert bool(intervals) == bool(listed)
        assert intervals[-1:] == listed[-1:]
        if listed:
            assert lowest(intervals) == lowest(listed) == listed[0][0]
        for item in range(-1, max(parents, default=0) + 2):
            expected = [interval for interval in listed if interval[0] <= item]
            for form in (intervals, listed):
                assert below(item, form) == (expected[-1] if expected else None)


@given(histories(), st.integers(0, 40), st.integers(-1, 40))
def test_what_lies_within_two_lsns_is_cut_out(parents: Parents, low: int, span: int) -> None:
    jumps = jumps_of(parents)
    high = low + span
    for lsn in [0, *parents]:
        listed = flat(jumps, lsn)
        inside = [(max(first, low), min(last, high)) for first, last in listed]
        for intervals in (jumps.intervals_at(lsn), listed):
            assert list(within(intervals, low, high)) == [p for p in inside if p[0] <= p[1]]


@given(histories(), st.data())
def test_newest_visible_is_the_last_along_the_parents(
    parents: Parents, data: st.DataObject
) -> None:
    head = data.draw(st.sampled_from([0, *parents]))
    lsns = sorted(data.draw(st.sets(st.sampled_from([*parents]))) if parents else ())
    seen = [lsn for lsn in lsns if lsn in walk(parents, head)]
    jumps = jumps_of(parents)
    for intervals in (jumps.intervals_at(head), flat(jumps, head)):
        index = newest_visible(lsns, intervals)
        assert (lsns[index] if index >= 0 else None) == (seen[-1] if seen else None)
        assert newest_visible([(lsn,) for lsn in lsns], intervals, lambda item: item[0]) == index


@given(histories(), st.integers(-1, 60), st.sets(st.integers(1, 60)))
def test_where_nobody_knows_an_interval_is_not_left_out(
    parents: Parents, place: int, unknown: set[int]
) -> None:
    """The first commit of a run may have been pruned, so that it cannot be asked."""
    jumps = jumps_of(parents)
    for lsn in [0, *parents]:
        intervals, listed = jumps.intervals_at(lsn), flat(jumps, lsn)
        found = [*newest_unless(intervals, lambda start: start > place and start not in unknown)]
        assert [item for item in found if item[0] <= place] == [
            item for item in reversed(listed) if item[0] <= place
        ]
        assert {item[0] for item in found if item[0] > place} <= unknown


@given(histories(), st.integers(-1, 100))
def test_intervals_beyond_a_place_are_left_out(parents: Parents, place: int) -> None:
    jumps = jumps_of(parents)
    for lsn in [0, *parents]:
        listed = flat(jumps, lsn)
        expected = [interval for interval in reversed(listed) if interval[0] <= place]
        for intervals in (jumps.intervals_at(lsn), listed):
            assert list(newest_unless(intervals, lambda start: start > place)) == expected


@given(histories(), st.data())
def test_what_a_path_leads_to_is_kept_and_stays_true(parents: Parents, data: st.DataObject) -> None:
    """Questions in any order, from any head, while the list grows, with what is kept and not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lineage, "_MEMO_STEPS", data.draw(st.integers(1, 3)))
        jumps, memo = jumps_of(parents), dict[int, int]()
        every = sorted(data.draw(st.sets(st.sampled_from([*parents]))) if parents else ())
        for count in range(len(every) + 1):
            lsns = every[:count]
            for head in data.draw(st.lists(st.sampled_from([0, *parents]), max_size=5)):
                # What comes later has higher LSNs than any head that was asked about before.
                if count < len(every) and head >= every[count]:
                    continue
                intervals = jumps.intervals_at(head)
                expected = newest_visible(lsns, flat(jumps, head))
                assert newest_visible(lsns, intervals, None, memo) == expected
                assert newest_visible(lsns, intervals) == expected


def test_the_example_of_the_format_document() -> None:
    jumps = Jumps.of([(6, 2)])
    assert spelled(jumps.intervals_at(8)) == ((1, 2), (6, 8))
    assert jumps.intervals_at(5) == ((1, 5),)
    assert jumps.intervals_at(0) == ()


def test_a_rewind_to_the_empty_state_sees_nothing_before() -> None:
    intervals = Jumps.of([(6, 0)]).intervals_at(8)
    assert intervals == ((6, 8),)
    assert newest_visible([1, 5], intervals) == -1


# --- what it costs --------------------------------------------------------------------------------


class Counted(Run):
    """A run that counts how often it is looked at."""

    __slots__ = ()
    looks = 0

    def __getattribute__(self, name: str) -> object:
        if name == "low":
            Counted.looks += 1
        return super().__getattribute__(name)


@pytest.mark.parametrize("back", [1, 3, 1000])
def test_no_question_walks_along_a_long_lineage(
    back: int, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """6,000 rewinds, each a few commits back, make a path of thousands of runs."""
    monkeypatch.setattr(lineage, "Run", Counted)
    count = 6000
    jumps = NO_JUMPS
    for number in range(count):
        lsn = 10 * number + 10
        jumps = jumps.then(lsn, max(lsn - 10 * back - 5, 1))
    head = 10 * count + 5
    intervals = jumps.intervals_at(head)
    depth = len(spelled(intervals))
    rng = random.Random(seed)
    asked: list[Callable[[int], object]] = [
        jumps.intervals_at,
        lambda lsn: jumps.then(head + lsn, lsn),
        lambda lsn: below(lsn, intervals),
        lambda lsn: is_visible(lsn, intervals),
        lambda lsn: newest_visible([lsn], intervals),
        lambda lsn: within(intervals, lsn, lsn + 20),
        lambda lsn: next(newest_unless(intervals, lambda start: start > lsn)),
        lambda lsn: visible_mask(np.array([lsn, lsn + 9]), intervals),
    ]
    for question in asked:
        for _ in range(20):
            Counted.looks = 0
            question(rng.randrange(1, head))
            assert Counted.looks < 150, (depth, Counted.looks)


def test_a_rewind_shares_what_came_before() -> None:
    """The memory of 6,000 rewinds with all their lineages; each was a copy of the one before."""
    gc.collect()
    jumps, kept = NO_JUMPS, []
    for number in range(1, 6001):
        jumps = jumps.then(10 * number, 10 * number - 5)
        kept.append((jumps, jumps.intervals_at(10 * number + 5)))
    runs = {id(run) for _, intervals in kept for run in intervals if isinstance(run, Run)}
    assert len(runs) == 6000
    assert all(later[0]._runs is kept[0][0]._runs for later in kept)
    each = sys.getsizeof(Run(2, 1, None)) + sys.getsizeof(jumps) + 3 * sys.getsizeof((1, 2))
    assert 6000 * each < 4 << 20


def test_a_name_that_every_lineage_wrote_is_not_looked_for_on_all_of_them() -> None:
    """Each of 6,000 rewinds leaves one version behind and continues from the rewind before."""
    jumps, lsns, memo = NO_JUMPS, [1], dict[int, int]()
    for number in range(1, 6001):
        jumps = jumps.then(10 * number, 10 * number - 10 if number > 1 else 1)
        lsns.append(10 * number + 5)

    class Counting(list[int]):
        looks = 0

        def __getitem__(self, index: object) -> int:  # type: ignore[override]
            Counting.looks += 1
            return super().__getitem__(index)  # type: ignore[no-any-return, call-overload]

    counting = Counting(lsns)
    assert newest_visible(counting, jumps.intervals_at(60_000), None, memo) == 0
    assert len(memo) < 400
    for number in (6000, 5999, 1234, 17):
        Counting.looks = 0
        assert newest_visible(counting, jumps.intervals_at(10 * number), None, memo) == 0
        assert Counting.looks < 300


# --- jumps ----------------------------------------------------------------------------------------


@given(histories(), st.data())
def test_jumps_are_a_list_that_others_may_extend(parents: Parents, data: st.DataObject) -> None:
    """However they branch, each is what was put into it: a failed sync takes jumps back."""
    every: list[tuple[Jumps, list[Jump]]] = [(NO_JUMPS, [])]
    for _ in range(data.draw(st.integers(0, 12))):
        jumps, listed = data.draw(st.sampled_from(every))
        lsn = (listed[-1][0] if listed else 0) + data.draw(st.integers(1, 2))
        jump = (lsn, data.draw(st.integers(0, lsn - 1)))
        every.append((jumps.then(*jump), [*listed, jump]))
    for jumps, listed in every:
        assert list(jumps) == listed == list(jumps[:])
        assert (len(jumps), jumps) == (len(listed), Jumps.of(listed))
        assert hash(jumps) == hash(Jumps.of(listed))
        assert jumps[1:] == tuple(listed[1:])
        assert jumps == tuple(listed)
        assert jumps != (*listed, (1 << 40, 1))
        for lsn in range(26):
            assert jumps.intervals_at(lsn) == Jumps.of(listed).intervals_at(lsn)
            assert spelled(jumps.intervals_at(lsn)) == flat(jumps, lsn)
            assert list(jumps.up_to(lsn)) == [jump for jump in listed if jump[0] <= lsn]
        for other, its in every:
            assert jumps.starts_with(other) == (listed[: len(its)] == its)


def test_one_that_is_read_again_is_shared() -> None:
    first = Jumps.of([(5, 1)])
    second = first.then(9, 3)
    assert first.then(9, 3)._runs is second._runs
    other = first.then(9, 4)
    assert other._runs is not second._runs
    assert (list(second), list(other)) == ([(5, 1), (9, 3)], [(5, 1), (9, 4)])


def test_two_threads_that_extend_at_once_do_not_mix() -> None:
    """The second one's list holds another run than its own by the time that it looks."""

    class Busy(list[Run]):
        def append(self, run: Run) -> None:
            super().append(Run(9, 3, None))
            super().append(run)

    first = Jumps(Busy([Run(5, 1, None)]), 1)
    assert list(first.then(9, 4)) == [(5, 1), (9, 4)]
    assert list(first.then(9, 3)) == [(5, 1), (9, 3)]


def test_paths_are_equal_when_they_lead_through_the_same() -> None:
    one, two = (Jumps.of([(6, 2), (9, 7)]).intervals_at(9) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    others: list[Intervals] = [
        Jumps.of([(6, 1), (9, 7)]).intervals_at(9),
        Jumps.of([(6, 2), (9, 6)]).intervals_at(9),
        Jumps.of([(9, 7)]).intervals_at(9),
    ]
    assert one not in others


@given(histories())
def test_jumps_of_a_history_are_taken_back_from_a_file(parents: Parents) -> None:
    jumps = jumps_of(parents)
    assert checked_jumps([list(jump) for jump in jumps]) == tuple(jumps)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=4), st.integers(0, 8))
def test_jumps_that_are_taken_never_send_a_walk_in_circles(stored: list[Jump], lsn: int) -> None:
    """A jump to itself, or forward, once kept a walk busy until memory ran out."""
    try:
        jumps = checked_jumps(stored)
    except ValueError:
        return
    assert len(spelled(Jumps.of(jumps).intervals_at(lsn))) <= len(jumps) + 1


@pytest.mark.parametrize(
    "stored",
    [[(5, 7)], [(5, 5)], [(6, 1), (5, 1)], [(5, 1), (5, 2)], [(5, -1)], [("5", 1)], [(5.0, 1)]],
)
def test_impossible_jumps_are_refused(stored: list[tuple[object, object]]) -> None:
    with pytest.raises(ValueError, match="jump"):
        checked_jumps(stored)


# --- ranges ---------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 60), unique=True, max_size=20).map(sorted), st.integers(-1, 61))
def test_the_ranges_around_a_place_are_the_nearest(edges: list[int], lsn: int) -> None:
    ranges = tuple(zip(edges[::2], edges[1::2], strict=False))
    assert in_ranges(lsn, ranges) == any(low <= lsn <= high for low, high in ranges)
    if not in_ranges(lsn, ranges):
        last = max((high for _, high in ranges if high < lsn), default=None)
        first = min((low for low, _ in ranges if low > lsn), default=None)
        assert around(lsn, ranges) == (last, first)
