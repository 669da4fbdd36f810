"""The pure half of compaction: what commits see, what policies keep, which segments are merged."""

from __future__ import annotations

import math
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.arrays import Numbers
from mldb.compaction import plan
from mldb.compaction.cold import forest
from mldb.compaction.plan import Group, choose_groups, fixed_bytes, live_bytes, row_bytes
from mldb.compaction.retention import (
    Retention,
    Roots,
    Timeline,
    kept_commits,
    ranges_of,
    within_bytes,
)
from mldb.compaction.sight import seen_by, with_bases
from mldb.compaction.table import NO_ROW, TableSource, VersionTable, make_table
from mldb.errors import InvalidValueError
from mldb.log import format as fmt
from mldb.log.index.address import CommitRow, Entry
from mldb.log.index.columns import build_columns
from mldb.log.index.lineage import Jumps, in_ranges, is_visible
from tests.support.logs import SEGMENT_ID, History, histories

DAY = 86_400 * 10**9
WIDE = b"\x06"
NO_ROOTS = Roots(frozenset(), ())


def table_of(history: History, pieces: int = 1) -> VersionTable:
    """The table of a history, cut into so many segments."""
    cuts = np.array_split(np.arange(len(history.rows)), pieces)
    sources = []
    for cut in cuts:
        entries: dict[bytes, list[Entry]] = {}
        for number in cut.tolist():
            for key, entry in history.entries[number]:
                entries.setdefault(key, []).append(entry)
        columns = build_columns(entries, [history.rows[number] for number in cut.tolist()])
        sources.append(TableSource(columns, 1 << 40, 1 << 40))
    return make_table(sources)


# --- what commits see -----------------------------------------------------------------------------


@given(histories(), st.data(), st.integers(1, 4))
def test_what_commits_see_is_what_each_of_them_looks_up(
    history: History, data: st.DataObject, pieces: int
) -> None:
    lsns = [row.lsn for row in history.rows]
    chosen = sorted(data.draw(st.sets(st.sampled_from(lsns))) if lsns else set())
    table = table_of(history, pieces)
    jumps = Jumps.of(history.jumps)
    wide = table.keys_where(lambda key: key[:1] == WIDE)
    is_curve = np.array([len(key) % 2 == 0 for key in table.keys], np.bool_)
    is_curve &= data.draw(st.booleans())
    seen = seen_by(table, np.array(chosen, np.int64), history.jumps, wide, is_curve)
    versions = {(table.key_of(row), int(table.commit[row])): row for row in range(len(table))}
    assert len(versions) == len(table)
    expected = np.zeros(len(table), np.bool_)
    for key, whole in zip(table.keys, is_curve.tolist(), strict=True):
        for lsn in chosen:
            path = ((1, lsn),) if key[:1] == WIDE else jumps.intervals_at(lsn)
            own = [at for other, at in versions if other == key and is_visible(at, path)]
            for at in own if whole and key[:1] != WIDE else sorted(own)[-1:]:
                expected[versions[key, at]] = True
    assert (seen == with_bases(table, expected)).all()


