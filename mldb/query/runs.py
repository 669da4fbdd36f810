"""A run of versions, sorted by key and commit, and what a snapshot sees of it, by bisection."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.arrays import Bools, Numbers
from mldb.deferred import dataclass
from mldb.log import format as fmt
from mldb.log.index.address import Intervals
from mldb.log.index.lineage import newest_first, visible_mask

_WALK_MAX: Final = 64
"""Intervals of a lineage that are gone through one by one; with more, every row is looked at."""
_COLUMNS: Final = ("commit", "attr", "length", "flags", "encoding")


class Lives(NamedTuple):
    """What can be seen of each key, by its code: how many versions, and its first commit.

    That is the first one behind its last deletion; 0: none.
    """

    counts: Numbers
    first: Numbers


@dataclass(frozen=True, slots=True, eq=False)
class VersionRun:
    """Versions in columns. Immutable; any thread.

    The rows of the key with code ``codes[i]`` are ``starts[i]`` to ``starts[i + 1]``, ascending by
    ``commit``; every key has one at least.
    """

    codes: Numbers
    starts: Numbers
    commit: Numbers
    attr: npt.NDArray[np.int32]
    length: Numbers
    flags: npt.NDArray[np.uint8]
    encoding: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.commit)

    def key_codes(self, rows: Numbers) -> Numbers:
        """Return the code of the key of each of these rows."""
        return self.codes[self.owners(rows)]

    def owners(self, rows: Numbers) -> Numbers:
        """Return the place in ``codes`` of the key of each of these rows."""
        found: Numbers = np.searchsorted(self.starts, rows, "right") - 1
        return found

    def visible(self, intervals: Intervals) -> Numbers:
        """Return the rows that can be seen."""
        return np.flatnonzero(visible_mask(self.commit, intervals))

    def newest(self, intervals: Intervals) -> Numbers:
        """Return the row of the newest visible version of each key, -1 where there is none."""
        found = np.full(len(self.codes), -1, np.int64)
        walk = _walk(intervals)
        if walk is None:
            return self._newest_of_all(self.visible(intervals))
        left = np.arange(len(self.codes))
        for low, high in walk:
            rows = self._up_to(left, high) - 1
            seen = rows >= self.starts[left]
            seen[seen] = self.commit[rows[seen]] >= low
            found[left[seen]] = rows[seen]
            left = left[~seen]
            if not len(left):
                break
        return found

    def _newest_of_all(self, visible: Numbers) -> Numbers:
        if not len(visible):
            return np.full(len(self.codes), -1, np.int64)
        before = np.searchsorted(visible, self.starts[1:]) - 1
        rows = np.where(before >= 0, visible[before], -1)
        return np.where(rows >= self.starts[:-1], rows, -1)

    def _up_to(self, owners: Numbers, lsn: int) -> Numbers:
        """Return for each of these keys the row behind its last one up to commit *lsn*."""
        low, high = self.starts[owners], self.starts[owners + 1]
        # All keys bisect their rows together: as many steps as the longest list needs.
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = (low + high) // 2
            is_open = low < high
            is_within = self.commit[np.where(is_open, middle, 0)] <= lsn
            low = np.where(is_open & is_within, middle + 1, low)
            high = np.where(is_open & ~is_within, middle, high)
        return low

    def add_lives(self, known: Lives, intervals: Intervals) -> None:
        """Take the versions of this run, which are newer, into what is *known* of each key."""
        walk = _walk(intervals)
        dead = self.flags & fmt.ENTRY_TOMBSTONE != 0
        if walk is None or dead.any():
            self._add_by_rows(known, self.visible(intervals), dead)
            return
        every = np.arange(len(self.codes))
        counts = np.zeros(len(every), np.int64)
        first = np.zeros(len(every), np.int64)
        for low, high in reversed(walk):
            begin, end = self._up_to(every, low - 1), self._up_to(every, high)
            counts += end - begin
            new = (end > begin) & (first == 0)
            first[new] = self.commit[begin[new]]
        known.counts[self.codes] += counts
        _begin(known, self.codes, first)

    def _add_by_rows(self, known: Lives, visible: Numbers, dead: Bools) -> None:
        owners, gone = self.owners(visible), dead[visible]
        size = len(self.codes)
        known.counts[self.codes] += np.bincount(owners[~gone], minlength=size)
        last_end = np.full(size, -1, np.int64)
        np.maximum.at(last_end, owners[gone], visible[gone])
        known.first[self.codes[last_end >= 0]] = 0
        alive = ~gone & (visible > last_end[owners])
        keys, place = np.unique(owners[alive], return_index=True)
        first = np.zeros(size, np.int64)
        first[keys] = self.commit[visible[alive][place]]
        _begin(known, self.codes, first)


def _begin(known: Lives, codes: Numbers, first: Numbers) -> None:
    """Note the first commits of keys that had none before."""
    new = (known.first[codes] == 0) & (first > 0)
    known.first[codes[new]] = first[new]


def _walk(intervals: Intervals) -> list[tuple[int, int]] | None:
    """Return the intervals, newest first; None when there are too many to go through."""
    found = list(islice(newest_first(intervals), _WALK_MAX + 1))
    return found if len(found) <= _WALK_MAX else None


def merged_runs(runs: Sequence[VersionRun]) -> VersionRun:
    """Return one run of all; *runs* come oldest first. O(rows): nothing is sorted.

    The rows of a key move as a block, behind those that older runs have of it.
    """
    if len(runs) == 1:
        return runs[0]
    counts = np.zeros(max(int(run.codes.max()) for run in runs) + 1, np.int64)
    for run in runs:
        counts[run.codes] += np.diff(run.starts)
    ends = np.cumsum(counts)
    free = ends - counts  # where the next rows of each key go
    codes = np.flatnonzero(counts)
    columns = [np.empty(int(ends[-1]), getattr(runs[0], name).dtype) for name in _COLUMNS]
    for run in runs:
        own = np.diff(run.starts)
        place = np.repeat(free[run.codes] - run.starts[:-1], own) + np.arange(len(run))
        free[run.codes] += own
        for name, column in zip(_COLUMNS, columns, strict=True):
            column[place] = getattr(run, name)
    return VersionRun(codes, np.append(ends[codes] - counts[codes], ends[-1]), *columns)
