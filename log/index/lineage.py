"""Lineages: which commits lead to a commit, as a short list of LSN intervals. Pure functions.

Every commit names its parent. Normally that is the commit before it in the log; a rewind names an
older one. Such a *jump* ``(lsn, target)`` is rare, so the jumps alone describe every lineage::

    commits   1 2 3 4 5        jump (6, 2): commit 6 continues from 2
                    6 7 8      the lineage of 8 is [1..2] [6..8]; that of 5 is [1..5]
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from mldb.log.index.address import Intervals

Jump = tuple[int, int]


def intervals_at(jumps: Sequence[Jump], lsn: int) -> Intervals:
    """Return what the snapshot at commit *lsn* sees; *jumps* are ascending."""
    found: list[tuple[int, int]] = []
    while lsn > 0:
        index = bisect_right(jumps, lsn, key=itemgetter(0)) - 1
        if index < 0:
            found.append((1, lsn))
            break
        jump, target = jumps[index]
        found.append((jump, lsn))
        lsn = target
    return tuple(reversed(found))


def checked_jumps(stored: Iterable[Sequence[object]]) -> tuple[Jump, ...]:
    """Return jumps read from a file.

    Raises ValueError or TypeError unless they ascend and each leads back: others would send
    :func:`intervals_at` around for ever.
    """
    jumps: list[Jump] = []
    last = 0
    for lsn, target in stored:
        if type(lsn) is not int or type(target) is not int or not 0 <= target < lsn or lsn <= last:
            raise ValueError(f"the jump {lsn!r:.40} to {target!r:.40} is impossible")
        jumps.append((lsn, target))
        last = lsn
    return tuple(jumps)


def newest_visible(lsns: Sequence[int], intervals: Intervals) -> int:
    """Return the index of the newest of the ascending *lsns* inside *intervals*, or -1."""
    for low, high in reversed(intervals):
        index = bisect_right(lsns, high) - 1
        if index >= 0 and lsns[index] >= low:
            return index
    return -1


def is_visible(lsn: int, intervals: Intervals) -> bool:
    """Tell whether commit *lsn* lies inside *intervals*."""
    return any(low <= lsn <= high for low, high in intervals)


def visible_mask(lsns: npt.NDArray[np.uint64], intervals: Intervals) -> npt.NDArray[np.bool_]:
    """Tell of each of many commits, in any order, whether it lies inside *intervals*."""
    if not intervals:
        return np.zeros(len(lsns), np.bool_)
    lows, highs = np.array(intervals, np.uint64).T
    place = np.searchsorted(lows, lsns, "right")
    inside: npt.NDArray[np.bool_] = (place > 0) & (lsns <= highs[place - 1])
    return inside
