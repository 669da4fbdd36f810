"""Parts of a merge of two indexes that both of its halves use. Pure functions over columns."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mldb.log.index.columns import Column

Columns = Mapping[str, Column]


class UnmergeableError(Exception):
    """Which metadata fields occur most is not known of these columns: they are built anew."""


class Plan(NamedTuple):
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


def scattered(plan: Plan, older: Column, newer: Column) -> Column:
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
    sizes = np.concatenate((np.diff(first), np.diff(second))).astype("<i8")
    offsets = sums_of(sizes[order]).astype("<u8")
    heap = older[f"{name}_heap"].tobytes() + newer[f"{name}_heap"].tobytes()
    bounds = sums_of(sizes)
    breaks = np.flatnonzero(np.diff(order) != 1) + 1
    lows = order[np.concatenate(([0], breaks))] if len(order) else order
    highs = order[np.concatenate((breaks - 1, [len(order) - 1]))] if len(order) else order
    pieces = zip(bounds[lows].tolist(), bounds[highs + 1].tolist(), strict=True)
    return offsets, np.frombuffer(b"".join([heap[low:high] for low, high in pieces]), dtype="u1")
