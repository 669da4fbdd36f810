"""Where things go: pure functions over columns of places."""

from __future__ import annotations

import numpy as np

from mldb.log.index.steps import Column


def sorting_order(values: Column) -> Column:
    """Return ``numpy.argsort(values, kind="stable")`` of fewer than 2^32 uint64 values, int64.

    NumPy sorts several times as fast where equal values may come in any order; they are few as a
    rule, and are put in order afterwards. Values in order, as where all are equal, are not sorted.
    """
    if (values[1:] >= values[:-1]).all():
        return np.arange(len(values))
    order = np.argsort(values)
    ordered = values[order]
    is_equal = ordered[1:] == ordered[:-1]
    if not is_equal.any():
        return order
    tied = np.zeros(len(order), "?")
    tied[1:] = is_equal
    tied[:-1] |= is_equal
    # Pairs of which run it is and of where it stood: runs are in order, and none is twice.
    runs = np.cumsum(~is_equal, dtype="<u8")
    runs = np.concatenate((np.zeros(1, "<u8"), runs))[tied]
    pairs = np.sort((runs << np.uint64(32)) | order[tied].astype("<u8"))
    order[tied] = (pairs & np.uint64(0xFFFFFFFF)).astype("<i8")
    return order


def run_places(firsts: Column, sizes: Column) -> Column:
    """The places of runs of neighbours, one run after another: int64 (sum of sizes,).

    *firsts*, int64, are where the runs start and *sizes* how long they are.
    """
    ends = np.cumsum(sizes, dtype="<i8")
    places = np.repeat(firsts - (ends - sizes), sizes)
    places += np.arange(len(places))
    return places
