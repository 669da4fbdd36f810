"""The index of a sealed segment, in its mapped columns: an IndexPart as MemoryIndex is one."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

from mldb.errors import CorruptError
from mldb.log.checksum import check64
from mldb.log.format import DIGEST_SIZE
from mldb.log.index.address import CommitRow, Entry, Intervals
from mldb.log.index.columns import COMMIT_COLUMNS, ColumnReader, iterate_heap
from mldb.log.index.lineage import newest_visible
from mldb.log.index.memory import CommitField
from mldb.log.index.merge_parts import check_columns
from mldb.log.index.steps import Column

_KEY_CACHE_MAX = 1 << 14
_COMMIT_NAMES = tuple(COMMIT_COLUMNS)
_NO_DIGEST = bytes(DIGEST_SIZE)

_KeyRows = tuple[tuple[int, ...], int]
"""The commit LSNs of one key's versions, and the row of the first."""


class MappedIndex:
    """An index that reads its columns in place. Any thread.

    What it returns is copied out of the mapping and lives for ever. ``_cache`` maps keys to their
    rows, ``_entries`` rows to entries, both bounded by being emptied when full; ``_last`` is the
    last commit once it was asked for. All are only ever replaced by equal values, so they need no
    lock.
    """

    __slots__ = (
        "_cache",
        "_entries",
        "_is_sound",
        "_last",
        "_reader",
        "_segment",
        "first_lsn",
        "last_lsn",
    )

    def __init__(self, reader: ColumnReader, segment: bytes) -> None:
        self._reader = reader
        self._segment = segment
        self._cache: dict[bytes, _KeyRows | None] = {}
        self._entries: dict[int, Entry] = {}
        count = reader.count("commit_lsn")
        self.first_lsn = reader.value("commit_lsn", 0) if count else 0
        self.last_lsn = reader.value("commit_lsn", count - 1) if count else 0
        self._last: CommitRow | None = None
        self._is_sound = False

    def _rows(self, key: bytes) -> _KeyRows | None:
        """Find the versions of a key by its hash."""
        try:
            return self._cache[key]
        except KeyError:
            found = self._find(key)
        if len(self._cache) >= _KEY_CACHE_MAX:
            self._cache = {}
        self._cache[key] = found
        return found

    def _find(self, key: bytes) -> _KeyRows | None:
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
                return tuple(reader.span("row_commit", low, high).tolist()), low
            place -= 1
        return None

    def _entry(self, row: int) -> Entry:
        try:
            return self._entries[row]
        except KeyError:
            pass
        reader = self._reader
        flags = reader.value("row_flags", row)
        digest = reader.span("row_digest", row, row + 1).tobytes()
        entry = Entry(
            reader.value("row_commit", row),
            self._segment,
            reader.value("row_frame", row),
            reader.value("row_offset", row),
            reader.value("row_length", row),
            reader.heap("attr", reader.value("row_attr", row)),
            flags,
            reader.value("row_encoding", row),
            reader.value("row_base", row),
            b"" if digest == _NO_DIGEST else digest,
            self._owner(row),
        )
        if len(self._entries) >= _KEY_CACHE_MAX:
            self._entries = {}
        self._entries[row] = entry
        return entry

    def _owner(self, row: int) -> bytes:
        """The owner of a version; few segments have the columns."""
        if not self._reader.has("row_owner"):
            return b""
        number = self._reader.value("row_owner", row)
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
            index = newest_visible(lsns, intervals)
            if index < 0:
                return None
        return self._entries.get(first + index) or self._entry(first + index)

    def versions(self, key: bytes) -> Sequence[Entry]:
        """Return all versions, oldest first."""
        rows = self._rows(key)
        if rows is None:
            return ()
        lsns, first = rows
        return [self._entry(first + index) for index in range(len(lsns))]

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield keys with this prefix in order."""
        for key in iterate_heap(self._reader, "key", self._first_key(prefix)):
            if not key.startswith(prefix):
                return
            yield key

    def some_keys(self, prefix: bytes, number: int, count: int) -> tuple[list[bytes], int]:
        """Return up to *count* keys with this prefix, and the number of the key behind them.

        *number* is that of an earlier call, -1 to begin. An empty list is the end. So who walks
        many segments holds the mapping of none between two calls.
        """
        start = self._first_key(prefix) if number < 0 else number
        found = list(itertools.islice(iterate_heap(self._reader, "key", start), count))
        keys = list(itertools.takewhile(lambda key: key.startswith(prefix), found))
        return keys, start + len(keys)

    def _first_key(self, prefix: bytes) -> int:
        low, high = 0, self._reader.count("key_offset") - 1
        while low < high:
            middle = (low + high) // 2
            if self._reader.heap("key", middle) < prefix:
                low = middle + 1
            else:
                high = middle
        return low

    def commit_at(self, lsn: int) -> CommitRow | None:
        """Return the commit with this LSN."""
        if lsn == self.last_lsn and lsn:
            if self._last is None:
                self._last = self._commit(self._reader.count("commit_lsn") - 1)
            return self._last
        row = self._commit_row(lsn) - 1
        if row < 0 or self._reader.value("commit_lsn", row) != lsn:
            return None
        return self._commit(row)

    def _commit_row(self, lsn: int) -> int:
        """The number of commits with an LSN up to this one."""
        return self._reader.search_right("commit_lsn", lsn, 0, self._reader.count("commit_lsn"))

    def _commit(self, row: int) -> CommitRow:
        reader = self._reader
        commit_id = b""
        if reader.has("commit_id"):
            stored = reader.span("commit_id", row, row + 1).tobytes()
            commit_id = b"" if stored == _NO_DIGEST else stored
        return CommitRow._make([*(reader.value(name, row) for name in _COMMIT_NAMES), commit_id])

    def commits(self, low: int, high: int) -> Iterator[CommitRow]:
        """Yield the commits in this range."""
        for row in range(self._commit_row(low - 1), self._commit_row(high)):
            yield self._commit(row)

    def last_commit(self, low: int, high: int, field: CommitField, limit: int) -> CommitRow | None:
        """Return the last commit in the range with field <= limit."""
        start, stop = self._commit_row(low - 1), self._commit_row(high)
        row = self._reader.search_right(f"commit_{field}", limit, start, stop) - 1
        return self._commit(row) if row >= start else None

    def entry_count(self) -> int:
        """How many versions the index holds."""
        return self._reader.count("row_commit")

    def commit_count(self) -> int:
        """How many commits are held."""
        return self._reader.count("commit_lsn")

    def dump(self) -> tuple[dict[bytes, list[Entry]], list[CommitRow]]:
        """Read everything back, to be merged into a larger index."""
        starts = self._reader.span("key_row", 0, self._reader.count("key_row")).tolist()
        keys = list(self.keys(b""))
        if len(starts) != len(keys) + 1 or starts[-1] != self.entry_count():
            raise CorruptError("the index contradicts itself", file=self._reader.file)
        entries = {
            key: [self._entry(row) for row in range(low, high)]
            for key, (low, high) in zip(keys, pairwise(starts), strict=True)
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
                tuple(sorted(set(lsns))) == lsns for lsns, _ in filter(None, map(self._rows, keys))
            )
        )
        if not sound:
            raise CorruptError("the index contradicts itself", file=reader.file)
