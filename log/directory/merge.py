"""Merge the columns of several indexes into one: pure functions, column by column.

The sources are footers of segments and merged indexes, in log order; two indexes of *one* segment
are merged by ``mldb.log.index.merge``, byte for byte as they would be built. Keys are merged as
bytes by Python's sort, which takes runs that are sorted already as such; everything else is NumPy.
The result has the columns of a footer (``mldb.log.index.columns``), a segment column for rows and
for commits, and the rows in the order of their digests. Metadata columns are left to the footers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.errors import CorruptError
from mldb.log.checksum import digest128
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


class MergeInput(NamedTuple):
    """One index to be merged; ``first`` is the number of its first segment in the merged part.

    Its columns went through :func:`mldb.log.index.merge_parts.check_columns`.
    """

    columns: Columns
    first: int


class _Keys(NamedTuple):
    """All keys, sorted; for each source the numbers of its keys among them."""

    keys: list[bytes]
    numbers: list[npt.NDArray[np.uint32]]


def merge_indexes(
    sources: Sequence[MergeInput], pause: Callable[[], None] = lambda: None
) -> IndexImage:
    """Return the columns of all *sources*, at least one and in log order, as one index.

    *pause* is called between steps of some milliseconds: it may wait, or raise to give up. Raises
    CorruptError when a column of segments is none.
    """
    columns: dict[str, Column] = {}
    keys = _merged_keys(sources)
    pause()
    order = _put_keys(columns, sources, keys)
    pause()
    for name in _GATHERED:
        columns[name] = _joined(sources, name)[order]
        pause()
    columns["row_segment"] = _segments(sources, "row_segment", "row_commit")[order]
    columns["row_attr"], columns["attr_offset"], columns["attr_heap"] = _merged_heap(
        sources, "row_attr", "attr", order
    )
    pause()
    if any("row_owner" in source.columns for source in sources):
        owners = _merged_heap(sources, "row_owner", "owner", order)
        columns["row_owner"], columns["owner_offset"], columns["owner_heap"] = owners
    for name in COMMIT_COLUMNS:
        columns[name] = _joined(sources, name)
    columns["commit_id"] = np.concatenate([commit_ids(source.columns) for source in sources])
    columns["commit_segment"] = _segments(sources, "commit_segment", "commit_lsn")
    pause()
    _put_digests(columns)
    return image_of(columns)


def _joined(sources: Sequence[MergeInput], name: str) -> Column:
    return np.concatenate([source.columns[name] for source in sources])


# --- keys -----------------------------------------------------------------------------------------


def _merged_keys(sources: Sequence[MergeInput]) -> _Keys:
    # A run of training stores the same names again and again, so that most heaps are the same.
    digests: list[bytes] = []
    lists: dict[bytes, list[bytes]] = {}
    for columns, _ in sources:
        offsets, heap = columns["key_offset"], columns["key_heap"].tobytes()
        digest = digest128(offsets.tobytes()) + digest128(heap)
        digests.append(digest)
        if digest not in lists:
            lists[digest] = items_of(offsets, heap)
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
    """Add the key columns; return the order that sorts the joined rows by key."""
    total = len(keys.keys)
    of_rows: list[npt.NDArray[np.uint32]] = []
    hashes = np.empty(total, "<u8")
    for (own, _), numbers in zip(sources, keys.numbers, strict=True):
        hashes[numbers[own["hash_key"]]] = own["hash"]
        of_rows.append(np.repeat(numbers, np.diff(own["key_row"])))
    row_keys = np.concatenate(of_rows)
    by_hash = np.argsort(hashes, kind="stable")
    columns["key_offset"], columns["key_heap"] = pack_heap(keys.keys)
    columns["key_row"] = sums_of(np.bincount(row_keys, minlength=total)).astype("<u4")
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
    for columns, _ in sources:
        if column not in columns:
            parts.append(np.zeros(len(columns["row_commit"]), _NUMBERS))
            continue
        items = items_of(columns[f"{heap}_offset"], columns[f"{heap}_heap"].tobytes())
        known = [0] * base + [ids.setdefault(item, len(ids) + base) for item in items]
        parts.append(np.array(known, _NUMBERS)[columns[column]])
    return (np.concatenate(parts)[order], *pack_heap(list(ids)))


def _segments(sources: Sequence[MergeInput], column: str, counted: str) -> Column:
    """The number of the segment of every row or commit, as the merged part counts them."""
    parts: list[Column] = []
    for columns, first in sources:
        rows = len(columns[counted])
        own = columns.get(column, np.zeros(rows, _NUMBERS))
        if len(own) != rows:
            raise CorruptError(f"the index column {column!r} has {len(own)} of {rows} values")
        parts.append((own + np.uint32(first)).astype(_NUMBERS))
    return np.concatenate(parts)


def _put_digests(columns: dict[str, Column]) -> None:
    """Add the rows that have a digest in the order of its first 8 bytes."""
    halves = columns["row_digest"].view("<u8").reshape(-1, 2)
    rows = np.flatnonzero(halves.any(axis=1)).astype("<u4")
    first = halves[rows, 0]
    order = np.argsort(first, kind="stable")
    columns["digest"], columns["digest_row"] = first[order].astype("<u8"), rows[order]