@given(histories(), st.integers(1, 4))
def test_a_table_finds_every_version_and_what_it_names(history: History, pieces: int) -> None:
    table = table_of(history, pieces)
    assert (table.find(table.key, table.commit) == np.arange(len(table))).all()
    assert (table.find(table.key, table.commit + fmt.LSN_MAX // 2) == NO_ROW).all()
    stored = {
        (key, entry.commit_lsn): entry for entries in history.entries for key, entry in entries
    }
    assert table.row_of(b"\xff none", 1) == NO_ROW
    for row in range(len(table)):
        assert table.row_of(table.key_of(row), int(table.commit[row])) == row
        assert table.row_of(table.key_of(row), fmt.LSN_MAX) == NO_ROW
        entry = stored[table.key_of(row), int(table.commit[row])]
        assert table.attr_of(row) == entry.attr
        named = entry.encoding in (fmt.ENCODING_REFERENCE, fmt.ENCODING_DELTA) and entry.base > 0
        base = (entry.owner or table.key_of(row), entry.base)
        found = int(table.base_row[row])
        assert (found != NO_ROW) == (named and base in stored)
        if found != NO_ROW:
            assert (table.key_of(found), int(table.commit[found])) == base
    weights = row_bytes(table)
    assert (weights > 0).all()
    everything = np.ones(len(table), np.bool_)
    assert live_bytes(table, everything, weights).sum() >= weights.sum()


# --- retention ------------------------------------------------------------------------------------


def timeline(epochs: list[int], jumps: tuple[tuple[int, int], ...] = ()) -> Timeline:
    """Commits 10, 20, ... with these epochs, a day apart."""
    count = len(epochs)
    lsns = np.arange(10, 10 * count + 1, 10)
    return Timeline(lsns, np.array(epochs), np.arange(1, count + 1) * DAY, Jumps.of(jumps))


def kept(policy: Retention, when: Timeline, roots: Roots = NO_ROOTS, **more: Any) -> list[int]:
    given = {"now": len(when.lsn) * DAY, "already": None, "lowest": fmt.LSN_MAX, **more}
    found: list[int] = (kept_commits(policy, when, roots, **given) // 10).tolist()
    return found


def test_each_rule_keeps_what_it_says_and_the_head_always_stays() -> None:
    when = timeline([0, 0, 1, 1, 2, 3, 3, 4])
    everything = list(range(1, 9))
    assert kept(Retention(), when) == everything
    assert kept(Retention(last=1), when) == [8]
    assert kept(Retention(last=2), when) == [7, 8]
    assert kept(Retention(last=99), when) == [2, 4, 5, 7, 8]
    assert kept(Retention(every=2), when) == [2, 5, 8]
    assert kept(Retention(last=1, every=3), when) == [2, 7, 8]
    assert kept(Retention(within=timedelta(days=3)), when) == [6, 7, 8]
    roots = Roots(frozenset({10}), (30, 60))
    assert kept(Retention(last=1), when, roots) == [1, 3, 6, 8]
    assert kept(Retention(last=1, checkpoints=1), when, roots) == [1, 6, 8]
    assert kept(Retention(last=1, checkpoints=0), when, roots) == [1, 8]
    assert kept(Retention(last=1), when, lowest=50) == [5, 6, 7, 8]
    assert kept(Retention(), when, already=((10, 20), (70, 80))) == [1, 2, 7, 8]
    assert kept(Retention(last=1), timeline([])) == []


def test_abandoned_commits_stay_for_ever_or_for_a_while() -> None:
    when = timeline([0, 1, 2, 3, 1, 2], ((50, 20),))
    assert kept(Retention(), when) == [1, 2, 3, 4, 5, 6]
    assert kept(Retention(last=1), when) == [3, 4, 6]
    assert kept(Retention(abandoned=timedelta(0)), when) == [1, 2, 5, 6]
    assert kept(Retention(abandoned=timedelta(days=3)), when) == [1, 2, 4, 5, 6]
    roots = Roots(frozenset({30}), ())
    assert kept(Retention(abandoned=timedelta(0)), when, roots) == [1, 2, 3, 5, 6]


def test_a_cap_takes_the_oldest_and_checkpoints_last() -> None:
    policy, roots = Retention(max_bytes=35), Roots(frozenset({20}), (40, 70))
    when = timeline([0] * 9)

    def bytes_of(lsns: Numbers) -> int:
        return 7 * len(lsns)

    left = within_bytes(policy, when.lsn, roots, fmt.LSN_MAX, bytes_of)
    assert (left // 10).tolist() == [2, 4, 7, 8, 9]
    left = within_bytes(Retention(max_bytes=15), when.lsn, roots, fmt.LSN_MAX, bytes_of)
    assert (left // 10).tolist() == [2, 9]
    with pytest.raises(InvalidValueError, match="take 14 bytes"):
        within_bytes(Retention(max_bytes=13), when.lsn, roots, fmt.LSN_MAX, bytes_of)
    assert within_bytes(Retention(), when.lsn, roots, 0, bytes_of) is when.lsn


@given(st.lists(st.booleans(), min_size=1))
def test_ranges_hold_exactly_what_is_kept(stays: list[bool]) -> None:
    lsns = np.arange(len(stays)) * 3 + 5
    ranges = ranges_of(lsns[np.array(stays)], lsns)
    assert [in_ranges(lsn, ranges) for lsn in lsns.tolist()] == stays
    assert all(one[1] < two[0] for one, two in pairwise(ranges))


# --- groups ---------------------------------------------------------------------------------------


def segments(sizes: list[int]) -> VersionTable:
    """A table of segments with one version each that takes about so much."""
    sources = []
    for number, size in enumerate(sizes):
        lsn = 10 * number + 10
        row = CommitRow(lsn, lsn - 10, 0, 0, 0, 128, 128 + size, bytes(16))
        entry = Entry(lsn, SEGMENT_ID, 128, 200, size, b"a", 0, 0, 0, b"", b"")
        sources.append(
            TableSource(build_columns({b"\x01k": [entry]}, [row]), 200 + size, size + 2600)
        )
    return make_table(sources)


def groups(sizes: list[int], drop: tuple[int, ...] = (), **more: Any) -> list[Group]:
    table = segments(sizes)
    stays = np.ones(len(table), np.bool_)
    stays[list(drop)] = False
    live = live_bytes(table, stays, row_bytes(table))
    given = {"segment_bytes": 1 << 20, "has_active": False, **more}
    return list(choose_groups(table, stays, (), live, **given))


def test_what_gives_back_enough_is_rewritten_and_neighbours_share_a_segment() -> None:
    large = 600_000
    assert groups([large] * 6) == []
    assert groups([large] * 6, (1, 2, 4)) == [Group(1, 2), Group(4, 1)]
    assert groups([3000] * 3) == []
    assert groups([3000] * 5) == [Group(0, 5)]
    assert groups([3000] * 5, has_active=True) == [Group(0, 4)]
    assert groups([large, *[3000] * 5, large]) == [Group(1, 5)]
    assert groups([200_000] * 12) == [Group(0, 5), Group(5, 5), Group(10, 2)]


def test_a_cap_rewrites_what_gives_back_little_as_well() -> None:
    sizes = [600_000] * 4
    table = segments(sizes)
    # Of each a twentieth goes, which alone is not worth it.
    stays = np.ones(len(table), np.bool_)
    live = table.sizes - 30_000
    stays[:] = False
    more = {"segment_bytes": 1 << 20, "has_active": False}
    assert choose_groups(table, stays, (), live, **more) == ()  # type: ignore[arg-type]
    cap = int(table.sizes.sum()) - 50_000
    found = choose_groups(table, stays, (), live, limit=cap, **more)  # type: ignore[arg-type]
    assert sum(group.segments for group in found) == 2


def test_each_byte_is_merged_a_few_times_only() -> None:
    """As a store grows by small segments: the sizes that are left are the digits of a counter."""
    small, sizes, copied, total = 1 << 30, list[int](), 0, 2000
    for _ in range(total):
        sizes.append(1)
        found = plan._small_runs(np.array(sizes), small)
        if found.any():
            low, high = np.flatnonzero(found)[[0, -1]].tolist()
            assert found[low : high + 1].all()
            copied += sum(sizes[low : high + 1])
            sizes[low : high + 1] = [sum(sizes[low : high + 1])]
    assert sum(sizes) == total
    assert len(sizes) <= 3 * math.log2(total)
    assert copied <= total * 2 * math.log2(total)


# --- the forest -----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6))
def test_no_version_builds_on_more_than_the_chain_allows(encodings: list[int], chain: int) -> None:
    """Whatever was encoded before, and whatever of it pays now."""
    entries, rows = [], []
    for number, encoding in enumerate(encodings):
        lsn = number + 1
        rows.append(CommitRow(lsn, number, 0, 0, 0, 128 + 10 * number, 130 + 10 * number, b""))
        names = encoding > 1 and number > 0
        encoding = encoding if names or encoding < 2 else 0
        length = 0 if encoding == fmt.ENCODING_REFERENCE else 7
        base = number if names and encodings[number - 1] != 2 else 0
        encoding = encoding if base or encoding < 2 else 0
        form = (b"attr", 0, encoding, base, bytes(16), b"")
        entries.append(Entry(lsn, SEGMENT_ID, 128 + 10 * number, 129, max(length, 0), *form))
    columns = build_columns({b"\x01k": entries} if entries else {}, rows)
    table = make_table([TableSource(columns, 1 << 20, 1 << 20)])
    everything = np.ones(len(table), np.bool_)
    found = forest(table, everything, everything.copy(), lambda key, attr: 7, chain=chain)
    bases = {item.row: item.base for item in found}
    depth = [0] * len(table)
    longest = 0
    for row in range(len(table)):
        base = bases.get(row, int(table.base_row[row]))
        if base == NO_ROW:
            continue
        assert base < row
        assert table.encoding[base] != fmt.ENCODING_REFERENCE
        is_reference = table.encoding[row] == fmt.ENCODING_REFERENCE
        depth[row] = depth[base] + (not is_reference)
        if row in bases:
            longest = max(longest, depth[row])
    assert longest <= chain
    assert fixed_bytes(table).sum() > 0
