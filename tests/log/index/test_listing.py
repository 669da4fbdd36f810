"""Listings merged by columns over many parts, against a walk of every key and a lookup of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mldb.errors import CorruptError, MldbError
from mldb.log import format as fmt
from mldb.log.index import bulk, listing
from mldb.log.index.address import CommitRow, Entry, Intervals
from mldb.log.index.bulk import ABSENT, GONE, Change, newest_rows
from mldb.log.index.column_reader import ColumnReader
from mldb.log.index.columns import build_index
from mldb.log.index.lineage import is_visible
from mldb.log.index.listing import (
    HeldPart,
    ListedPart,
    PlainIndex,
    all_keys,
    attrs_in,
    changes_in,
    count_keys,
    history_in,
    keys_around,
    live_entries,
    live_keys,
)
from mldb.log.index.mapped import MappedIndex
from mldb.log.index.memory import MemoryIndex
from tests.support.logs import KEYS, SEGMENT_ID, History, histories

PREFIXES = st.sampled_from([b"", b"\x01", b"\x01a", b"\x01\xff", b"\x02", b"\xff"])


class Plain:
    """An index that is neither mapped nor in memory, as that of a replaced segment is."""

    def __init__(self, memory: MemoryIndex) -> None:
        self.newest = memory.newest
        self.versions = memory.versions
        self.keys = memory.keys
        self.commit_at = memory.commit_at


class Replaced:
    """A part whose file is replaced after some looks at it."""

    def __init__(self, mapped: MappedIndex, plain: PlainIndex, looks: int) -> None:
        self.both = mapped, plain
        self.looks = looks

    @property
    def index(self) -> MappedIndex | PlainIndex:
        """The mapped index first, then the other one."""
        self.looks -= 1
        return self.both[self.looks < 0]

    def distrust(self, error: MldbError) -> bool:
        """There is nothing wrong with it."""
        return False


def mapped(memory: MemoryIndex, touched: list[tuple[int, int]] | None = None) -> MappedIndex:
    image = build_index(*memory.dump())
    payload = memoryview(b"".join(map(bytes, image.payload)))
    ranges: list[tuple[int, int]] = [] if touched is None else touched
    reader = ColumnReader(
        payload, image.directory, "x", lambda low, high: ranges.append((low, high))
    )
    return MappedIndex(reader, SEGMENT_ID)


@dataclass
class Log:
    """A history cut into parts of several kinds."""

    history: History
    parts: list[ListedPart]

    def newest(self, key: bytes, intervals: Intervals) -> Entry | None:
        """The newest visible version of a key, by looking at all of them."""
        every = [
            entry for entries in self.history.entries for name, entry in entries if name == key
        ]
        seen = [entry for entry in every if is_visible(entry.commit_lsn, intervals)]
        return seen[-1] if seen else None

    def keys(self, prefix: bytes) -> list[bytes]:
        """Every key with this prefix."""
        every = {key for entries in self.history.entries for key, _ in entries}
        return sorted(key for key in every if key.startswith(prefix))

    def live(self, prefix: bytes, intervals: Intervals) -> list[tuple[bytes, Entry]]:
        """The keys that exist, one by one."""
        found = [(key, self.newest(key, intervals)) for key in self.keys(prefix)]
        return [
            (key, entry)
            for key, entry in found
            if entry is not None and not entry.flags & fmt.ENTRY_TOMBSTONE
        ]


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Histories in up to four parts, each of any kind."""
    history = draw(histories())
    rows, entries = history.rows, history.entries
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    parts: list[ListedPart] = []
    for low, high in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        memory = History(rows[low:high], entries[low:high], []).memory()
        kind = draw(st.sampled_from(["mapped", "memory", "plain", "replaced"]))
        if kind == "replaced":
            parts.append(Replaced(mapped(memory), Plain(memory), draw(st.integers(0, 4))))
        else:
            index = {"mapped": mapped, "memory": lambda same: same, "plain": Plain}[kind](memory)
            parts.append(HeldPart(index))
    return Log(history, parts)


