"""Lineages: which commits lead to a commit, as shared paths that are searched in O(log n) steps.

Every commit names its parent. Normally that is the commit before it in the log; a rewind names an
older one. Such a *jump* ``(lsn, target)`` is rare, so the jumps alone describe every lineage::

    commits   1 2 3 4 5        jump (6, 2): commit 6 continues from 2
                    6 7 8      the lineage of 8 is [1..2] [6..8]; that of 5 is [1..5]

Each jump begins a *run*. The runs form a tree, and a lineage is the path from a run to its root:
shared by all commits that continue from there, copied by none. ``Intervals`` (see
``mldb.log.index.address``) is a small tuple: the newest interval last, and in front of it the run
that leads to the older ones, when there are any. Everything but that newest interval is asked of
the functions here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, Final, cast, overload

import numpy as np

from mldb.log.index.address import Interval, Intervals, Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

Jump = tuple[int, int]
Memo = dict[int, int]
"""By the LSN of a commit: which item of a list is the newest that its lineage leads through."""

_MEMO_STEPS: Final = 16
_LOW = itemgetter(0)
_HIGH = itemgetter(1)
_RUN_LOW = attrgetter("low")
_ROOT: Final = Run(1, 0, None)
"""The run of the first commits, which no jump begins."""


class Jumps(Sequence[Jump]):
    """The jumps of a log, ascending by LSN. Immutable; any thread.

    One that follows another shares its list, so that a rewind costs the same whatever came before.
    Two that follow the same one differently share nothing from there on.
    """

    __slots__ = ("_count", "_runs")

    def __init__(self, runs: list[Run] | None = None, count: int = 0) -> None:
        """Nothing; *runs* and *count* are for this class alone."""
        self._runs = [] if runs is None else runs  # shared: it only grows, behind what anyone reads
        self._count = count

    @classmethod
    def of(cls, jumps: Iterable[Jump]) -> Jumps:
        """Return what these pairs make, ascending as :func:`checked_jumps` has them."""
        return jumps if isinstance(jumps, cls) else cls().after(jumps)

    def after(self, jumps: Iterable[Jump]) -> Jumps:
        """Return these jumps with *jumps* behind them."""
        found = self
        for lsn, target in jumps:
            found = found.then(lsn, target)
        return found

    def then(self, lsn: int, target: int) -> Jumps:
        """Return these jumps and one more: commit *lsn* continues from the older *target*."""
        runs, count = self._runs, self._count
        if not count:
            runs = []  # stores that begin with nothing have nothing to share
        elif len(runs) > count:
            run = runs[count]
            if (run.low, run.target) == (lsn, target):
                return Jumps(runs, count + 1)  # read again
            runs = runs[:count]
        run = Run(lsn, target, self._run_of(target))
        runs.append(run)
        if runs[count] is not run:  # another thread was first
            runs = [*runs[:count], run]
        return Jumps(runs, count + 1)

    def starts_with(self, other: Jumps) -> bool:
        """Whether *other* is the beginning of these; at once when they share it."""
        count = other._count
        if count > self._count:
            return False
        if self._runs is other._runs or not count:
            return True
        return self[:count] == other[:]

    def _run_of(self, lsn: int) -> Run | None:
        """The run that commit *lsn* lies in; None for the empty state before the first."""
        if lsn <= 0:
            return None
        index = bisect_right(self._runs, lsn, 0, self._count, key=_RUN_LOW) - 1
        return self._runs[index] if index >= 0 else _ROOT

    def intervals_at(self, lsn: int) -> Intervals:
        """Return what the snapshot at commit *lsn* sees: O(log n)."""
        run = self._run_of(lsn)
        if run is None:
            return ()
        newest = (run.low, lsn)
        return (newest,) if run.parent is None else (run, newest)

    def up_to(self, lsn: int) -> Sequence[Jump]:
        """Return the jumps up to this LSN."""
        return self[: bisect_right(self._runs, lsn, 0, self._count, key=_RUN_LOW)]

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Jump: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Jump, ...]: ...
    def __getitem__(self, index: int | slice) -> Jump | tuple[Jump, ...]:
        if isinstance(index, slice):
            places = range(*index.indices(self._count))
            return tuple((run.low, run.target) for run in map(self._runs.__getitem__, places))
        run = self._runs[range(self._count)[index]]
        return run.low, run.target

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Jumps):
            return self[:] == other if isinstance(other, tuple) else NotImplemented
        return self._count == other._count and self.starts_with(other)

    def __hash__(self) -> int:
        return hash((self._count, self[-1] if self._count else None))

    def __repr__(self) -> str:
        return f"Jumps({self[:]!r})"


NO_JUMPS: Final = Jumps()


def checked_jumps(stored: Iterable[Sequence[object]]) -> tuple[Jump, ...]:
    """Return jumps read from a file.

    Raises ValueError or TypeError unless they ascend and each leads back: others would send a walk
    along a lineage around for ever.
    """
    jumps: list[Jump] = []
    last = 0
    for lsn, target in stored:
        if type(lsn) is not int or type(target) is not int or not 0 <= target < lsn or lsn <= last:
            raise ValueError(f"the jump {lsn!r:.40} to {target!r:.40} is impossible")
        jumps.append((lsn, target))
        last = lsn
    return tuple(jumps)


# --- questions about a lineage --------------------------------------------------------------------


def below(lsn: int, intervals: Intervals) -> Interval | None:
    """Return the newest interval that starts at *lsn* or below it, None when all start above."""
    if not intervals:
        return None
    newest = intervals[-1]
    if newest[0] <= lsn:
        return newest
    run = intervals[0]
    if isinstance(run, Run):
        found = _above(run, lsn)
        return None if found is None else (found[0].low, found[1])
    few = cast(tuple[Interval, ...], intervals)
    index = bisect_right(few, lsn, key=_LOW) - 1
    return few[index] if index >= 0 else None


def _above(run: Run, lsn: int) -> tuple[Run, int] | None:
    """Return the nearest run further up the path that starts at *lsn* or below, and its last LSN.

    *run* itself starts above.
    """
    while True:
        skip, parent = run.skip, run.parent
        if skip is not None and skip.low > lsn:
            run = skip
        elif parent is None:
            return None
        elif parent.low <= lsn:
            return parent, run.target
        else:
            run = parent


def is_visible(lsn: int, intervals: Intervals) -> bool:
    """Tell whether commit *lsn* lies inside *intervals*."""
    found = below(lsn, intervals)
    return found is not None and lsn <= found[1]


def newest_visible(
    lsns: Sequence[Any],
    intervals: Intervals,
    key: Callable[[Any], int] | None = None,
    memo: Memo | None = None,
) -> int:
    """Return the index of the newest of the ascending *lsns* inside *intervals*, or -1.

    *key* finds the LSN of an item. A step skips the items of one lineage that was left, and the
    intervals in front of them. So that a name which is written on lineage after lineage does not
    lead through all of them at every question, *memo* keeps what some places on the path lead to:
    one for these *lsns*, which may grow.
    """
    if not intervals:
        return -1
    low, high = intervals[-1]
    run = intervals[0]
    if not isinstance(run, Run):
        return _newest_of_few(lsns, cast(tuple[Interval, ...], intervals), key)
    stop, steps, places, index = len(lsns), 0, list[int](), -1
    while True:
        index = bisect_right(lsns, high, 0, stop, key=key) - 1
        if index < 0:
            break
        lsn = lsns[index] if key is None else key(lsns[index])
        if lsn >= low:
            break
        found = _above(run, lsn)
        if found is None:
            index = -1
            break
        run, high = found
        low = run.low
        stop = index + 1
        if memo is not None:
            known = memo.get(high)
            if known is not None:
                index = known
                break
            steps += 1
            if steps % _MEMO_STEPS == 0:
                places.append(high)
    for place in places:
        memo[place] = index  # type: ignore[index]  # there are places only with one
    return index


def _newest_of_few(
    lsns: Sequence[Any], intervals: tuple[Interval, ...], key: Callable[[Any], int] | None
) -> int:
    for low, high in reversed(intervals):
        index = bisect_right(lsns, high, key=key) - 1
        if index >= 0 and (lsns[index] if key is None else key(lsns[index])) >= low:
            return index
    return -1


def visible_mask(lsns: NDArray[Any], intervals: Intervals) -> NDArray[np.bool_]:
    """Tell of each of the *lsns*, an integer array of any shape, whether it lies inside.

    Only the intervals between the lowest and the highest of them are spelled out.
    """
    if not intervals or not lsns.size:
        return np.zeros(lsns.shape, np.bool_)
    if len(intervals) == 1 or (lsns >= intervals[-1][0]).all():
        low, high = intervals[-1]
        return (lsns >= low) & (lsns <= high)
    inside = within(intervals, int(lsns.min()), int(lsns.max()))
    if not inside:
        return np.zeros(lsns.shape, np.bool_)
    # Of the type of the LSNs: NumPy compares signed and unsigned integers as floats.
    edges = np.array(inside, lsns.dtype)
    place = np.searchsorted(edges[:, 0], lsns, side="right") - 1
    mask: NDArray[np.bool_] = (place >= 0) & (lsns <= edges[place, 1])
    return mask


def lowest(intervals: Intervals) -> int:
    """Return the first LSN of a lineage, which has a commit."""
    run = intervals[0]
    return run.first if isinstance(run, Run) else run[0]


def newest_first(intervals: Intervals) -> Iterator[Interval]:
    """Yield all intervals, newest first."""
    return newest_unless(intervals, lambda _: False)


def newest_unless(intervals: Intervals, is_beyond: Callable[[int], bool]) -> Iterator[Interval]:
    """Yield the intervals newest first, without those that lie beyond what is looked for.

    *is_beyond* is asked about the LSN that an interval starts at; when it is true of one, it must
    be true of all newer ones, and is asked O(log n) times before the first that it is not true of.
    """
    run = intervals[0] if intervals else None
    if not isinstance(run, Run):
        for interval in reversed(cast(tuple[Interval, ...], intervals)):
            if not is_beyond(interval[0]):
                yield interval
        return
    newest = intervals[-1]
    if not is_beyond(newest[0]):
        yield newest
    while True:
        skip, parent = run.skip, run.parent
        if parent is None:
            return
        if skip is not None and skip is not parent and is_beyond(skip.low):
            run = skip
            continue
        if not is_beyond(parent.low):
            yield parent.low, run.target
        run = parent


def within(intervals: Intervals, low: int, high: int) -> tuple[Interval, ...]:
    """Return what lies in [low, high], spelled out oldest first: O(log n) and what is returned."""
    found: list[Interval] = []
    for first, last in newest_unless(intervals, lambda start: start > high):
        if last < low or low > high:
            break
        found.append((max(first, low), min(last, high)))
    return tuple(reversed(found))


def spelled(intervals: Intervals) -> tuple[Interval, ...]:
    """Return all intervals, oldest first. As long as the lineage is: not for ordinary reads."""
    return tuple(newest_first(intervals))[::-1]


# --- ranges ---------------------------------------------------------------------------------------


Ranges = Sequence[Interval]
"""Ascending, disjoint, inclusive ranges of LSNs."""


def in_ranges(lsn: int, ranges: Ranges) -> bool:
    """Whether an LSN lies in one of the ranges: O(log n)."""
    index = bisect_right(ranges, lsn, key=_LOW) - 1
    return index >= 0 and lsn <= ranges[index][1]


def is_left(lsn: int, ranges: Ranges | None) -> bool:
    """Whether retention left a commit: in a range, behind the last one, or nothing was pruned."""
    return not ranges or lsn > ranges[-1][1] or lsn <= 0 or in_ranges(lsn, ranges)


def around(lsn: int, ranges: Ranges) -> tuple[int | None, int | None]:
    """Return the nearest ends of ranges below and above an LSN that lies in none: O(log n)."""
    below_ = bisect_left(ranges, lsn, key=_HIGH) - 1
    above = bisect_right(ranges, lsn, key=_LOW)
    return (
        ranges[below_][1] if below_ >= 0 else None,
        ranges[above][0] if above < len(ranges) else None,
    )
