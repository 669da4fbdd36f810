"""Parts of a merge of two indexes that both of its halves use. Pure functions over columns."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from mldb.deferred import NamedTuple
from mldb.errors import CorruptError
from mldb.log import native
from mldb.log.index.columns import COMMIT_COLUMNS, ROW_COLUMNS
from mldb.log.index.steps import Column

Columns = Mapping[str, Column]


class UnmergeableError(Exception):
    """Which metadata fields occur most is not known of these columns: they are built anew."""


class MergePlan(NamedTuple):
    """Where everything goes: the newer items are let in between the older ones, which keep theirs.

    ``before`` says how many older keys stand in front of each newer key that ``is_fresh``, and
    ``newer_number`` the merged number of every newer key; ``starts`` are the merged rows of all.
    ``newer_row`` are the merged rows of the newer ones, ascending, ``is_newer`` is true for these.
    """

    before: Column
    is_fresh: Column
    newer_number: Column
    starts: Column
    newer_row: Column
    is_newer: Column


def items_of(offsets: Column, heap: bytes) -> list[bytes]:
    """Cut items out of a heap."""
    bounds = offsets.tolist()
    return [heap[low:high] for low, high in pairwise(bounds)]


def sums_of(counts: Column) -> Column:
    """Where items of these sizes start, and the end of the last."""
    sums = np.zeros(len(counts) + 1, dtype="<i8")
    np.cumsum(counts, out=sums[1:])
    return sums


def commit_column(columns: Columns, name: str) -> Column:
    """One of the columns of commits."""
    return commit_ids(columns) if name == "commit_id" else columns[name]


def commit_ids(columns: Columns) -> Column:
    """The ids of the commits; those of version 1 have none."""
    found = columns.get("commit_id")
    return np.zeros(len(columns["commit_lsn"]), dtype="V16") if found is None else found


def let_in(is_newer: Column, older: Column, newer: Column) -> Column:
    """Merge two columns: the newer values go where *is_newer* is true, in their order.

    NumPy moves what stands side by side at once, so this costs two passes of memory.
    """
    merged = np.empty(len(is_newer), dtype=older.dtype)
    target = merged
    if merged.dtype.kind == "V":  # as numbers of 16 bytes, since raw ones are moved one by one
        target = merged.view("c16")
        older, newer = (np.ascontiguousarray(values).view("c16") for values in (older, newer))
    target[is_newer] = newer
    target[~is_newer] = older
    return merged


def places_of(before: Column, total: int) -> Column:
    """Where items are let in before which so many of the others stand; true for each of them."""
    is_newer = np.zeros(total, dtype="?")
    is_newer[before + np.arange(len(before))] = True
    return is_newer


def let_in_items(
    before: Column, older: tuple[Column, Column], newer: tuple[Column, Column], which: Column
) -> tuple[Column, Column]:
    """Merge two heaps, as offsets and bytes: the items *which* of the newer one are let in.

    *before* says how many older ones stand in front of each. Costs a step of Python for each, or
    one of the compiled twin.
    """
    (offsets, heap), (newer_offsets, newer_heap) = older, newer
    lows, highs = newer_offsets[which], newer_offsets[which + 1]
    twin = native.twin
    if twin is not None:
        made = np.empty(len(offsets) + len(which), dtype="<u8")
        data = np.empty(len(heap) + int((highs - lows).sum()), dtype="u1")
        if twin.merge_items(*older, *newer, before, which, made, data):
            return made, data
    is_newer = places_of(before, len(offsets) - 1 + len(which))
    sizes = let_in(is_newer, np.diff(offsets), highs - lows)
    pieces: list[memoryview] = []
    done = 0
    for cut, low, high in zip(offsets[before].tolist(), lows.tolist(), highs.tolist(), strict=True):
        pieces += (heap.data[done:cut], newer_heap.data[low:high])
        done = cut
    pieces.append(heap.data[done:])
    return sums_of(sizes).view("<u8"), np.frombuffer(b"".join(pieces), dtype="u1")


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
