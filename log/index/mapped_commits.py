"""The commits of a mapped index: the half of it that knows no keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from mldb.errors import CorruptError
from mldb.log.format import DIGEST_SIZE
from mldb.log.index.address import CommitRow
from mldb.log.index.column_reader import ColumnReader
from mldb.log.index.columns import COMMIT_COLUMNS
from mldb.log.index.memory import CommitField

_COMMIT_NAMES: Final = tuple(COMMIT_COLUMNS)
_NO_ID: Final = bytes(DIGEST_SIZE)


class MappedCommits:
    """The table of commits in the columns of an index. Any thread.

    What it returns is copied out of the mapping and lives for ever. *segments* are the ids of the
    segments that its rows lie in. ``_ends`` are the LSNs of the first and last commit, ``_last`` is
    the last commit, each once it was asked for; only ever replaced by equal values, so no lock.
    """

    __slots__ = ("_ends", "_last", "_reader", "_segments")

    def __init__(self, reader: ColumnReader, segments: Sequence[bytes]) -> None:
        self._reader = reader
        self._segments = segments
        self._ends: tuple[int, int] | None = None
        self._last: CommitRow | None = None

    @property
    def first_lsn(self) -> int:
        """LSN of the first commit, or 0."""
        return (self._ends or self._find_ends())[0]

    @property
    def last_lsn(self) -> int:
        """LSN of the last commit, or 0."""
        return (self._ends or self._find_ends())[1]

    def _find_ends(self) -> tuple[int, int]:
        """Read both ends when they are first asked for: most of who opens an index wants a key."""
        count, value = self._reader.count("commit_lsn"), self._reader.value
        ends = (value("commit_lsn", 0), value("commit_lsn", count - 1)) if count else (0, 0)
        self._ends = ends
        return ends

    @property
    def reader(self) -> ColumnReader:
        """The columns."""
        return self._reader

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
            commit_id = b"" if stored == _NO_ID else stored
        return CommitRow._make([*(reader.value(name, row) for name in _COMMIT_NAMES), commit_id])

    def commits(self, low: int, high: int) -> Iterator[CommitRow]:
        """Yield the commits in this range."""
        for row in range(self._commit_row(low - 1), self._commit_row(high)):
            yield self._commit(row)

    def placed(self, low: int, high: int) -> Iterator[tuple[bytes, CommitRow]]:
        """Yield (segment id, commit) in this range."""
        reader = self._reader
        merged = reader.has("commit_segment")
        for row in range(self._commit_row(low - 1), self._commit_row(high)):
            number = reader.value("commit_segment", row) if merged else 0
            yield self._segment(number), self._commit(row)

    def last_commit(self, low: int, high: int, field: CommitField, limit: int) -> CommitRow | None:
        """Return the last commit in the range with field <= limit."""
        start, stop = self._commit_row(low - 1), self._commit_row(high)
        row = self._reader.search_right(f"commit_{field}", limit, start, stop) - 1
        return self._commit(row) if row >= start else None

    def commit_count(self) -> int:
        """How many commits are held."""
        return self._reader.count("commit_lsn")

    def _segment(self, number: int) -> bytes:
        if number < len(self._segments):
            return self._segments[number]
        raise CorruptError(
            f"a version lies in segment {number} of {len(self._segments)}", file=self._reader.file
        )
