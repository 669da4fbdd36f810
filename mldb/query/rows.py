"""All versions of one key space as columns, taken from the indexes as they are mapped.

What a segment's footer, or a part of the directory, has as columns stays columns: a million
versions cost no step of Python's each. Versions of every lineage are there; what a snapshot sees of
them is found by bisection, one step for all keys at once. What is committed later is appended as a
further run, so that it costs what it stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Numbers
from mldb.deferred import dataclass
from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.index.address import Entry, Intervals
from mldb.log.index.bulk import heap_items, key_starts, read_keys
from mldb.log.index.column_reader import ColumnReader
from mldb.log.index.listing import PlainIndex, asked
from mldb.log.index.mapped import MappedIndex
from mldb.log.index.memory import MemoryIndex
from mldb.log.view import View
from mldb.query.runs import Lives, VersionRun, merged_runs

_SPREAD: Final = 64
"""Items of a heap that lie further apart than this many times their size are read one by one."""

_Attrs = tuple[list[bytes], Numbers]


@dataclass(frozen=True, slots=True)
class _Part:
    """What one index has: its keys, the number of rows of each, its attrs, and columns by row."""

    keys: list[bytes]
    counts: Numbers
    attrs: list[bytes]
    columns: dict[str, npt.NDArray[Any]]


class SpaceRows:
    """The versions of the keys that start with one byte. For one thread at a time.

    ``keys`` and ``attrs`` are the distinct ones, in the order they were met, keys without the byte
    of their space; the rows of a run name them by number. ``high`` is the last commit that is in,
    ``number`` that of the manifest. A row is named by its number over all runs.
    """

    def __init__(self, space: bytes) -> None:
        self.space = space
        self.number = -1
        self._clear()

    def _clear(self) -> None:
        self.keys: list[bytes] = []
        self.attrs: list[bytes] = []
        self.high = 0
        self._key_codes: dict[bytes, int] = {}
        self._attr_codes: dict[bytes, int] = {}
        self._runs: list[VersionRun] = []
        self._rank: Numbers | None = None

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def bring_up_to(self, view: View) -> None:
        """Take in what *view* has besides: what was committed since, all when files changed.

        A view that is older changes nothing. Raises CorruptError.
        """
        if view.number > self.number:
            parts = [asked(part, lambda index: self._read(index, 0, view)) for part in view.parts()]
            self._clear()
            self._add(parts)
        elif view.commit.lsn > self.high:
            self._add([self._read(index, self.high, view) for index in reversed(view.active)])
        else:
            return
        self.number, self.high = view.number, view.commit.lsn

    def _read(self, index: MappedIndex | PlainIndex | Any, after: int, view: View) -> _Part:
        if isinstance(index, MappedIndex):
            return _mapped_part(index, self.space, after, view.commit.lsn)
        if isinstance(index, MemoryIndex) and after:
            known = index.stored_after(after)
            found = [key for key in known if key[:1] == self.space]
        else:
            found = list(index.keys(self.space))
        return _plain_part(index, found, after, view.commit.lsn)

    def _add(self, parts: Sequence[_Part]) -> None:
        """Append parts, oldest first, as one run."""
        runs = [self._run_of(part) for part in parts if len(part.columns["commit"])]
        if not runs:
            return
        self._runs.append(merged_runs(runs))
        # As the digits of a binary counter: so there are few runs, and a row is moved seldom.
        while len(self._runs) > 1 and 2 * len(self._runs[-1]) >= len(self._runs[-2]):
            self._runs[-2:] = [merged_runs(self._runs[-2:])]
        self._rank = None

    def _run_of(self, part: _Part) -> VersionRun:
        codes = _numbered(part.keys, self._key_codes, self.keys, 1)
        attrs = _numbered(part.attrs, self._attr_codes, self.attrs, 0)
        starts = np.concatenate([[0], np.cumsum(part.counts)]).astype(np.int64)
        some = np.flatnonzero(part.counts)
        columns = part.columns
        return VersionRun(
            codes[some],
            np.append(starts[some], starts[-1]),
            columns["commit"].astype(np.int64),
            attrs[columns["attr"]].astype(np.int32),
            columns["length"].astype(np.int64),
            columns["flags"].astype(np.uint8),
            columns["encoding"].astype(np.uint8),
        )

    # --- what a snapshot sees ---------------------------------------------------------------------

    def newest(self, intervals: Intervals) -> Numbers:
        """Return the row of the newest version of each key that exists, by key in byte order."""
        found = np.full(len(self.keys), -1, np.int64)
        offset = 0
        for run in self._runs:
            rows = run.newest(intervals)
            seen = rows >= 0
            found[run.codes[seen]] = rows[seen] + offset
            offset += len(run)
        rows = found[found >= 0]
        rows = rows[self.take("flags", rows) & fmt.ENTRY_TOMBSTONE == 0]
        return self._in_order(rows)

    def lives(self, intervals: Intervals) -> Lives:
        """Return for each key, by its code, how many versions can be seen, and its first commit.

        That is the first of its present life: behind its last deletion.
        """
        known = Lives(np.zeros(len(self.keys), np.int64), np.zeros(len(self.keys), np.int64))
        for run in self._runs:
            run.add_lives(known, intervals)
        return known

    def visible(self, intervals: Intervals) -> Numbers:
        """Return all rows that can be seen, deletions among them, by key and then by commit."""
        offset, found = 0, [np.empty(0, np.int64)]
        for run in self._runs:
            found.append(run.visible(intervals) + offset)
            offset += len(run)
        return self._in_order(np.concatenate(found))

    def _in_order(self, rows: Numbers) -> Numbers:
        """Rows by key in byte order; those of a key stay as they are, which is by commit."""
        ranks = self.rank()[self.key_codes(rows)]
        if (ranks[1:] >= ranks[:-1]).all():
            return rows
        return rows[np.argsort(ranks, kind="stable")]

    def rank(self) -> Numbers:
        """The place of each key in byte order, by its code."""
        if self._rank is None or len(self._rank) != len(self.keys):
            order = sorted(range(len(self.keys)), key=self.keys.__getitem__)
            rank = np.empty(len(order), np.int64)
            rank[order] = np.arange(len(order))
            self._rank = rank
        return self._rank

    def key_codes(self, rows: Numbers) -> Numbers:
        """Return the code of the key of each row."""
        return self._gathered(rows, VersionRun.key_codes)

    def take(self, column: str, rows: Numbers) -> npt.NDArray[Any]:
        """Return the values of *column* (commit, attr, length, flags, encoding) in these rows."""
        return self._gathered(rows, lambda run, own: getattr(run, column)[own])

    def _gathered(self, rows: Numbers, values_of: Any) -> npt.NDArray[Any]:
        if len(self._runs) == 1:
            values: npt.NDArray[Any] = values_of(self._runs[0], rows)
            return values
        found = np.empty(len(rows), np.int64)
        offset = 0
        for run in self._runs:
            own = (rows >= offset) & (rows < offset + len(run))
            found[own] = values_of(run, rows[own] - offset)
            offset += len(run)
        return found


def _numbered(
    items: Sequence[bytes], codes: dict[bytes, int], known: list[bytes], skip: int
) -> Numbers:
    """Return the codes of *items*, new ones put into *known* without *skip* bytes."""
    numbers = np.empty(len(items), np.int64)
    for place, item in enumerate(items):
        code = codes.get(item)
        if code is None:
            code = codes[item] = len(known)
            known.append(item[skip:])
        numbers[place] = code
    return numbers


def _mapped_part(index: MappedIndex, space: bytes, after: int, high: int) -> _Part:
    """The rows of a mapped index whose keys have the prefix: they stand together."""
    reader = index.reader
    first, last = index.key_number(space), index.key_number(bytes([space[0] + 1]))
    if first == last:
        return _Part([], np.empty(0, np.int64), [], _no_rows())
    starts = key_starts(reader, first, last)
    low, stop = int(starts[0]), int(starts[-1])
    columns = {name: reader.span(f"row_{name}", low, stop) for name in _no_rows()}
    counts = np.diff(starts)
    commits = columns["commit"]
    if after or (len(commits) and int(commits.max()) > high):
        shown = (commits > after) & (commits <= high)
        owner = np.repeat(np.arange(last - first), counts)
        counts = np.bincount(owner[shown], minlength=last - first)
        columns = {name: values[shown] for name, values in columns.items()}
    attrs, numbers = _attrs(reader, columns["attr"])
    columns = {**columns, "attr": numbers}
    return _Part(read_keys(reader, first, last), counts.astype(np.int64), attrs, columns)


def _no_rows() -> dict[str, npt.NDArray[Any]]:
    names = ("commit", "attr", "length", "flags", "encoding")
    return {name: np.empty(0, np.int64) for name in names}


def _attrs(reader: ColumnReader, column: npt.NDArray[Any]) -> _Attrs:
    """Return the distinct items that *column* names, and the place in them of each row."""
    count = reader.count("attr_offset") - 1
    if len(column) and int(column.max()) >= count:
        raise CorruptError("the index contradicts itself", file=reader.file)
    used = np.zeros(count, np.bool_)
    used[column] = True
    numbers = np.flatnonzero(used)
    place = np.cumsum(used) - 1
    return _heap_at(reader, numbers), place[column].astype(np.int64)


def _heap_at(reader: ColumnReader, numbers: Numbers) -> list[bytes]:
    if not len(numbers):
        return []
    low, high = int(numbers[0]), int(numbers[-1])
    if high - low > _SPREAD * len(numbers):
        return heap_items(reader, "attr", numbers.tolist())
    offsets = reader.span("attr_offset", low, high + 2).astype(np.int64)
    if (np.diff(offsets) < 0).any():
        raise CorruptError("the index contradicts itself", file=reader.file)
    base = int(offsets[0])
    data = reader.span("attr_heap", base, int(offsets[-1])).tobytes()
    begins, ends = offsets[numbers - low] - base, offsets[numbers - low + 1] - base
    return [data[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


def _plain_part(index: PlainIndex, found: list[bytes], after: int, high: int) -> _Part:
    """The rows of an index in memory."""
    counts, entries = [], list[Entry]()
    for key in found:
        own = [entry for entry in index.versions(key) if after < entry.commit_lsn <= high]
        counts.append(len(own))
        entries += own
    known: dict[bytes, int] = {}
    numbers = [known.setdefault(entry.attr, len(known)) for entry in entries]
    columns = {
        "commit": np.array([entry.commit_lsn for entry in entries], np.int64),
        "attr": np.array(numbers, np.int64),
        "length": np.array([entry.length for entry in entries], np.int64),
        "flags": np.array([entry.flags for entry in entries], np.int64),
        "encoding": np.array([entry.encoding for entry in entries], np.int64),
    }
    return _Part(found, np.array(counts, np.int64), list(known), columns)
