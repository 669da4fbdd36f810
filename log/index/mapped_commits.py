"""The commits of a mapped index: the half of it that knows no keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from mldb.errors import CorruptError
from mldb.log.format import DIGEST_SIZE, TIME_MAX, TIME_MIN
from mldb.log.index.address import CommitRow, make_row
from mldb.log.index.bulk import digests_of
from mldb.log.index.column_reader import ColumnReader
from mldb.log.index.columns import COMMIT_COLUMNS, OPTIONAL_COLUMNS
from mldb.log.index.memory import CommitField
from mldb.log.index.steps import Column

_COMMIT_NAMES: Final = tuple(COMMIT_COLUMNS)
_NO_ID: Final = bytes(DIGEST_SIZE)
_ASKED_OFTEN: Final = 32
"""Single commits asked for, from which on the columns are looked at as a whole."""
_WHOLE_MAX: Final = 1 << 17
"""Commits of an index whose columns are: what that verifies takes a millisecond or two."""
_AT_ONCE: Final = 256
BLOCK_ROWS: Final = 64
"""So many rows are decoded at once where a second one of them is asked for: all of a block cost as
much as six rows one by one, and who asks for two asks for more."""
_BLOCKS_MAX: Final = 32
"""Blocks of commits that are kept of one index: some 700 KB."""


class MappedCommits:
    """The table of commits in the columns of an index. Any thread.

    What it returns is copied out of the mapping and lives for ever. *segments* are the ids of the
    segments that its rows lie in. ``_ends`` are the LSNs of the first and last commit, ``_last`` is
    the last commit, each once it was asked for; ``_whole`` are verified columns in the mapping,
    once commits were asked for often: a search along a lineage asks for dozens. ``_blocks`` are
    decoded rows by the number of their block, None where one of it was asked for; it is emptied
    when full. All are only ever replaced by equal values, so they need no lock; ``_asked_for`` may
    miss one.
    """

    __slots__ = ("_asked_for", "_blocks", "_ends", "_last", "_reader", "_segments", "_whole")

    def __init__(self, reader: ColumnReader, segments: Sequence[bytes]) -> None:
        self._reader = reader
        self._segments = segments
        self._ends: tuple[int, int] | None = None
        self._last: CommitRow | None = None
        self._whole: list[Column] | None = None
        self._blocks: dict[int, list[CommitRow] | None] = {}
        self._asked_for = 0

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
        whole = self._whole or self._look_often()
        if whole is not None:
            lsns = whole[0]
            row = int(lsns.searchsorted(np.uint64(max(lsn, 0))))
            return self._commit(row) if row < len(lsns) and lsns[row] == lsn else None
        row = self._commit_row(lsn) - 1
        if row < 0 or self._reader.value("commit_lsn", row) != lsn:
            return None
        return self._commit(row)

    def _look_often(self) -> list[Column] | None:
        """Return the columns once they are worth to be verified as a whole."""
        self._asked_for += 1
        if self._asked_for < _ASKED_OFTEN or self.commit_count() > _WHOLE_MAX:
            return None
        whole = [self._reader.whole(name) for name in _COMMIT_NAMES]
        whole.append(self._ids(0, self.commit_count()))
        self._whole = whole
        return whole

    def _ids(self, low: int, high: int) -> Column:
        """The ids of these commits as stored; those of version 1 have none."""
        if self._reader.has("commit_id"):
            return self._reader.span("commit_id", low, high)
        return np.zeros(high - low, OPTIONAL_COLUMNS["commit_id"])

    def _commit_row(self, lsn: int) -> int:
        """The number of commits with an LSN up to this one."""
        if self._whole is not None:
            return int(self._whole[0].searchsorted(np.uint64(max(lsn, 0)), side="right"))
        return self._reader.search_right("commit_lsn", lsn, 0, self._reader.count("commit_lsn"))

    def _commit(self, row: int) -> CommitRow:
        """Commit number *row*, which there is: of a block from the second one of it on."""
        blocks = self._blocks
        number = row // BLOCK_ROWS
        block = blocks.get(number)
        if block is not None:
            return block[row % BLOCK_ROWS]
        is_second = number in blocks
        if len(blocks) >= _BLOCKS_MAX:
            blocks = self._blocks = {}
        blocks[number] = None
        if is_second:
            low = number * BLOCK_ROWS
            try:
                block = next(self._decoded(low, min(low + BLOCK_ROWS, self.commit_count())))
            except CorruptError:
                return self._decode_commit(row)  # another row of the block may be the damaged one
            blocks[number] = block
            return block[row % BLOCK_ROWS]
        return self._decode_commit(row)

    def _decode_commit(self, row: int) -> CommitRow:
        whole, reader = self._whole, self._reader
        if whole is None:
            fields = [reader.value(name, row) for name in _COMMIT_NAMES]
            stored = self._ids(row, row + 1).tobytes()
        else:
            *fields, stored = [column.item(row) for column in whole]
        return CommitRow._make([*fields, b"" if stored == _NO_ID else stored])

    def _decoded(self, low: int, high: int) -> Iterator[list[CommitRow]]:
        """Yield the rows low..high, some at a time, decoded column by column."""
        reader = self._reader
        for start in range(low, high, _AT_ONCE):
            stop = min(start + _AT_ONCE, high)
            columns = [reader.span(name, start, stop).tolist() for name in _COMMIT_NAMES]
            columns.append(digests_of(self._ids(start, stop)))
            yield list(map(make_row, zip(*columns, strict=True)))

    def commits(self, low: int, high: int) -> Iterator[CommitRow]:
        """Yield the commits in this range."""
        for rows in self._decoded(self._commit_row(low - 1), self._commit_row(high)):
            yield from rows

    def placed(self, low: int, high: int) -> Iterator[tuple[bytes, CommitRow]]:
        """Yield (segment id, commit) in this range."""
        start = self._commit_row(low - 1)
        for rows in self._decoded(start, self._commit_row(high)):
            stop = start + len(rows)
            numbers = [0] * len(rows)
            if self._reader.has("commit_segment"):
                numbers = self._reader.span("commit_segment", start, stop).tolist()
            yield from zip(map(self._segment, numbers), rows, strict=True)
            start = stop

    def last_commit(self, low: int, high: int, field: CommitField, limit: int) -> CommitRow | None:
        """Return the last commit in the range with field <= limit."""
        if low <= self.first_lsn and high >= self.last_lsn:
            start, stop = 0, self.commit_count()
        else:
            start, stop = self._commit_row(low - 1), self._commit_row(high)
        whole, name = self._whole, f"commit_{field}"
        if whole is None:
            row = self._reader.search_right(name, limit, start, stop) - 1
        else:
            values = whole[_COMMIT_NAMES.index(name)][start:stop]
            limit = min(max(limit, TIME_MIN), TIME_MAX)
            row = start + int(values.searchsorted(np.int64(limit), side="right")) - 1
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
