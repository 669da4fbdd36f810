"""Merge sorted lists of keys, however long, in steps of bounded size and memory.

The lists are cut at common keys into ranges of about a MiB, and each range is merged for itself
(``mldb.log.directory.key_records``): no step is longer, the records of one range are all there are
at a time, and they fit a cache of the processor.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.errors import CorruptError
from mldb.log.checksum import digest128
from mldb.log.directory.key_records import KeyList, merge_lists
from mldb.log.index.merge_parts import sums_of
from mldb.log.index.steps import Column

_RANGE_COST: Final = 1 << 20
"""Bytes of the keys of a range, with ``_KEY_COST`` for each, which its numbers take beside."""
_KEY_COST: Final = 48
_NUMBERS: Final = np.dtype("<u4")


class MergedKeys(NamedTuple):
    """The keys of several lists, each once; and for each list the numbers of its keys, uint32."""

    keys: KeyList
    numbers: list[npt.NDArray[np.uint32]]


def merge_keys(
    lists: Sequence[KeyList],
    pause: Callable[[], None] = lambda: None,
    *,
    range_cost: int = _RANGE_COST,
) -> MergedKeys:
    """Merge at least one list, in the order of keys as bytes.

    *pause* is called behind each range; *range_cost* says how large one is. Raises CorruptError
    when it meets keys of a list that do not ascend; where there is one list only, none are met.
    """
    # A run of training stores the same names again and again, so that most lists are the same.
    digests = [digest128(each.offsets.data) + digest128(each.heap.data) for each in lists]
    distinct = dict(zip(digests, lists, strict=True))
    pause()
    merged = _merge_distinct(list(distinct.values()), pause, range_cost)
    numbers = dict(zip(distinct, merged.numbers, strict=True))
    return MergedKeys(merged.keys, [numbers[digest] for digest in digests])


def _merge_distinct(
    lists: Sequence[KeyList], pause: Callable[[], None], range_cost: int
) -> MergedKeys:
    if len(lists) == 1:
        return MergedKeys(lists[0], [np.arange(len(lists[0]), dtype=_NUMBERS)])
    numbers = [np.empty(len(each), _NUMBERS) for each in lists]
    sizes: list[Column] = [np.empty(0, "<i8")]
    heaps: list[Column] = [np.empty(0, "u1")]
    count, last = 0, b""
    for bounds in _ranges(lists, range_cost):
        found = merge_lists([lists[n].part(low, high) for n, low, high in bounds])
        own = (found.numbers + count).astype(_NUMBERS)
        start = 0
        for n, low, high in bounds:
            numbers[n][low:high] = own[start : start + high - low]
            start += high - low
        least = found.heap[: int(found.sizes[0])].tobytes()
        _check(not count or last < least)
        last = found.heap[len(found.heap) - int(found.sizes[-1]) :].tobytes()
        count += len(found.sizes)
        sizes.append(found.sizes)
        heaps.append(found.heap)
        pause()
    _check(all(bool((own[1:] > own[:-1]).all()) for own in numbers))
    offsets = sums_of(np.concatenate(sizes)).astype("<u8")
    return MergedKeys(KeyList(offsets, np.concatenate(heaps)), numbers)


def _check(is_ascending: bool) -> None:
    if not is_ascending:
        raise CorruptError("the keys of an index do not ascend, so it cannot be merged")


# --- ranges ---------------------------------------------------------------------------------------


def _ranges(lists: Sequence[KeyList], range_cost: int) -> Iterator[list[tuple[int, int, int]]]:
    """Yield, range by range, the lists that have keys in it, and where these start and stop."""
    lows = [0] * len(lists)
    for border in [*_borders(lists, range_cost), None]:
        bounds: list[tuple[int, int, int]] = []
        for n, each in enumerate(lists):
            low = lows[n]
            if low == len(each):
                continue
            high = len(each) if border is None else bisect_left(each, border, low)
            if low < high:
                bounds.append((n, low, high))
                lows[n] = high
        if bounds:
            yield bounds


def _borders(lists: Sequence[KeyList], range_cost: int) -> list[bytes]:
    """Keys between which all lists together have at most *range_cost*, but for a key of each.

    Of each list a key is taken wherever a share, of which two for each list are a range, is full.
    Of all that are taken, in order, as many as there are lists lie in a range: they stand for a
    share each, and at most one more of each list is not full in it.
    """
    costs = [int(each.offsets[-1]) + len(each) * _KEY_COST for each in lists]
    if sum(costs) <= range_cost:
        return []
    share = max(range_cost // (2 * len(lists)), 1)
    taken: list[bytes] = []
    for each, cost in zip(lists, costs, strict=True):
        if cost > share:
            sums = each.offsets[:-1].astype("<i8") + np.arange(len(each)) * _KEY_COST
            at = np.searchsorted(sums, np.arange(share, cost, share), side="right") - 1
            taken += [each[place] for place in at.tolist()]
    taken.sort()
    return sorted(set(taken[len(lists) - 1 :: len(lists)]))
