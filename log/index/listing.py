"""Listings: the keys with a prefix that exist in a snapshot, in order, merged over many parts.

Each part gives blocks of keys with the rows of their newest visible versions, column by column
where it is mapped. A *window* is what of these blocks lies below the least of their last keys: of
it all is known, and a dictionary filled from the oldest part to the newest says what holds. So a
listing costs a fraction of a microsecond a key, begins with a few keys of each part, and keeps no
mapping from one window to the next.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Final, Protocol, TypeAlias, TypeVar

import numpy as np

from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.log.index.address import CommitRow, Entry, Intervals
from mldb.log.index.bulk import GONE, AttrColumns, Change, VersionColumns
from mldb.log.index.lineage import is_visible
from mldb.log.index.mapped import MappedIndex
from mldb.log.index.memory import MemoryIndex

_FIRST_KEYS: Final = 1 << 10
"""Keys of the first blocks of all parts together."""
_KEYS_AT_ONCE: Final = 1 << 16
"""Keys in memory, of all parts together."""
_BLOCK_MIN: Final = 16
_BLOCK_MAX: Final = 1 << 13
_ROW_BITS: Final = 32

_Code: TypeAlias = int | Entry
"""The newest version of a key: part and row in one number, or the entry; GONE for a deletion."""
_Window: TypeAlias = dict[bytes, _Code]


class PlainIndex(Protocol):
    """What is asked of an index that is not mapped."""

    def newest(self, key: bytes, intervals: Intervals) -> Entry | None:
        """Return the newest version of *key* inside *intervals*."""

    def versions(self, key: bytes) -> Sequence[Entry]:
        """Return all versions of *key*, oldest first."""

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield the keys that start with *prefix*, in byte order."""

    def commit_at(self, lsn: int) -> CommitRow | None:
        """Return the commit *lsn*."""


class ListedPart(Protocol):
    """A part of a view, whose index is opened when asked for and held by nobody."""

    @property
    def index(self) -> MappedIndex | PlainIndex:
        """The index as it is now; a mapped one may have become another meanwhile."""

    def distrust(self, error: MldbError) -> bool:
        """Take it that the index is no good, and tell whether another can be asked."""


class HeldPart:
    """A part that is its own index: one of the active segment. Any thread."""

    __slots__ = ("index",)

    def __init__(self, index: MappedIndex | PlainIndex) -> None:
        self.index = index

    def distrust(self, error: MldbError) -> bool:
        """There is no other."""
        return False


_Answer = TypeVar("_Answer")


def asked(part: ListedPart, question: Callable[[MappedIndex | PlainIndex], _Answer]) -> _Answer:
    """Return the answer of a part's index, or of what stands in for one that is no good."""
    try:
        return question(part.index)
    except MldbError as error:
        if not part.distrust(error):
            raise
    return question(part.index)


class _Cursor:
    """Where a listing stands in one part. For one thread."""

    __slots__ = ("_base", "_intervals", "_last", "_left", "_number", "_part", "_prefix", "_size",
                 "_top", "at", "codes", "keys")  # fmt: skip

    def __init__(
        self,
        part: ListedPart,
        place: int,
        prefix: bytes,
        intervals: Intervals | None,
        sizes: tuple[int, int],
    ) -> None:
        self._part = part
        self._base = place << _ROW_BITS
        self._prefix = prefix
        self._intervals = intervals
        self._size, self._top = sizes
        self._number: int | None = None  # of the key to go on from
        self._left: Iterator[bytes] | None = None  # the keys to come of an index not mapped
        self._last = b""  # the last key that was read
        self.keys: list[bytes] = []
        self.codes: list[_Code] = []
        self.at = 0  # how many of them were taken

    @property
    def ended(self) -> bool:
        """Whether nothing comes behind this block."""
        return self._number == -1

    def fill(self) -> bool:
        """Read the next block; False at the end."""
        self.keys, self.codes, self.at = [], [], 0
        while not self.keys and not self.ended:
            size = self._size
            self._size = min(2 * size, self._top)
            index = self._part.index
            if not isinstance(index, MappedIndex):
                self._fill_plain(index, size)
                continue
            try:
                self._fill_mapped(index, size)
            except MldbError as error:
                if not self._part.distrust(error):
                    raise
        return bool(self.keys)

    def _fill_mapped(self, index: MappedIndex, size: int) -> None:
        start = -1 if self._number is None else self._number
        keys, rows, self._number = index.block(start, size, self._prefix, self._intervals)
        if keys:
            self._last = keys[-1]
        self.keys = keys
        self.codes = np.where(rows >= 0, rows + self._base, rows).tolist()

    def _fill_plain(self, index: PlainIndex, size: int) -> None:
        if self._left is None:
            last, keys = self._last, index.keys(self._prefix)
            # The file may have been replaced when some were read.
            self._left = itertools.dropwhile(lambda key: key <= last, keys) if last else keys
        found = list(itertools.islice(self._left, size))
        if len(found) < size:
            self._number = -1
        if self._intervals is None:
            self.keys, self.codes = found, [0] * len(found)
            return
        for key in found:
            entry = index.newest(key, self._intervals)
            if entry is not None:
                self.keys.append(key)
                self.codes.append(GONE if entry.flags & fmt.ENTRY_TOMBSTONE else entry)

    def take(self, bound: bytes | None, window: _Window) -> None:
        """Move the keys up to *bound* into a window, over those of older parts."""
        keys, start = self.keys, self.at
        stop = len(keys) if bound is None else bisect_right(keys, bound, start)
        self.at = stop
        if start == 0 and stop == len(keys):
            window.update(zip(keys, self.codes, strict=True))
        else:
            window.update(zip(keys[start:stop], self.codes[start:stop], strict=True))


