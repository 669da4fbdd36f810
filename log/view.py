"""Views: immutable heads of the log that answer every question about one moment."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Final, cast

from mldb.deferred import NamedTuple
from mldb.log import format as fmt
from mldb.log.directory.units import Units
from mldb.log.grown import Grown
from mldb.log.index.address import EMPTY_COMMIT, CommitRow, Entry, Interval, Intervals
from mldb.log.index.lineage import NO_JUMPS, Jumps, lowest, newest_unless
from mldb.log.index.memory import CommitField, IndexPart
from mldb.log.manifest import Kept
from mldb.log.sealed import SealedPart
from mldb.log.segment import Segment

if TYPE_CHECKING:
    from mldb.log.index.bulk import AttrColumns, Change, VersionColumns
    from mldb.log.index.listing import ListedPart

_PARTS_NEAR: Final = 16
_UNTIL: Final = attrgetter("until")


class View(NamedTuple):
    """One head of the log. Immutable; valid for ever, since what it maps is never changed.

    ``commit`` is the last commit in the log, ``number`` that of the manifest; a commit changes the
    first two fields alone. ``sealed`` stands in log order, ``active`` the newest part first.
    ``units`` answer for the sealed segments. What the index parts learn later has higher LSNs and
    is ignored; ``segments`` may come to hold more.
    """

    commit: CommitRow
    intervals: Intervals
    number: int
    jumps: Jumps
    sealed: Grown[SealedPart]
    active: tuple[IndexPart, ...]
    active_id: bytes
    segments: Mapping[bytes, Segment]
    kept: Kept | None
    """The commits that retention left, as ranges; None when nothing was ever pruned."""
    epochs: dict[int, tuple[CommitRow, Intervals]]
    """What finished epochs resolved to: a cache shared by the views of one lineage."""
    units: Units

    def newest(self, key: bytes, intervals: Intervals) -> Entry | None:
        """Return the newest version of *key* inside *intervals*, tombstones included."""
        for part in self.active:
            found = part.newest(key, intervals)
            if found is not None:
                return found
        if not intervals:
            return None
        high, low = intervals[-1][1], lowest(intervals)
        units = self.units
        units.lookups += 1
        for unit in units.newest_first:
            if unit.first_lsn > high or unit.last_lsn < low:
                continue
            units.touched += 1
            found = unit.lookup.newest(key, intervals)
            if found is not None:
                return found
        return None

    def version_at(self, key: bytes, lsn: int) -> Entry | None:
        """Return the version of *key* that commit *lsn* stored, wherever it lies now."""
        return self.newest(key, ((lsn, lsn),))

    def versions(self, key: bytes) -> list[Entry]:
        """Return every version of *key* on every lineage up to this head, oldest first."""
        found: list[Entry] = []
        for unit in reversed(self.units.newest_first):
            found += unit.lookup.versions(key)
        for part in reversed(self.active):
            found += part.versions(key)
        high = self.commit.lsn
        return [entry for entry in found if entry.commit_lsn <= high]

    def parts(self, intervals: Intervals | None = None) -> list[ListedPart]:
        """The parts that a listing reads, oldest first; those that may see into *intervals*."""
        from mldb.log.index.listing import HeldPart

        units = reversed(self.units.newest_first)
        found: list[ListedPart]
        if intervals is None:
            found = list(units)
        else:
            low, high = (lowest(intervals), intervals[-1][1]) if intervals else (1, 0)
            found = [unit for unit in units if unit.first_lsn <= high and unit.last_lsn >= low]
        found += [HeldPart(part) for part in reversed(self.active)]
        return found

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield the keys with this prefix in byte order, each once, whether visible or not."""
        from mldb.log.index.listing import all_keys

        return all_keys(self.parts(), prefix)

    def live(self, prefix: bytes, intervals: Intervals) -> Iterator[tuple[bytes, Entry]]:
        """Yield (key, newest entry) of the keys that exist inside *intervals*."""
        from mldb.log.index.listing import live_entries

        return live_entries(self.parts(intervals), prefix, intervals)

    def live_keys(self, prefix: bytes, intervals: Intervals) -> Iterator[list[bytes]]:
        """Yield the keys alone, in order, some at a time; no entry is decoded."""
        from mldb.log.index.listing import live_keys

        return live_keys(self.parts(intervals), prefix, intervals)

    def count_live(self, prefix: bytes, intervals: Intervals) -> int:
        """Return how many keys exist inside *intervals*, by columns; see ``mldb.log.counts``."""
        from mldb.log.index.listing import count_keys

        return count_keys(self.parts(intervals), prefix, intervals)

    def changes(self, prefix: bytes, after: int, intervals: Intervals) -> dict[bytes, Change]:
        """Return the keys with visible versions above commit *after*, and the newest of these.

        Only the segments since then are looked at.
        """
        from mldb.log.index.listing import asked, changes_in

        found: dict[bytes, Change] = {}
        for unit in reversed(self.units.above(after)):
            found |= asked(unit, lambda index: changes_in(index, prefix, after, intervals))
        for own in reversed(self.active):
            if own.last_lsn > after:
                found |= changes_in(own, prefix, after, intervals)
        return found

    def history(self, key: bytes, intervals: Intervals) -> Iterator[VersionColumns]:
        """Yield the visible versions of *key*, deletions left out, part by part, oldest first."""
        from mldb.log.index.listing import asked, history_in

        for part in self.parts(intervals):
            found = asked(part, lambda index: history_in(index, key, intervals))
            if found is not None:
                yield found

    def attrs(self, key: bytes, intervals: Intervals) -> Iterator[AttrColumns]:
        """Yield the attrs of the visible versions of *key*, part by part, oldest first."""
        from mldb.log.index.listing import asked, attrs_in

        for part in self.parts(intervals):
            found = asked(part, lambda index: attrs_in(index, key, intervals))
            if found is not None:
                yield found

    def near(self, prefix: bytes, key: bytes, count: int) -> set[bytes]:
        """Return keys around where *key* would stand, visible or not: *count* of a few parts."""
        from mldb.log.index.listing import asked, keys_around

        found: set[bytes] = set()
        for part in self.parts()[-_PARTS_NEAR:]:
            found |= asked(part, lambda index: keys_around(index, prefix, key, count))
        return found

    def live_since(
        self, prefix: bytes, start: bytes, lsn: int, intervals: Intervals
    ) -> Iterator[tuple[bytes, Entry]]:
        """Yield (key, newest entry) of keys that exist, from *start* on, in order.

        Only parts that may hold commits above *lsn* are asked: for keys whose order is that of
        their commits, which are told anew without a look at those known before.
        """
        parts = [unit.lookup.keys_from(prefix, start) for unit in self.units.above(lsn)]
        parts += [part.keys_from(prefix, start) for part in self.active]
        last = b""
        for key in parts[0] if len(parts) == 1 else heapq.merge(*parts):
            if key == last:
                continue
            last = key
            entry = self.newest(key, intervals)
            if entry is not None and not entry.flags & fmt.ENTRY_TOMBSTONE:
                yield key, entry

    def commit_at(self, lsn: int) -> CommitRow | None:
        """Return commit *lsn* of any lineage."""
        if lsn == self.commit.lsn:
            return self.commit
        for part in self.active:
            row = part.commit_at(lsn)
            if row is not None:
                return row
        return self.units.commit_at(lsn)

    def commits(self, low: int, high: int) -> Iterator[tuple[bytes, CommitRow]]:
        """Yield (segment id, commit) with low <= lsn <= high, ascending, on every lineage."""
        for sealed in self.between(low, high):
            yield from sealed.commits(low, high)
        for part in reversed(self.active):
            for row in part.commits(low, min(high, self.commit.lsn)):
                yield self.active_id, row

    def last_commit(self, intervals: Intervals, field: CommitField, limit: int) -> CommitRow | None:
        """Return the last commit inside *intervals* with *field* <= *limit*."""

        def is_beyond(lsn: int) -> bool:
            row = self.commit_at(lsn)  # None when it was pruned
            return row is not None and getattr(row, field) > limit

        # Of one interval the parts tell themselves whether it lies beyond.
        one = cast("tuple[Interval, ...]", intervals) if len(intervals) == 1 else None
        for low, high in one or newest_unless(intervals, is_beyond):
            for part in self.active:
                row = part.last_commit(low, high, field, limit)
                if row is not None:
                    return row
            for unit in self.units.newest_first:
                if unit.first_lsn > high or unit.last_lsn < low:
                    continue
                row = unit.lookup.last_commit(low, high, field, limit)
                if row is not None:
                    return row
        return None

    def between(self, low: int, high: int) -> Sequence[SealedPart]:
        """The sealed segments from the one that has commit *low* to the one that has *high*."""
        first = bisect_left(self.sealed, low, key=_UNTIL)
        last = bisect_left(self.sealed, high, first, key=_UNTIL)
        if first <= last < len(self.sealed) and self.sealed[last].info.first_lsn > high:
            last -= 1
        return self.sealed[first : last + 1]


make_view: Callable[[tuple[object, ...]], View] = partial(tuple.__new__, View)
"""Make a View of its fields in order, at half the cost of a call: once per commit."""


def view_after(view: View, row: CommitRow) -> View:
    """Return the view of a commit that follows the head of *view*, which is not the empty one."""
    intervals = view[1]
    return make_view((row, (*intervals[:-1], (intervals[-1][0], row[0])), *view[2:]))


EMPTY_VIEW = View(EMPTY_COMMIT, (), 0, NO_JUMPS, Grown(), (), b"", {}, None, {}, Units(()))