@pytest.fixture(autouse=True)
def small_blocks() -> Iterator[None]:
    """Blocks of one to three keys, so that short histories have many windows."""
    sizes: Any = {"_FIRST_KEYS": 1, "_KEYS_AT_ONCE": 12, "_BLOCK_MIN": 1, "_BLOCK_MAX": 3}
    with mock.patch.multiple(listing, **sizes):
        yield


def names_in(parts: Sequence[ListedPart], prefix: bytes, intervals: Intervals) -> list[bytes]:
    return [key for keys in live_keys(parts, prefix, intervals) for key in keys]


@given(logs(), PREFIXES)
@settings(max_examples=120)
def test_a_listing_finds_what_a_walk_of_every_key_finds(log: Log, prefix: bytes) -> None:
    assert list(all_keys(log.parts, prefix)) == log.keys(prefix)
    for intervals in log.history.heads():
        expected = log.live(prefix, intervals)
        assert list(live_entries(log.parts, prefix, intervals)) == expected
        assert names_in(log.parts, prefix, intervals) == [key for key, _ in expected]
        assert count_keys(log.parts, prefix, intervals) == len(expected)


@given(logs(), PREFIXES)
def test_with_many_versions_of_few_keys_the_last_ones_alone_are_looked_at(
    log: Log, prefix: bytes
) -> None:
    with mock.patch.object(bulk, "_ROWS_PER_KEY", 0):
        for intervals in log.history.heads():
            expected = [key for key, _ in log.live(prefix, intervals)]
            assert names_in(log.parts, prefix, intervals) == expected


@given(logs(), PREFIXES, st.integers(0, 30))
def test_what_changed_is_what_has_visible_versions_above_a_commit(
    log: Log, prefix: bytes, after: int
) -> None:
    for intervals in log.history.heads():
        expected = {}
        for key in log.keys(prefix):
            entry = log.newest(key, intervals)
            if entry is not None and entry.commit_lsn > after:
                deleted = bool(entry.flags & fmt.ENTRY_TOMBSTONE)
                expected[key] = Change(entry.commit_lsn, deleted)
        found: dict[bytes, Change] = {}
        for part in log.parts:
            found |= changes_in(part.index, prefix, after, intervals)
        assert found == expected


@given(logs(), KEYS)
def test_a_history_has_the_visible_versions_that_are_no_deletions(log: Log, key: bytes) -> None:
    rows = {row.lsn: row for row in log.history.rows}
    every = [entry for entries in log.history.entries for name, entry in entries if name == key]
    for intervals in log.history.heads():
        found = [history_in(part.index, key, intervals) for part in log.parts]
        told: list[Any] = []
        for columns in found:
            fields: Any = columns or ()
            told.append(tuple(zip(*fields, strict=True)))
        assert [version for versions in told for version in versions] == [
            (
                entry.commit_lsn,
                rows[entry.commit_lsn].epoch,
                rows[entry.commit_lsn].time,
                entry.length,
                entry.attr,
                entry.digest,
            )
            for entry in every
            if not entry.flags & fmt.ENTRY_TOMBSTONE and is_visible(entry.commit_lsn, intervals)
        ]


@given(logs(), KEYS)
def test_the_attrs_of_a_key_are_those_of_its_history(log: Log, key: bytes) -> None:
    rows = {row.lsn: row for row in log.history.rows}
    every = [entry for entries in log.history.entries for name, entry in entries if name == key]
    for intervals in log.history.heads():
        told: list[tuple[int, int, bytes]] = []
        for part in log.parts:
            found = attrs_in(part.index, key, intervals)
            if found is None:
                continue
            assert found.epochs is not None
            ends = np.cumsum(found.sizes).tolist()
            assert len(found.data) == ends[-1]
            attrs = [found.data[low:high] for low, high in zip([0, *ends], ends, strict=False)]
            told += zip(found.lsns.tolist(), found.epochs.tolist(), attrs, strict=True)
        assert told == [
            (entry.commit_lsn, rows[entry.commit_lsn].epoch, entry.attr)
            for entry in every
            if not entry.flags & fmt.ENTRY_TOMBSTONE and is_visible(entry.commit_lsn, intervals)
        ]