def _windows(
    parts: Sequence[ListedPart], prefix: bytes, intervals: Intervals | None, first: int
) -> Iterator[_Window]:
    """Yield what is known of consecutive ranges of keys; *parts* come oldest first."""
    top = min(max(_KEYS_AT_ONCE // max(len(parts), 1), _BLOCK_MIN), _BLOCK_MAX)
    size = min(max(first // max(len(parts), 1), _BLOCK_MIN), top)
    cursors = [
        _Cursor(part, place, prefix, intervals, (size, top)) for place, part in enumerate(parts)
    ]
    heads: list[tuple[bytes, int]] = []  # the next key of each part
    ends: list[tuple[bytes, int]] = []  # the last key of each block that is not the last one
    emptied = list(range(len(parts)))
    while True:
        for place in emptied:
            cursor = cursors[place]
            if cursor.fill():
                heappush(heads, (cursor.keys[0], place))
                if not cursor.ended:
                    heappush(ends, (cursor.keys[-1], place))
        if not heads:
            return
        bound = ends[0][0] if ends else None
        taken = []
        while heads and (bound is None or heads[0][0] <= bound):
            taken.append(heappop(heads)[1])
        while ends and ends[0][0] == bound:
            heappop(ends)
        window: _Window = {}
        emptied = []
        for place in sorted(taken):
            cursor = cursors[place]
            cursor.take(bound, window)
            if cursor.at < len(cursor.keys):
                heappush(heads, (cursor.keys[cursor.at], place))
            else:
                emptied.append(place)
        yield window


def all_keys(parts: Sequence[ListedPart], prefix: bytes) -> Iterator[bytes]:
    """Yield the keys with this prefix in order, each once, whether visible or not."""
    for window in _windows(parts, prefix, None, _FIRST_KEYS):
        yield from sorted(window)


def live_keys(
    parts: Sequence[ListedPart], prefix: bytes, intervals: Intervals
) -> Iterator[list[bytes]]:
    """Yield the keys with this prefix that exist inside *intervals*, in order, in some lists.

    *parts* come oldest first, here and below. No entry is decoded.
    """
    return map(_existing, _windows(parts, prefix, intervals, _FIRST_KEYS))


def count_keys(parts: Sequence[ListedPart], prefix: bytes, intervals: Intervals) -> int:
    """Return how many keys with this prefix exist inside *intervals*; none is put in order."""
    return sum(
        len(window) - list(window.values()).count(GONE)
        for window in _windows(parts, prefix, intervals, _KEYS_AT_ONCE)
    )


def live_entries(
    parts: Sequence[ListedPart], prefix: bytes, intervals: Intervals
) -> Iterator[tuple[bytes, Entry]]:
    """Yield (key, newest entry) of the keys with this prefix that exist inside *intervals*."""
    for window in _windows(parts, prefix, intervals, _FIRST_KEYS):
        decoded = _decoded(parts, window, intervals)
        for key in _existing(window):
            entry = decoded.get(key)
            if entry is not None:
                yield key, entry


def _existing(window: _Window) -> list[bytes]:
    if GONE in window.values():
        return sorted([key for key, code in window.items() if code != GONE])
    return sorted(window)


def _decoded(
    parts: Sequence[ListedPart], window: _Window, intervals: Intervals
) -> dict[bytes, Entry]:
    """Decode the entries of a window, part by part."""
    found: dict[bytes, Entry] = {}
    by_part: dict[int, list[tuple[int, bytes]]] = {}
    for key, code in window.items():
        if not isinstance(code, int):
            found[key] = code
        elif code != GONE:
            by_part.setdefault(code >> _ROW_BITS, []).append((code, key))
    for place, coded in by_part.items():
        rows = [code - (place << _ROW_BITS) for code, _ in coded]
        keys = [key for _, key in coded]
        entries = asked(parts[place], lambda index: _entries(index, rows, keys, intervals))  # noqa: B023
        found.update(
            (key, entry) for key, entry in zip(keys, entries, strict=True) if entry is not None
        )
    return found


def _entries(
    index: MappedIndex | PlainIndex, rows: list[int], keys: list[bytes], intervals: Intervals
) -> Sequence[Entry | None]:
    if isinstance(index, MappedIndex):
        return index.entries(rows)
    # Its file was replaced since the window was made, or is no good.
    return [index.newest(key, intervals) for key in keys]


# --- changes, histories, neighbours ---------------------------------------------------------------


def changes_in(
    index: MappedIndex | PlainIndex, prefix: bytes, after: int, intervals: Intervals
) -> dict[bytes, Change]:
    """Return the keys with this prefix that have visible versions above commit *after*."""
    if isinstance(index, MappedIndex):
        return index.changes(prefix, after, intervals)
    found: dict[bytes, Change] = {}
    if isinstance(index, MemoryIndex):
        keys: Iterable[bytes] = (key for key in index.stored_after(after) if key.startswith(prefix))
    else:
        keys = index.keys(prefix)
    for key in keys:
        newest = index.newest(key, intervals)
        if newest is not None and newest.commit_lsn > after:
            found[key] = Change(newest.commit_lsn, bool(newest.flags & fmt.ENTRY_TOMBSTONE))
    return found


def history_in(
    index: MappedIndex | PlainIndex, key: bytes, intervals: Intervals
) -> VersionColumns | None:
    """Return the visible versions of a key, deletions left out; None for none."""
    if isinstance(index, MappedIndex):
        return index.history(key, intervals)
    found = _stored(index, key, intervals)
    if not found:
        return None
    rows = [row for entry in found if (row := index.commit_at(entry.commit_lsn)) is not None]
    whole = len(rows) == len(found)
    return VersionColumns(
        [entry.commit_lsn for entry in found],
        [row.epoch for row in rows] if whole else None,
        [row.time for row in rows] if whole else None,
        [entry.length for entry in found],
        [entry.attr for entry in found],
        [entry.digest for entry in found],
    )


def attrs_in(
    index: MappedIndex | PlainIndex, key: bytes, intervals: Intervals
) -> AttrColumns | None:
    """Return the attrs of the visible versions of a key; None for none."""
    if isinstance(index, MappedIndex):
        return index.attrs(key, intervals)
    found = _stored(index, key, intervals)
    if not found:
        return None
    rows = [row for entry in found if (row := index.commit_at(entry.commit_lsn)) is not None]
    whole = len(rows) == len(found)
    return AttrColumns(
        np.array([entry.commit_lsn for entry in found], np.int64),
        np.array([row.epoch for row in rows], np.int64) if whole else None,
        np.array([len(entry.attr) for entry in found], np.int64),
        b"".join([entry.attr for entry in found]),
    )


def _stored(index: PlainIndex, key: bytes, intervals: Intervals) -> list[Entry]:
    """The visible versions of a key, deletions left out."""
    return [
        entry
        for entry in index.versions(key)
        if not entry.flags & fmt.ENTRY_TOMBSTONE and is_visible(entry.commit_lsn, intervals)
    ]


def keys_around(
    index: MappedIndex | PlainIndex, prefix: bytes, key: bytes, count: int
) -> set[bytes]:
    """Return up to *count* keys with this prefix on each side of where *key* would stand."""
    if isinstance(index, MappedIndex):
        first, place = index.key_number(prefix), index.key_number(key)
        start = max(first, place - count)
        return set(index.block(start, place - start + count, prefix, None)[0])
    names = list(index.keys(prefix))
    place = bisect_left(names, key)
    return set(names[max(place - count, 0) : place + count])
