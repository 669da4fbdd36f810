"""The index of sealed segments, in its mapped columns: an IndexPart as MemoryIndex is one."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.checksum import check64
from mldb.log.format import DIGEST_SIZE
from mldb.log.index.address import CommitRow, Entry, Intervals
from mldb.log.index.bulk import (
    ABSENT,
    AttrColumns,
    Change,
    VersionColumns,
    attr_columns,
    changed_keys,
    entries_at,
    newest_rows,
    read_keys,
    version_columns,
)
from mldb.log.index.column_reader import ColumnReader, iterate_heap
from mldb.log.index.lazy_lsns import LazyLsns
from mldb.log.index.lineage import Memo, newest_visible
from mldb.log.index.mapped_commits import BLOCK_ROWS, MappedCommits
from mldb.log.index.memory import after_prefix
from mldb.log.index.merge_parts import check_columns
from mldb.log.index.steps import Column

if TYPE_CHECKING:
    import numpy.typing as npt

_KEY_CACHE_MAX = 1 << 14
_CACHE_MIN: Final = 1 << 11
_CACHED_SHARE: Final = 10
"""Of the versions a tenth is kept, since one that is costs some 500 bytes: 50 for each version."""
_MEMOS_MAX = 1 << 10
_NO_DIGEST = bytes(DIGEST_SIZE)
_MANY: Final = 1 << 10
"""Versions of a key from which their LSNs are not kept, but looked up."""
_BLOCK_ROWS: Final = BLOCK_ROWS
_ONE_BY_ONE: Final = 6
"""From so many versions of a key in one block on, all of them are decoded when the first one is
asked for: they are neighbours, and it costs no more than as many one by one."""

_KeyRows = tuple[Sequence[int], int]
"""The commit LSNs of one key's versions, and the row of the first."""
_Kept = TypeVar("_Kept")
_Value = TypeVar("_Value")