@given(logs(), PREFIXES, KEYS, st.integers(1, 3))
def test_the_keys_around_one_are_its_neighbours(
    log: Log, prefix: bytes, key: bytes, count: int
) -> None:
    for part in log.parts:
        names = list(all_keys([part], prefix))
        below = [name for name in names if name < key][-count:]
        above = [name for name in names if name >= key][:count]
        found = keys_around(part.index, prefix, key, count)
        if key.startswith(prefix):
            assert found == {*below, *above}
        assert found <= set(names)


# --- what it costs --------------------------------------------------------------------------------


class Counted(MappedIndex):
    """Counts the keys that were read, the entries decoded and the single keys asked for."""

    __slots__ = ("asked", "decoded", "read")

    def __init__(self, reader: ColumnReader, segment: bytes) -> None:
        super().__init__(reader, segment)
        self.read = self.decoded = self.asked = 0

    def block(self, *arguments: Any) -> tuple[list[bytes], Any, int]:
        """Count the keys."""
        found = super().block(*arguments)
        self.read += len(found[0])
        return found

    def entries(self, rows: Sequence[int]) -> list[Entry]:
        """Count the rows."""
        self.decoded += len(rows)
        return super().entries(rows)

    def newest(self, key: bytes, intervals: Intervals) -> Entry | None:
        """Count the call."""
        self.asked += 1
        return super().newest(key, intervals)


def names_in_parts(parts: int, names: int) -> tuple[list[Counted], list[ListedPart]]:
    """*names* keys, spread over *parts* by turns."""
    indexes = []
    for place in range(parts):
        memory = MemoryIndex()
        lsn = place + 1
        memory.add(
            CommitRow(lsn, lsn - 1, 0, 0, 0, 128, 256, b""),
            [
                (b"\x01%06d" % number, Entry(lsn, SEGMENT_ID, 8, 8, 0, b"", 0, 0, 0, b"", b""))
                for number in range(place, names, parts)
            ],
        )
        image = build_index(*memory.dump())
        payload = memoryview(b"".join(map(bytes, image.payload)))
        reader = ColumnReader(payload, image.directory, "x", lambda low, high: None)
        indexes.append(Counted(reader, SEGMENT_ID))
    return indexes, [HeldPart(index) for index in indexes]


def test_a_listing_asks_for_no_key_and_decodes_only_what_is_handed_out() -> None:
    indexes, parts = names_in_parts(5, 3000)
    inside = ((1, 5),)
    assert names_in(parts, b"\x01", inside) == [b"\x01%06d" % number for number in range(3000)]
    assert count_keys(parts, b"\x01", inside) == 3000
    assert sum(index.decoded for index in indexes) == 0
    assert sum(index.read for index in indexes) == 2 * 3000
    assert len(list(live_entries(parts, b"\x01", inside))) == 3000
    assert sum(index.decoded for index in indexes) == 3000
    assert sum(index.asked for index in indexes) == 0


def test_parts_that_have_other_shares_of_each_range_are_merged_in_order() -> None:
    rng = np.random.default_rng(7)
    names = [b"\x01%03d" % number for number in range(200)]
    parts: list[ListedPart] = []
    newest: dict[bytes, Entry] = {}
    for lsn in range(1, 6):
        low = int(rng.integers(0, 150))
        chosen = [name for name in names[low:] if rng.random() < 0.15 * lsn]
        memory = MemoryIndex()
        found = [
            (name, Entry(lsn, SEGMENT_ID, 8, 8, 0, b"", int(rng.integers(0, 2)), 0, 0, b"", b""))
            for name in chosen
        ]
        memory.add(CommitRow(lsn, lsn - 1, 0, 0, 0, 128, 256, b""), found)
        newest.update(found)
        parts.append(HeldPart(mapped(memory)))
    expected = sorted(item for item in newest.items() if not item[1].flags & fmt.ENTRY_TOMBSTONE)
    assert list(live_entries(parts, b"\x01", ((1, 5),))) == expected
    assert names_in(parts, b"\x01", ((1, 5),)) == [name for name, _ in expected]
    assert count_keys(parts, b"\x01", ((1, 5),)) == len(expected)
    assert 0 < len(expected) < len(newest)


