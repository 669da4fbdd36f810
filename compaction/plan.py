"""What a compaction is to do: which versions stay, which segments are rewritten together. Pure.

A *group* is a run of segments that stand side by side; one compacted segment takes its place. A
segment is in a group when rewriting it gives back enough, when some of its versions are to be
encoded anew, or when it is small and so are its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from mldb.arrays import Bools, Numbers
from mldb.compaction.cold import ColdVersion
from mldb.compaction.folds import Anew, Fold
from mldb.compaction.retention import Retention
from mldb.compaction.table import VersionTable
from mldb.log.manifest import Kept

GAIN_SHARE: Final = 0.08
"""A segment is rewritten when so much of it goes. One that is left alone takes below 1.09 x what
stays of it; with what else a store takes that is below the 1.1 x that is promised."""
COLD_SHARE: Final = 0.3
"""Or when so much of it is to be encoded anew."""
SMALL_SHARE: Final = 0.25
"""A segment is small below this share of a full one."""
MERGED_MIN: Final = 4
"""So many small ones side by side are merged."""
GROUP_ROWS_MAX: Final = 1 << 17
_ROW_BYTES: Final = 100
"""What a version takes in a footer, about."""
_COMMIT_BYTES: Final = 72
_SEGMENT_BYTES: Final = 2304
"""A file header and a footer of nothing."""


class Group(NamedTuple):
    """Segments of the table, the first one and how many; one compacted segment replaces them."""

    start: int
    segments: int


@dataclass(frozen=True, slots=True)
class CompactionPlan:
    """What a compaction is to do with the segments of ``table``, as of commit ``head``.

    ``kept`` are the commits that are left, as ranges; None when nothing was ever pruned. ``cold``
    is in the order of commits. Groups are rewritten from the newest to the oldest: what ``folds``
    take in lies in the same group or an older one, and goes when they are there.
    """

    table: VersionTable = field(repr=False)
    stays: Bools = field(repr=False)
    cold: Sequence[ColdVersion] = field(repr=False)
    folds: Sequence[Fold] = field(repr=False)
    groups: tuple[Group, ...]
    group_bytes: tuple[int, ...]
    """What the new segment of each group takes, about, and at most."""
    policy: Retention
    kept: Kept | None
    pruned: Numbers = field(repr=False)
    """The commits that are left now and will not be."""
    head: int
    jumps: int
    """How many there were."""
    commits: int
    commits_kept: int

    @property
    def anew(self) -> list[Anew]:
        """What is stored in another form, where that pays."""
        return [*self.cold, *self.folds]

    @property
    def bytes_after(self) -> int:
        """What the segments take afterwards, about."""
        sizes = self.table.sizes
        gone = sum(int(sizes[start : start + count].sum()) for start, count in self.groups)
        return int(sizes.sum()) - gone + sum(self.group_bytes)

    def rows_of(self, group: Group) -> Numbers:
        """The rows that stay of the segments of a group."""
        segment = self.table.segment
        inside = (segment >= group.start) & (segment < group.start + group.segments)
        return np.flatnonzero(inside & self.stays)


def row_bytes(table: VersionTable) -> Numbers:
    """What each version takes of the segments: its bytes, and a share of its frame and footer.

    Names that share bytes share what they take.
    """
    return frame_shares(table) + _ROW_BYTES


def frame_shares(table: VersionTable) -> Numbers:
    """What each version takes of the frames: together no more than the segments are long."""
    if not len(table):
        return np.zeros(0, np.int64)
    own = np.where(table.shared, 0, table.length)
    order = np.lexsort((table.frame, table.segment))
    starts = np.flatnonzero(
        np.append(
            True,
            (np.diff(table.segment[order]) != 0) | (np.diff(table.frame[order]) != 0),
        )
    )
    counts = np.diff(np.append(starts, len(order)))
    stored = np.add.reduceat(own[order], starts)
    extra = (table.frame_bytes[order[starts]] - stored) // counts
    shares = np.empty(len(order), np.int64)
    shares[order] = np.repeat(extra, counts)
    return own + np.maximum(shares, 0)


def fixed_bytes(table: VersionTable) -> Numbers:
    """What each segment takes whatever stays of it: its commits, above all."""
    return table.commits * _COMMIT_BYTES + _SEGMENT_BYTES


def footer_bytes(versions: int, commits: int) -> int:
    """What a footer takes, about."""
    return versions * _ROW_BYTES + commits * _COMMIT_BYTES + _SEGMENT_BYTES


def live_bytes(table: VersionTable, stays: Bools, weights: Numbers) -> Numbers:
    """What of each segment stays."""
    found = np.bincount(table.segment[stays], weights[stays], minlength=len(table.sizes))
    return found.astype(np.int64) + fixed_bytes(table)


def choose_groups(
    table: VersionTable,
    stays: Bools,
    cold: Sequence[ColdVersion],
    live: Numbers,
    *,
    segment_bytes: int,
    has_active: bool,
    limit: int | None = None,
    folded: Bools | None = None,
    may_change: Bools | None = None,
) -> tuple[Group, ...]:
    """Return the groups, in log order.

    *live* is what stays of each segment. *has_active*: the last one is the active segment, which is
    not sealed only to be merged. With *limit* more is rewritten, until all takes no more than that.
    *folded* are segments of which something is to be folded, which makes them worth it. None is
    chosen of which *may_change* is false.
    """
    count = len(table.sizes)
    gain = table.sizes - live
    tried = np.zeros(count, np.int64)
    rows = np.array([item.row for item in cold], np.int64)
    np.add.at(tried, table.segment[rows], table.length[rows])
    has_dropped = np.bincount(table.segment[~stays], minlength=count) > 0
    # What a footer takes is not known well, so that where nothing is dropped nothing is gained.
    wanted = (has_dropped & (gain >= GAIN_SHARE * table.sizes)) | (
        (tried > 0) & (tried >= COLD_SHARE * table.sizes)
    )
    if folded is not None:
        wanted |= folded
    if may_change is not None:
        gain = np.where(may_change, gain, 0)
        wanted &= may_change
    if limit is not None:
        after = int(np.where(wanted, live, table.sizes).sum())
        for place in np.argsort(-gain, kind="stable").tolist():
            if after <= limit or gain[place] <= 0:
                break
            if has_dropped[place] and not wanted[place]:
                wanted[place] = True
                after -= int(gain[place])
    sealed = slice(0, count - has_active)
    wanted[sealed] |= _small_runs(live[sealed], int(segment_bytes * SMALL_SHARE))
    entries = np.bincount(table.segment[stays], minlength=count)
    return _grouped(wanted, live, entries, segment_bytes)


def _small_runs(live: Numbers, small: int) -> Bools:
    """Which segments are among enough small ones side by side, whatever their age.

    Of a run those are merged that are not much smaller than all in front of them: the sizes that
    are left grow like the digits of a counter.
    """
    found = np.zeros(len(live), np.bool_)
    start = 0
    is_small = live < small
    for place in range(len(live) + 1):
        if place < len(live) and is_small[place]:
            continue
        low = start
        while place - low >= MERGED_MIN:
            rest = int(live[low + 1 : place].sum())
            if live[low] <= rest:
                found[low:place] = True
                break
            low += 1
        start = place + 1
    return found


def _grouped(
    wanted: Bools, live: Numbers, entries: Numbers, segment_bytes: int
) -> tuple[Group, ...]:
    """Cut what is wanted into groups that make a full segment at most, but for a single one."""
    groups: list[Group] = []
    taken = rows = 0
    for place in np.flatnonzero(wanted).tolist():
        last = groups[-1] if groups else None
        size, more = int(live[place]), int(entries[place])
        follows = last is not None and last.start + last.segments == place
        if last and follows and taken + size <= segment_bytes and rows + more <= GROUP_ROWS_MAX:
            groups[-1] = Group(last.start, last.segments + 1)
            taken, rows = taken + size, rows + more
        else:
            groups.append(Group(place, 1))
            taken, rows = size, more
    return tuple(groups)


def bytes_of_groups(
    table: VersionTable, live: Numbers, groups: Sequence[Group], grown: Numbers
) -> tuple[int, ...]:
    """What each group takes once it is rewritten, about; *grown* is what rows grow by."""
    growth = np.bincount(table.segment, grown, len(table.sizes)).astype(np.int64)
    found: list[int] = []
    for start, count in groups:
        own = slice(start, start + count)
        taken = int(live[own].sum()) - (count - 1) * _SEGMENT_BYTES
        found.append(min(taken, int(table.sizes[own].sum()) + int(growth[own].sum())))
    return tuple(found)