def _thinned(kept: dict[_Kept, _Value], room: int) -> dict[_Kept, _Value]:
    """Return half of *room* at most, of any age.

    Emptied, or without the oldest, it would have nothing of what is read round after round and is
    just larger than the room.
    """
    items = list(kept.items())  # in one step: others may be adding
    return dict(items[:: max(2, -(-2 * len(items) // max(room, 1)))])


class MappedIndex(MappedCommits):
    """An index that reads its columns in place. Any thread.

    What it returns is copied out of the mapping and lives for ever. *segments* are the ids of the
    segments that its rows lie in: one for a footer, those of its segment column otherwise.
    ``_cache`` maps keys to their rows, ``_entries`` rows to entries, ``_asked`` are the blocks of
    rows of which one was asked for, ``_memos`` what lineages lead to; all bounded by being emptied
    when full, or thinned where ``_room`` bounds them. All are only ever replaced by equal values,
    so they need no lock.
    """

    __slots__ = ("_asked", "_cache", "_entries", "_is_sound", "_memos", "_room")

    def __init__(self, reader: ColumnReader, *segments: bytes) -> None:
        super().__init__(reader, segments)
        self._cache: dict[bytes, _KeyRows | None] = {}
        self._entries: dict[int, Entry] = {}
        self._asked: set[int] = set()
        self._memos: dict[bytes, Memo] = {}
        self._is_sound = False
        share = max(self.entry_count() // _CACHED_SHARE, _CACHE_MIN)
        self._room = min(share, _KEY_CACHE_MAX)

    def _rows(self, key: bytes) -> _KeyRows | None:
        """Find the versions of a key by its hash."""
        try:
            return self._cache[key]
        except KeyError:
            found = self._find(key)
        if len(self._cache) >= self._room:
            self._cache = _thinned(self._cache, self._room)
        self._cache[key] = found
        return found

    def _find(self, key: bytes) -> _KeyRows | None:
        span = self._span(key)
        if span is None:
            return None
        low, high = span
        if high - low > _MANY:
            return LazyLsns(self._reader, low, high - low), low
        return tuple(self._reader.span("row_commit", low, high).tolist()), low

    def _span(self, key: bytes) -> tuple[int, int] | None:
        """Where the rows of a key start and stop."""
        reader = self._reader
        wanted = check64(key)
        count = reader.count("hash")
        if not count:
            return None
        place = reader.search_right("hash", wanted, 0, count) - 1
        while place >= 0 and reader.value("hash", place) == wanted:
            number = reader.value("hash_key", place)
            if reader.heap("key", number) == key:
                low, high = reader.span("key_row", number, number + 2).tolist()
                if not low <= high <= reader.count("row_commit"):
                    raise CorruptError(
                        f"key {number} has the rows {low}..{high} of {reader.count('row_commit')}",
                        file=reader.file,
                    )
                return low, high
            place -= 1
        return None

    def _entry(self, row: int) -> Entry:
        try:
            return self._entries[row]
        except KeyError:
            pass
        if len(self._entries) >= self._room:
            self._entries, self._asked = _thinned(self._entries, self._room), set()
        block = row // _BLOCK_ROWS
        if block not in self._asked:
            self._asked.add(block)
            entry = self._entries[row] = self._decode(row)
            return entry
        low = block * _BLOCK_ROWS
        high = min(low + _BLOCK_ROWS, self.entry_count())
        if row >= high:
            return self._decode(row)  # which says that there is no such row
        return self._keep(row, low, high)

    def _keep(self, row: int, low: int, high: int) -> Entry:
        """Decode the rows low..high, keep them, and return *row*, which is one of them."""
        try:
            found = self._many(range(low, high))
        except CorruptError:  # another row may be the damaged one
            entry = self._entries[row] = self._decode(row)
            return entry
        self._entries.update(zip(range(low, high), found, strict=True))
        return found[row - low]

    def _version(self, row: int, first: int, count: int) -> Entry:
        """Row *row*, a version of the key whose *count* rows begin with *first*."""
        low = row - row % _BLOCK_ROWS
        high = min(low + _BLOCK_ROWS, first + count)
        low = max(low, first)
        if high - low < _ONE_BY_ONE:
            return self._entry(row)
        if len(self._entries) >= self._room:
            self._entries, self._asked = _thinned(self._entries, self._room), set()
        return self._keep(row, low, high)

    def _decode(self, row: int) -> Entry:
        """One row; without NumPy, which costs more than the values."""
        reader = self._reader
        digest = reader.span("row_digest", row, row + 1).tobytes()
        merged = reader.has("row_segment")
        return Entry(
            reader.value("row_commit", row),
            self._segment(reader.value("row_segment", row) if merged else 0),
            reader.value("row_frame", row),
            reader.value("row_offset", row),
            reader.value("row_length", row),
            reader.heap("attr", reader.value("row_attr", row)),
            reader.value("row_flags", row),
            reader.value("row_encoding", row),
            reader.value("row_base", row),
            b"" if digest == _NO_DIGEST else digest,
            self._owner(reader.value("row_owner", row)) if reader.has("row_owner") else b"",
        )

    def _owner(self, number: int) -> bytes:
        """The owner of a version; few segments have any."""
        return self._reader.heap("owner", number - 1) if number else b""

    def newest(self, key: bytes, intervals: Intervals) -> Entry | None:
        """Return the newest version inside the intervals."""
        rows = self._rows(key)
        if rows is None or not intervals:
            return None
        lsns, first = rows
        low, high = intervals[-1]
        index = bisect_right(lsns, high) - 1
        if index < 0 or lsns[index] < low:
            memo = self._memos.setdefault(key, {})
            index = newest_visible(lsns, intervals, None, memo)
            if not memo:
                self._memos.pop(key, None)
            elif len(self._memos) > _MEMOS_MAX:
                self._memos = {}
            if index < 0:
                return None
        row = first + index
        return self._entries.get(row) or self._version(row, first, len(lsns))

    def versions(self, key: bytes) -> Sequence[Entry]:
        """Return all versions, oldest first."""
        rows = self._rows(key)
        if rows is None:
            return ()
        lsns, first = rows
        if len(lsns) > _BLOCK_ROWS:
            return self._many(range(first, first + len(lsns)))
        return [self._entry(first + index) for index in range(len(lsns))]

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield keys with this prefix in order."""
        for key in iterate_heap(self._reader, "key", self.key_number(prefix)):
            if not key.startswith(prefix):
                return
            yield key

    def keys_from(self, prefix: bytes, start: bytes) -> Iterator[bytes]:
        """Yield those of them that do not stand before *start*: O(log keys) to the first."""
        for key in iterate_heap(self._reader, "key", self.key_number(max(prefix, start))):
            if not key.startswith(prefix):
                return
            yield key

    def block(
        self, start: int, count: int, prefix: bytes, intervals: Intervals | None
    ) -> tuple[list[bytes], npt.NDArray[np.int64], int]:
        """Return up to *count* keys with this prefix from key number *start* on, -1 to begin.

        With them the rows of their newest visible versions, GONE for a deletion; keys without any
        are left out, and with None for *intervals* every key comes, with row 0. Last comes the
        number to go on from, -1 at the end. So who walks many segments holds the mapping of none
        between two calls.
        """
        reader = self._reader
        start = self.key_number(prefix) if start < 0 else start
        stop = min(start + count, reader.count("key_offset") - 1)
        keys = read_keys(reader, start, stop) if start < stop else []
        whole = len(keys) == count
        if keys and not keys[-1].startswith(prefix):
            behind = after_prefix(prefix)
            del keys[len(keys) if behind is None else bisect_left(keys, behind) :]
            whole = False
        following = start + len(keys) if whole else -1
        if intervals is None or not keys:
            return keys, np.zeros(len(keys), np.int64), following
        rows = newest_rows(reader, start, start + len(keys), intervals)
        if rows.min() == ABSENT:
            seen = rows != ABSENT
            keys = list(itertools.compress(keys, seen.tolist()))
            rows = rows[seen]
        return keys, rows, following

    def entries(self, rows: Sequence[int]) -> list[Entry]:
        """Return the entries of these rows."""
        found = entries_at(self._reader, self._segments, rows)
        return [self._entry(row) for row in rows] if found is None else found

    def _many(self, rows: range) -> list[Entry]:
        found = entries_at(self._reader, self._segments, rows)
        assert found is not None, "they stand side by side"
        return found

    def changes(self, prefix: bytes, after: int, intervals: Intervals) -> dict[bytes, Change]:
        """Return the keys with this prefix that have visible versions above commit *after*.

        Costs what the columns of these keys cost, not a call for each.
        """
        start, behind = self.key_number(prefix), after_prefix(prefix)
        stop = self._reader.count("key_offset") - 1 if behind is None else self.key_number(behind)
        return changed_keys(self._reader, start, stop, after, intervals)

    def history(self, key: bytes, intervals: Intervals) -> VersionColumns | None:
        """Return the visible versions of a key, deletions left out; None for none."""
        span = self._span(key)
        return None if span is None else version_columns(self._reader, *span, intervals)

    def attrs(self, key: bytes, intervals: Intervals) -> AttrColumns | None:
        """Return the attrs of the visible versions of a key; None for none."""
        span = self._span(key)
        return None if span is None else attr_columns(self._reader, *span, intervals)

    def key_number(self, prefix: bytes) -> int:
        """Return the number of the first key that is not below *prefix*."""
        low, high = 0, self._reader.count("key_offset") - 1
        while low < high:
            middle = (low + high) // 2
            if self._reader.heap("key", middle) < prefix:
                low = middle + 1
            else:
                high = middle
        return low

    def with_digest(self, digest: bytes) -> Iterator[tuple[bytes, Entry]]:
        """Yield (key, version) of the versions whose bytes have this digest; merged indexes only.

        FORMAT.md section 6 has the columns.
        """
        reader = self._reader
        wanted = int.from_bytes(digest[:8], "little")
        count = reader.count("digest")
        place = reader.search_right("digest", wanted, 0, count) - 1
        while place >= 0 and reader.value("digest", place) == wanted:
            key, entry = self.version(reader.value("digest_row", place))
            if entry.digest == digest:
                yield key, entry
            place -= 1

    def version(self, row: int) -> tuple[bytes, Entry]:
        """Return key and entry of one row."""
        reader = self._reader
        number = reader.search_right("key_row", row, 0, reader.count("key_row")) - 1
        return reader.heap("key", number), self._entry(row)

    def rows_with_bytes(self) -> npt.NDArray[np.int64]:
        """Return the rows of versions that have stored bytes of their own, ascending."""
        return np.flatnonzero(self._reader.whole("row_length") > 0)

    def rows_with_base(self) -> npt.NDArray[np.int64]:
        """Return the rows of versions that have their bytes from another one, ascending."""
        return np.flatnonzero(np.isin(self._reader.whole("row_encoding"), fmt.BUILT_ENCODINGS))

    def digests(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """Return the first halves of the digests of these rows, as numbers; copied."""
        halves = self._reader.whole("row_digest").view("<u8").reshape(-1, 2)
        found: npt.NDArray[np.uint64] = halves[rows, 0].astype(np.uint64)
        return found

    def entry_count(self) -> int:
        """How many versions the index holds."""
        return self._reader.count("row_commit")

    def dump(self) -> tuple[dict[bytes, list[Entry]], list[CommitRow]]:
        """Read everything back, to be merged into a larger index."""
        starts = self._reader.span("key_row", 0, self._reader.count("key_row")).tolist()
        keys = list(self.keys(b""))
        if len(starts) != len(keys) + 1 or starts[-1] != self.entry_count():
            raise CorruptError("the index contradicts itself", file=self._reader.file)
        found = self.entries(range(self.entry_count()))
        entries = {
            key: found[low:high] for key, (low, high) in zip(keys, pairwise(starts), strict=True)
        }
        return entries, list(self.commits(1, self.last_lsn))

    def columns(self) -> dict[str, Column]:
        """Return all columns, which live in the mapping: to be merged with newer ones.

        The first call proves that they fit together: O(versions). Raises CorruptError.
        """
        columns = {name: self._reader.whole(name) for name in self._reader.names()}
        if not self._is_sound:
            check_columns(columns, self._reader.file)
            self._is_sound = True
        return columns

    def check(self) -> None:
        """Assert the invariants, reading everything; raises CorruptError."""
        reader = self._reader
        keys = list(self.keys(b""))
        starts = reader.span("key_row", 0, reader.count("key_row")).tolist()
        sound = (
            keys == sorted(set(keys))
            and len(starts) == len(keys) + 1
            and starts == sorted(starts)
            and starts[-1] == self.entry_count()
            and all(self._find(key) is not None for key in keys)
            and all(
                sorted(set(lsns)) == list(lsns) for lsns, _ in filter(None, map(self._rows, keys))
            )
        )
        if not sound:
            raise CorruptError("the index contradicts itself", file=reader.file)