def test_the_first_names_cost_a_few_keys_of_each_part(small_blocks: None) -> None:
    sizes: Any = {
        "_FIRST_KEYS": 64,
        "_KEYS_AT_ONCE": 1 << 16,
        "_BLOCK_MIN": 16,
        "_BLOCK_MAX": 1 << 13,
    }
    with mock.patch.multiple(listing, **sizes):
        indexes, parts = names_in_parts(5, 3000)
        assert next(live_keys(parts, b"\x01", ((1, 5),)))[0] == b"\x01000000"
        assert sum(index.read for index in indexes) == 5 * 16
        indexes, parts = names_in_parts(5, 3000)
        found = list(live_entries(parts, b"\x0100100", ((1, 5),)))
        assert len(found) == 10
        assert sum(index.read for index in indexes) == 10


def test_what_changed_is_read_from_the_columns_of_the_prefix_alone() -> None:
    memory = MemoryIndex()
    for lsn in range(1, 2000):
        key = b"\x01%04d" % lsn if lsn < 1900 else b"\x02%04d" % lsn
        memory.add(
            CommitRow(lsn, lsn - 1, 0, 0, 0, 128, 256, b""),
            [(key, Entry(lsn, SEGMENT_ID, 8, 8, 0, b"", 0, 0, 0, b"", b""))],
        )
    touched: list[tuple[int, int]] = []
    index = mapped(memory, touched)
    touched.clear()
    found = index.changes(b"\x02", 1990, ((1, 1999),))
    assert sorted(found) == [b"\x02%04d" % lsn for lsn in range(1991, 2000)]
    assert sum(high - low for low, high in touched) < 20_000, "not all 16 KiB of commits and more"
    assert memory.stored_after(1998) == {b"\x021999"}
    assert memory.stored_after(1999) == set()


def test_rows_say_absent_or_gone() -> None:
    memory = MemoryIndex()
    for lsn, key, flags in ((1, b"a", 0), (2, b"b", fmt.ENTRY_TOMBSTONE), (3, b"c", 0)):
        memory.add(
            CommitRow(lsn, lsn - 1, 0, 0, 0, 128, 256, b""),
            [(key, Entry(lsn, SEGMENT_ID, 8, 8, 0, b"", flags, 0, 0, b"", b""))],
        )
    reader = mapped(memory)._reader
    assert newest_rows(reader, 0, 3, ((1, 2),)).tolist() == [0, GONE, ABSENT]
    assert newest_rows(reader, 0, 3, ()).tolist() == [ABSENT] * 3
    assert newest_rows(reader, 0, 3, ((3, 9),)).tolist() == [ABSENT, ABSENT, 2]


def test_rows_that_do_not_ascend_are_damage() -> None:
    memory = MemoryIndex()
    memory.add(
        CommitRow(1, 0, 0, 0, 0, 128, 256, b""),
        [(key, Entry(1, SEGMENT_ID, 8, 8, 0, b"", 0, 0, 0, b"", b"")) for key in (b"a", b"b")],
    )
    image = build_index(*memory.dump())
    data = bytearray(b"".join(map(bytes, image.payload)))
    start = image.directory["key_row"][0]
    assert isinstance(start, int)
    for rows in ([0, 2, 1], [0, 1, 9]):
        data[start : start + 12] = np.array(rows, "<u4").tobytes()
        reader = ColumnReader(memoryview(data), image.directory, "x", lambda low, high: None)
        with pytest.raises(CorruptError, match="contradicts itself"):
            names_in([HeldPart(MappedIndex(reader, SEGMENT_ID))], b"", ((1, 1),))
