"""Parts of a merge of two indexes that both of its halves use. Pure functions over columns."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mldb.errors import CorruptError
from mldb.log.index.columns import COMMIT_COLUMNS, ROW_COLUMNS
from mldb.log.index.steps import Column

Columns = Mapping[str, Column]


class UnmergeableError(Exception):
    """Which metadata fields occur most is not known of these columns: they are built anew."""


class MergePlan(NamedTuple):
    """Where everything goes.

    ``older_number`` and ``newer_number`` are the merged numbers of the keys, ``older_row`` and
    ``newer_row`` those of the rows; ``is_fresh`` says which newer keys are new.
    """

    older_number: Column
    newer_number: Column
    older_row: Column
    newer_row: Column
    starts: Column
    is_fresh: Column


def items_of(offsets: Column, heap: bytes) -> list[bytes]:
    """Cut items out of a heap."""
    bounds = offsets.tolist()
    return [heap[low:high] for low, high in pairwise(bounds)]


def sums_of(counts: Column) -> Column:
    """Where items of these sizes start, and the end of the last."""
    sums = np.zeros(len(counts) + 1, dtype="<i8")
    np.cumsum(counts, out=sums[1:])
    return sums


def commit_ids(columns: Columns) -> Column:
    """The ids of the commits; those of version 1 have none."""
    found = columns.get("commit_id")
    return np.zeros(len(columns["commit_lsn"]), dtype="V16") if found is None else found


def scattered(plan: MergePlan, older: Column, newer: Column) -> Column:
    """Merge a column of rows."""
    merged = np.empty(len(older) + len(newer), dtype=older.dtype)
    if merged.dtype.kind == "V":  # as pairs of numbers, since raw bytes are moved one by one
        halves = merged.view("<u8").reshape(-1, 2)
        halves[plan.older_row] = np.ascontiguousarray(older).view("<u8").reshape(-1, 2)
        halves[plan.newer_row] = np.ascontiguousarray(newer).view("<u8").reshape(-1, 2)
    else:
        merged[plan.older_row] = older
        merged[plan.newer_row] = newer
    return merged


def taken(name: str, older: Columns, newer: Columns, order: Column) -> tuple[Column, Column]:
    """Make a heap of the items *order* of both: of the older ones, then of the newer ones.

    Neighbours are taken together, so it costs what there are breaks.
    """
    first, second = older[f"{name}_offset"], newer[f"{name}_offset"]
    count = len(first) - 1
    sizes = np.concatenate((np.diff(first), np.diff(second))).astype("<i8")
    offsets = sums_of(sizes[order]).astype("<u8")
    if not len(order):
        return offsets, np.empty(0, dtype="u1")
    begins = np.concatenate((first[:-1], second[:-1]))
    ends = np.concatenate((first[1:], second[1:]))
    breaks = np.flatnonzero((np.diff(order) != 1) | (order[1:] == count)) + 1
    firsts = order[np.concatenate(([0], breaks))]
    lasts = order[np.concatenate((breaks - 1, [len(order) - 1]))]
    heaps = older[f"{name}_heap"].data, newer[f"{name}_heap"].data
    places = zip(
        (firsts >= count).tolist(), begins[firsts].tolist(), ends[lasts].tolist(), strict=True
    )
    data = b"".join([heaps[which][low:high] for which, low, high in places])
    return offsets, np.frombuffer(data, dtype="u1")


def check_columns(columns: Columns, file: str | None = None) -> None:
    """Raise CorruptError unless rows, keys, attrs and commits fit together: O(rows) in NumPy."""
    rows, starts = len(columns["row_commit"]), columns["key_row"]
    keys, attrs = len(starts) - 1, len(columns["attr_offset"]) - 1
    commits = len(columns["commit_lsn"])
    sound = (
        _are_offsets(starts, rows)
        and _are_offsets(columns["key_offset"], len(columns["key_heap"]))
        and _are_offsets(columns["attr_offset"], len(columns["attr_heap"]))
        and len(columns["key_offset"]) == keys + 1
        and len(columns["hash"]) == len(columns["hash_key"]) == keys
        and all(len(columns[name]) == rows for name in ROW_COLUMNS)
        and all(len(columns[name]) == commits for name in COMMIT_COLUMNS)
        and len(columns.get("commit_id", columns["commit_lsn"])) == commits
        and not (rows and int(columns["row_attr"].max()) >= attrs)
        and not (keys and int(columns["hash_key"].max()) >= keys)
    )
    if sound and "row_owner" in columns:
        owners = columns["owner_offset"]
        sound = (
            len(columns["row_owner"]) == rows
            and _are_offsets(owners, len(columns["owner_heap"]))
            and not (rows and int(columns["row_owner"].max()) >= len(owners))
        )
    if not sound:
        raise CorruptError("the index contradicts itself", file=file)


def _are_offsets(offsets: Column, end: int) -> bool:
    """Whether these are the starts of items that follow each other, and the end of the last."""
    return (
        len(offsets) > 0
        and int(offsets[0]) == 0
        and int(offsets[-1]) == end
        and bool((offsets[1:] >= offsets[:-1]).all())
    )
