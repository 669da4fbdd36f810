"""Many rows of mapped columns at once, by NumPy: blocks of keys, changes, histories, entries.

What one lookup costs is the matter of ``mldb.log.index.mapped``; here no row costs a call. Pure
functions over the columns of FORMAT.md section 6, which hold no mapping when they return. They
raise CorruptError where columns contradict each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from mldb.deferred import NamedTuple
from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.index.address import Entry, Intervals, make_entry
from mldb.log.index.column_reader import ColumnReader
from mldb.log.index.lineage import is_visible, visible_mask

if TYPE_CHECKING:
    import numpy.typing as npt

GONE: Final = -1
"""In place of a row: the newest version of the key is its deletion."""
ABSENT: Final = -2
"""In place of a row: no version of the key can be seen."""

_ROWS_PER_KEY: Final = 256
"""With more rows than this, only the last ones of each key are looked at, one by one."""
_SPREAD: Final = 64
"""Rows that stand further apart than this are read one by one."""
_SAME_SIZE_MIN: Final = 32
"""With fewer keys of a size, each is cut out by itself."""
_REPEATED_MAX: Final = 1 << 30
"""Bytes of attrs of one key, where versions share some: a few bytes could claim any number."""
_NO_DIGEST: Final = bytes(fmt.DIGEST_SIZE)

_Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


def read_keys(reader: ColumnReader, start: int, stop: int) -> list[bytes]:
    """Return the keys start..stop of the key heap."""
    if start == stop:
        return []
    offsets = reader.span("key_offset", start, stop + 1).astype(np.int64)
    sizes = np.diff(offsets)
    if sizes.min() < 0:
        raise CorruptError("the index contradicts itself", file=reader.file)
    heap = reader.span("key_heap", int(offsets[0]), int(offsets[-1]))
    return _split(heap, offsets - offsets[0], sizes)


def _split(heap: npt.NDArray[np.uint8], offsets: _Numbers, sizes: _Numbers) -> list[bytes]:
    """Cut a heap into its items; those of equal size at once, at a tenth of the cost of a slice."""
    widths, counts = np.unique(sizes, return_counts=True)
    if widths[0] == 0 or len(widths) * _SAME_SIZE_MIN > len(sizes):
        data = heap.tobytes()
        return [data[low:high] for low, high in pairwise(offsets.tolist())]
    if len(widths) == 1:
        return _fixed(heap, int(widths[0]))
    order = np.argsort(sizes, kind="stable")
    items = np.empty(len(sizes), object)
    for width, rows in zip(widths.tolist(), np.split(order, np.cumsum(counts)[:-1]), strict=True):
        items[rows] = _fixed(heap[offsets[rows][:, None] + np.arange(width)], width)
    found: list[bytes] = items.tolist()
    return found


def _fixed(data: npt.NDArray[Any], width: int) -> list[bytes]:
    """Cut bytes into items of *width* bytes each, copied."""
    found: list[bytes] = np.frombuffer(data.tobytes(), f"V{width}").tolist()
    return found


def key_starts(reader: ColumnReader, start: int, stop: int) -> _Numbers:
    """Return the first rows of the keys start..stop, and the row behind the last; int64."""
    starts = reader.span("key_row", start, stop + 1).astype(np.int64)
    if (starts[1:] < starts[:-1]).any() or int(starts[-1]) > reader.count("row_commit"):
        raise CorruptError("the index contradicts itself", file=reader.file)
    return starts


def newest_rows(reader: ColumnReader, start: int, stop: int, intervals: Intervals) -> _Numbers:
    """Return for each of the keys start..stop the row of its newest visible version.

    GONE where that is a deletion, ABSENT where there is none.
    """
    starts = key_starts(reader, start, stop)
    begins, ends = starts[:-1], starts[1:]
    low, high = int(starts[0]), int(starts[-1])
    if not intervals or low == high:
        return np.full(stop - start, ABSENT, np.int64)
    if high - low > _ROWS_PER_KEY * (stop - start):
        return np.array(
            [_newest_of(reader, *pair, intervals) for pair in pairwise(starts.tolist())], np.int64
        )
    seen = visible_mask(reader.span("row_commit", low, high), intervals)
    if seen.all():
        rows = ends - 1
    else:
        visible = np.flatnonzero(seen) + low
        before = np.searchsorted(visible, ends) - 1  # the last visible row in front of each end
        rows = np.where(before >= 0, visible[before], ABSENT) if len(visible) else begins - 1
    absent = rows < begins
    flags = reader.span("row_flags", low, high)[np.where(absent, 0, rows - low)]
    rows = np.where(flags & fmt.ENTRY_TOMBSTONE != 0, GONE, rows)
    return np.where(absent, ABSENT, rows)


def _newest_of(reader: ColumnReader, low: int, high: int, intervals: Intervals) -> int:
    """The row of the newest visible version of the one key whose rows are low..high."""
    row = high - 1
    if row < low:
        return ABSENT
    if not is_visible(reader.value("row_commit", row), intervals):
        seen = np.flatnonzero(visible_mask(reader.span("row_commit", low, high), intervals))
        if not len(seen):
            return ABSENT
        row = low + int(seen[-1])
    return GONE if reader.value("row_flags", row) & fmt.ENTRY_TOMBSTONE else row


class Change(NamedTuple):
    """The newest of some versions of a key: its commit, and whether it is a deletion."""

    lsn: int
    deleted: bool


def changed_keys(
    reader: ColumnReader, start: int, stop: int, after: int, intervals: Intervals
) -> dict[bytes, Change]:
    """Return those of the keys start..stop with visible versions above commit *after*."""
    if start == stop or not intervals:
        return {}
    starts = key_starts(reader, start, stop)
    low, high = int(starts[0]), int(starts[-1])
    lsns = reader.span("row_commit", low, high)
    rows = np.flatnonzero(lsns > after)
    rows = rows[visible_mask(lsns[rows], intervals)]
    owners = np.searchsorted(starts, rows + low, "right") - 1
    last = np.flatnonzero(np.diff(owners, append=-1))  # rows of a key ascend by commit
    rows, owners = rows[last], owners[last]
    deleted = reader.span("row_flags", low, high)[rows] & fmt.ENTRY_TOMBSTONE != 0
    fields = zip(owners.tolist(), lsns[rows].tolist(), deleted.tolist(), strict=True)
    return {reader.heap("key", start + owner): Change(lsn, gone) for owner, lsn, gone in fields}


def entries_at(
    reader: ColumnReader, segments: Sequence[bytes], rows: Sequence[int]
) -> list[Entry] | None:
    """Return the entries of these rows, made column by column; None where they stand far apart.

    *segments* are the ids of those that the rows lie in, by number where there is a column of them.
    """
    if not rows:
        return []
    plain = isinstance(rows, range) and rows.step == 1
    low, high = (rows[0], rows[-1] + 1) if plain else (min(rows), max(rows) + 1)
    if high - low > _SPREAD * len(rows):
        return None
    place = slice(None) if plain else np.asarray(rows, np.int64) - low

    def taken(name: str) -> list[Any]:
        values: list[Any] = reader.span(name, low, high)[place].tolist()
        return values

    attrs = heap_items(reader, "attr", taken("row_attr"))
    owners = [b""] * len(rows)
    if reader.has("row_owner"):
        owners = heap_items(reader, "owner", [number - 1 for number in taken("row_owner")])
    fields = zip(
        taken("row_commit"),
        _segment_ids(reader, segments, taken("row_segment"))
        if reader.has("row_segment")
        else [segments[0]] * len(rows),
        taken("row_frame"),
        taken("row_offset"),
        taken("row_length"),
        attrs,
        taken("row_flags"),
        taken("row_encoding"),
        taken("row_base"),
        digests_of(reader.span("row_digest", low, high)[place]),
        owners,
        strict=True,
    )
    return list(map(make_entry, fields))


def _segment_ids(
    reader: ColumnReader, segments: Sequence[bytes], numbers: Sequence[int]
) -> list[bytes]:
    try:
        return [segments[number] for number in numbers]
    except IndexError:
        raise CorruptError(
            f"a version lies in segment {max(numbers)} of {len(segments)}", file=reader.file
        ) from None


def heap_items(reader: ColumnReader, name: str, numbers: Sequence[int]) -> list[bytes]:
    """Return these items of a heap, each distinct one read once; b"" for -1."""
    items = {number: b"" if number < 0 else reader.heap(name, number) for number in set(numbers)}
    return [items[number] for number in numbers]


def digests_of(column: npt.NDArray[Any]) -> list[bytes]:
    """Return the digests of a column of 16 bytes each, b"" for zeros."""
    return [b"" if digest == _NO_DIGEST else digest for digest in _fixed(column, fmt.DIGEST_SIZE)]


class VersionColumns(NamedTuple):
    """Versions of one key, oldest first, as columns of equal length.

    ``epochs`` and ``times`` are those of their commits, both None where the part does not know all
    of them; ``attrs`` has few distinct objects.
    """

    lsns: list[int]
    epochs: list[int] | None
    times: list[int] | None
    lengths: list[int]
    attrs: list[bytes]
    digests: list[bytes]


def version_columns(
    reader: ColumnReader, low: int, high: int, intervals: Intervals
) -> VersionColumns | None:
    """Return the visible versions among the rows low..high of one key; None for none."""
    lsns = reader.span("row_commit", low, high)
    stored = reader.span("row_flags", low, high) & fmt.ENTRY_TOMBSTONE == 0
    rows = np.flatnonzero(visible_mask(lsns, intervals) & stored)
    if not len(rows):
        return None
    lsns = lsns[rows]
    known = _commit_fields(reader, lsns)
    epochs, times = (None, None) if known is None else (known[0].tolist(), known[1].tolist())
    return VersionColumns(
        lsns.tolist(),
        epochs,
        times,
        reader.span("row_length", low, high)[rows].tolist(),
        heap_items(reader, "attr", reader.span("row_attr", low, high)[rows].tolist()),
        digests_of(reader.span("row_digest", low, high)[rows]),
    )


def _commit_fields(
    reader: ColumnReader, lsns: npt.NDArray[np.uint64]
) -> tuple[_Numbers, _Numbers] | None:
    """The epochs and times of commits, which ascend; None unless all are in the table."""
    count = reader.count("commit_lsn")
    low = reader.search_right("commit_lsn", int(lsns[0]) - 1, 0, count)
    high = reader.search_right("commit_lsn", int(lsns[-1]), low, count)
    if low == high:
        return None
    known = reader.span("commit_lsn", low, high)
    place = np.minimum(np.searchsorted(known, lsns), high - low - 1)
    if (known[place] != lsns).any():
        return None
    return (
        reader.span("commit_epoch", low, high)[place],
        reader.span("commit_time", low, high)[place],
    )


class AttrColumns(NamedTuple):
    """The attrs of versions of one key, oldest first: ``data`` has them one after another.

    ``epochs`` are those of their commits, None where the part does not know all of them.
    """

    lsns: _Numbers
    epochs: _Numbers | None
    sizes: _Numbers
    data: bytes


def attr_columns(
    reader: ColumnReader, low: int, high: int, intervals: Intervals
) -> AttrColumns | None:
    """Return the attrs of the visible versions among the rows low..high of one key; None for none.

    Attrs are numbered as the rows come that have them: those of a key whose versions all differ
    stand side by side, and are copied at once.
    """
    lsns = reader.span("row_commit", low, high)
    stored = reader.span("row_flags", low, high) & fmt.ENTRY_TOMBSTONE == 0
    rows = np.flatnonzero(visible_mask(lsns, intervals) & stored)
    if not len(rows):
        return None
    lsns = lsns[rows]
    numbers = reader.span("row_attr", low, high)[rows].astype(np.int64)
    first = int(numbers.min())
    offsets = reader.span("attr_offset", first, int(numbers.max()) + 2).astype(np.int64)
    begins, ends = offsets[numbers - first], offsets[numbers - first + 1]
    sizes = ends - begins
    if sizes.min() < 0:
        raise CorruptError("the index contradicts itself", file=reader.file)
    total = float(sizes.sum(dtype=np.float64))
    if total > max(reader.count("attr_heap"), _REPEATED_MAX):
        raise CorruptError(f"versions of one key claim {total:.0f} bytes", file=reader.file)
    breaks = np.flatnonzero(begins[1:] != ends[:-1])
    starts, stops = begins[np.append(0, breaks + 1)].tolist(), ends[np.append(breaks, -1)].tolist()
    runs = [reader.span("attr_heap", *run).tobytes() for run in zip(starts, stops, strict=True)]
    known = _commit_fields(reader, lsns)
    epochs = None if known is None else known[0]
    return AttrColumns(lsns.astype(np.int64), epochs, sizes, b"".join(runs))
