"""Merge the columns of several indexes into one: pure functions, column by column.

The sources are footers of segments and merged indexes, in log order. Keys are merged as bytes by
Python's sort, which takes runs that are sorted already as such; everything else is NumPy. The
result has the columns of a footer (``mldb.log.index.columns``), a segment column for rows and for
commits, and the rows in the order of their digests. Metadata columns are left to the footers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.errors import CorruptError
from mldb.log.checksum import digest128
from mldb.log.index.column_reader import ColumnReader
from mldb.log.index.columns import (
    COMMIT_COLUMNS,
    ROW_COLUMNS,
    IndexImage,
    image_of,
    pack_heap,
)
from mldb.log.index.steps import Column

_GATHERED: Final = tuple(name for name in ROW_COLUMNS if name != "row_attr")
_NUMBERS: Final = np.dtype("<u4")


class MergeInput(NamedTuple):
    """One index to be merged; ``first`` is the number of its first segment in the merged part."""

    reader: ColumnReader
    first: int


class _Keys(NamedTuple):
    """All keys, sorted; for each source the numbers of its keys among them."""

    keys: list[bytes]
    numbers: list[npt.NDArray[np.uint32]]


def merge_indexes(
    sources: Sequence[MergeInput], pause: Callable[[], None] = lambda: None
) -> IndexImage:
    """Return the columns of all *sources*, which are in log order, as one index.

    *pause* is called between steps of some milliseconds: it may wait, or raise to give up. Reads
    and verifies every source whole. Raises CorruptError for one that contradicts itself.
    """
    columns: dict[str, Column] = {}
    keys = _merged_keys(sources)
    pause()
    order = _put_keys(columns, sources, keys)
    pause()
    for name in _GATHERED:
        columns[name] = _concat(sources, name, ROW_COLUMNS[name])[order]
        pause()
    columns["row_segment"] = _segments(sources, "row_segment", "row_commit")[order]
    columns["row_attr"], columns["attr_offset"], columns["attr_heap"] = _merged_heap(
        sources, "row_attr", "attr", order
    )
    pause()
    if any(source.reader.has("row_owner") for source in sources):
        owners = _merged_heap(sources, "row_owner", "owner", order)
        columns["row_owner"], columns["owner_offset"], columns["owner_heap"] = owners
    for name, code in COMMIT_COLUMNS.items():
        columns[name] = _concat(sources, name, code)
    columns["commit_id"] = _commit_ids(sources)
    columns["commit_segment"] = _segments(sources, "commit_segment", "commit_lsn")
    pause()
    _put_digests(columns)
    return image_of(columns)


# --- keys -----------------------------------------------------------------------------------------


def _merged_keys(sources: Sequence[MergeInput]) -> _Keys:
    # A run of training stores the same names again and again, so that most heaps are the same.
    digests = [_heap_digest(source.reader, "key") for source in sources]
    lists: dict[bytes, list[bytes]] = {}
    for digest, (reader, _) in zip(digests, sources, strict=True):
        if digest not in lists:
            lists[digest] = _heap_items(reader, "key")
    keys = sorted(set(chain.from_iterable(lists.values())))
    number = dict(zip(keys, range(len(keys)), strict=True)).__getitem__
    numbers = {
        digest: np.fromiter(map(number, some), _NUMBERS, len(some))
        for digest, some in lists.items()
    }
    return _Keys(keys, [numbers[digest] for digest in digests])


def _put_keys(
    columns: dict[str, Column], sources: Sequence[MergeInput], keys: _Keys
) -> npt.NDArray[np.intp]:
    """Add the key columns; return the order that sorts the concatenated rows by key."""
    total = len(keys.keys)
    of_rows: list[npt.NDArray[np.uint32]] = []
    hashes = np.empty(total, "<u8")
    for (reader, _), numbers in zip(sources, keys.numbers, strict=True):
        starts = _column(reader, "key_row").astype(np.int64)
        counts = starts[1:] - starts[:-1]
        hashed, places = _column(reader, "hash"), _column(reader, "hash_key")
        rows = reader.count("row_commit")
        sound = len(counts) == len(numbers) == len(hashed) == len(places)
        if not sound or (len(counts) and counts.min() < 0) or counts.sum() != rows:
            raise CorruptError("the index contradicts itself", file=reader.file)
        if len(places) and places.max() >= len(numbers):
            raise CorruptError("the index names keys that it lacks", file=reader.file)
        hashes[numbers[places]] = hashed
        of_rows.append(np.repeat(numbers, counts))
    row_keys = np.concatenate(of_rows) if of_rows else np.empty(0, _NUMBERS)
    starts = np.zeros(total + 1, "<u4")
    np.cumsum(np.bincount(row_keys, minlength=total), out=starts[1:], dtype="<u4")
    by_hash = np.argsort(hashes, kind="stable")
    columns["key_offset"], columns["key_heap"] = pack_heap(keys.keys)
    columns["key_row"] = starts
    columns["hash"], columns["hash_key"] = hashes[by_hash], by_hash.astype("<u4")
    return np.argsort(row_keys, kind="stable")


# --- rows -----------------------------------------------------------------------------------------


def _merged_heap(
    sources: Sequence[MergeInput], column: str, heap: str, order: npt.NDArray[np.intp]
) -> tuple[Column, Column, Column]:
    """Merge a column of numbers into a heap, whose items come once; return it and the heap.

    ``row_owner`` counts from 1, and 0 is no owner; a source may lack it.
    """
    base = 1 if heap == "owner" else 0
    ids: dict[bytes, int] = {}
    parts: list[Column] = []
    for reader, _ in sources:
        rows = reader.count("row_commit")
        if not reader.has(column):
            parts.append(np.zeros(rows, _NUMBERS))
            continue
        items = _heap_items(reader, heap)
        known = [0] * base + [ids.setdefault(item, len(ids) + base) for item in items]
        numbers = _column(reader, column)
        if len(numbers) != rows or (rows and numbers.max() >= len(known)):
            raise CorruptError(f"the index column {column!r} is out of range", file=reader.file)
        parts.append(np.array(known, _NUMBERS)[numbers])
    merged = np.concatenate(parts)[order] if parts else np.empty(0, _NUMBERS)
    return (merged, *pack_heap(list(ids)))


def _segments(sources: Sequence[MergeInput], column: str, counted: str) -> Column:
    """The number of the segment of every row or commit, as the merged part counts them."""
    parts: list[Column] = []
    for reader, first in sources:
        rows = reader.count(counted)
        own = _column(reader, column) if reader.has(column) else np.zeros(rows, _NUMBERS)
        parts.append((own + np.uint32(first)).astype(_NUMBERS))
    return np.concatenate(parts) if parts else np.empty(0, _NUMBERS)


def _commit_ids(sources: Sequence[MergeInput]) -> Column:
    """The ids of all commits; zeros where a source is of version 1."""
    parts = [
        _column(reader, "commit_id")
        if reader.has("commit_id")
        else np.zeros(reader.count("commit_lsn"), "V16")
        for reader, _ in sources
    ]
    return np.concatenate(parts) if parts else np.empty(0, "V16")


def _put_digests(columns: dict[str, Column]) -> None:
    """Add the rows that have a digest in the order of its first 8 bytes."""
    halves = columns["row_digest"].view("<u8").reshape(-1, 2)
    rows = np.flatnonzero(halves.any(axis=1)).astype("<u4")
    first = halves[rows, 0]
    order = np.argsort(first, kind="stable")
    columns["digest"], columns["digest_row"] = first[order].astype("<u8"), rows[order]


# --- columns --------------------------------------------------------------------------------------


def _column(reader: ColumnReader, name: str) -> Column:
    return reader.span(name, 0, reader.count(name))


def _concat(sources: Sequence[MergeInput], name: str, code: str) -> Column:
    parts = [_column(source.reader, name) for source in sources]
    return np.concatenate(parts) if parts else np.empty(0, np.dtype(code))


def _heap_digest(reader: ColumnReader, name: str) -> bytes:
    parts = (_column(reader, f"{name}_offset"), _column(reader, f"{name}_heap"))
    return b"".join(digest128(part.tobytes()) for part in parts)


def _heap_items(reader: ColumnReader, name: str) -> list[bytes]:
    """All items of a heap, in order. Raises CorruptError when they overlap."""
    offsets = _column(reader, f"{name}_offset")
    data = _column(reader, f"{name}_heap").tobytes()
    if len(offsets) and (np.diff(offsets.astype(np.int64)).min(initial=0) < 0):
        raise CorruptError(f"the items of {name!r} overlap", file=reader.file)
    places: list[int] = offsets.tolist()
    if places and places[-1] > len(data):
        raise CorruptError(f"the items of {name!r} end beyond their heap", file=reader.file)
    return [data[low:high] for low, high in pairwise(places)]
