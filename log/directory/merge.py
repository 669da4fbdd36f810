"""Merge the columns of several indexes into one: pure functions, column by column.

The sources are footers of segments and merged indexes, in log order; two indexes of *one* segment
are merged by ``mldb.log.index.merge``, byte for byte as they would be built. Keys are merged by
``mldb.log.directory.merge_keys``; a row is put behind those of its key in the sources before.
The result has the columns of a footer (``mldb.log.index.columns``), a segment column for rows and
for commits, and the rows in the order of their digests. Metadata columns are left to the footers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from mldb.errors import CorruptError
from mldb.log.directory.key_records import KeyList
from mldb.log.directory.merge_keys import MergedKeys, merge_keys
from mldb.log.directory.places import run_places, sorting_order
from mldb.log.index.columns import (
    COMMIT_COLUMNS,
    ROW_COLUMNS,
    IndexImage,
    image_of,
    pack_heap,
)
from mldb.log.index.merge_parts import Columns, commit_ids, items_of, sums_of
from mldb.log.index.steps import Column

_GATHERED: Final = tuple(name for name in ROW_COLUMNS if name != "row_attr")
_NUMBERS: Final = np.dtype("<u4")
_ROWS_A_STEP: Final = 1 << 19
"""Of one column, in some milliseconds."""
_RUNS_A_STEP: Final = 1 << 17
"""NumPy repeats values with the GIL held; it sorts and gathers without."""


class MergeInput(NamedTuple):
    """One index to be merged; ``first`` is the number of its first segment in the merged part.

    Its columns went through :func:`mldb.log.index.merge_parts.check_columns`.
    """

    columns: Columns
    first: int


def merge_indexes(
    sources: Sequence[MergeInput], pause: Callable[[], None] = lambda: None
) -> IndexImage:
    """Return the columns of all *sources*, at least one and in log order, as one index.

    *pause* is called between steps of some milliseconds: it may wait, or raise to give up. Only
    sorting the hashes, and the digests, is one step each, without the GIL: 40 ms for 2^19 versions.
    Raises CorruptError when a column of segments is none, or keys do not ascend.
    """
    columns: dict[str, Column] = {}
    lists = [KeyList(own["key_offset"], own["key_heap"]) for own, _ in sources]
    keys = merge_keys(lists, pause)
    places = _put_keys(columns, sources, keys, pause)
    for name in _GATHERED:
        columns[name] = _placed(places, [own[name] for own, _ in sources], pause)
    segments = _segments(sources, "row_segment", "row_commit")
    columns["row_segment"] = _placed(places, segments, pause)
    attrs, *heap = _merged_heap(sources, "row_attr", "attr", pause)
    columns["row_attr"] = _placed(places, attrs, pause)
    columns["attr_offset"], columns["attr_heap"] = heap
    if any("row_owner" in own for own, _ in sources):
        owners, *heap = _merged_heap(sources, "row_owner", "owner", pause)
        columns["row_owner"] = _placed(places, owners, pause)
        columns["owner_offset"], columns["owner_heap"] = heap
    for name in COMMIT_COLUMNS:
        columns[name] = np.concatenate([own[name] for own, _ in sources])
    columns["commit_id"] = np.concatenate([commit_ids(own) for own, _ in sources])
    columns["commit_segment"] = np.concatenate(_segments(sources, "commit_segment", "commit_lsn"))
    pause()
    _put_digests(columns)
    return image_of(columns)


# --- keys -----------------------------------------------------------------------------------------


def _put_keys(
    columns: dict[str, Column],
    sources: Sequence[MergeInput],
    keys: MergedKeys,
    pause: Callable[[], None],
) -> Column:
    """Add the key columns; return where each row goes, of all sources in order: int64."""
    hashes = np.empty(len(keys.keys), "<u8")
    totals = np.zeros(len(keys.keys), "<i8")
    counts: list[Column] = []
    for (own, _), numbers in zip(sources, keys.numbers, strict=True):
        hashes[numbers[own["hash_key"]]] = own["hash"]
        counts.append(own["key_row"][1:] - own["key_row"][:-1])
        totals[numbers] += counts[-1]
        pause()
    starts = sums_of(totals)
    by_hash = sorting_order(hashes)
    columns["key_offset"], columns["key_heap"] = keys.keys.offsets, keys.keys.heap
    columns["key_row"] = starts.astype("<u4")
    columns["hash"], columns["hash_key"] = hashes[by_hash], by_hash.astype("<u4")
    pause()
    free = starts[:-1]  # where the next row of each key goes
    firsts: list[Column] = []
    for numbers, some in zip(keys.numbers, counts, strict=True):
        firsts.append(free[numbers])
        free[numbers] += some
        pause()
    joined, sizes = np.concatenate(firsts), np.concatenate(counts)
    places: list[Column] = [np.empty(0, "<i8")]
    for low in range(0, len(joined), _RUNS_A_STEP):
        places.append(run_places(joined[low : low + _RUNS_A_STEP], sizes[low : low + _RUNS_A_STEP]))
        pause()
    return np.concatenate(places)


# --- rows -----------------------------------------------------------------------------------------


def _placed(places: Column, parts: Sequence[Column], pause: Callable[[], None]) -> Column:
    """A column of all rows, each at its place."""
    joined = np.concatenate(parts)
    column = np.empty_like(joined)
    pause()
    for low in range(0, len(joined), _ROWS_A_STEP):
        column[places[low : low + _ROWS_A_STEP]] = joined[low : low + _ROWS_A_STEP]
        pause()
    return column


def _merged_heap(
    sources: Sequence[MergeInput], column: str, heap: str, pause: Callable[[], None]
) -> tuple[list[Column], Column, Column]:
    """Merge a column of numbers into a heap, whose items come once; return it and the heap.

    ``row_owner`` counts from 1, and 0 is no owner; a source may lack it.
    """
    base = 1 if heap == "owner" else 0
    ids: dict[bytes, int] = {}
    parts: list[Column] = []
    for columns, _ in sources:
        if column not in columns:
            parts.append(np.zeros(len(columns["row_commit"]), _NUMBERS))
            continue
        items = items_of(columns[f"{heap}_offset"], columns[f"{heap}_heap"].tobytes())
        known = [0] * base + [ids.setdefault(item, len(ids) + base) for item in items]
        parts.append(np.array(known, _NUMBERS)[columns[column]])
        pause()
    return (parts, *pack_heap(list(ids)))


def _segments(sources: Sequence[MergeInput], column: str, counted: str) -> list[Column]:
    """The number of the segment of every row or commit, as the merged part counts them."""
    parts: list[Column] = []
    for columns, first in sources:
        rows = len(columns[counted])
        own = columns.get(column, np.zeros(rows, _NUMBERS))
        if len(own) != rows:
            raise CorruptError(f"the index column {column!r} has {len(own)} of {rows} values")
        parts.append((own + np.uint32(first)).astype(_NUMBERS))
    return parts


def _put_digests(columns: dict[str, Column]) -> None:
    """Add the rows that have a digest in the order of its first 8 bytes."""
    halves = columns["row_digest"].view("<u8").reshape(-1, 2)
    rows = np.flatnonzero(halves[:, 0] | halves[:, 1]).astype("<u4")
    first = halves[rows, 0]
    order = sorting_order(first)
    columns["digest"], columns["digest_row"] = first[order].astype("<u8"), rows[order]
