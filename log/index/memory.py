"""The index of the active segment, in memory and append-only; and what every index part answers.

The index maps a key (one byte of key space, then the name) to the entries of its versions. It knows
neither events nor files. The mapped index of a sealed segment (``mldb.log.index.mapped``) answers
the same questions from its footer.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Literal, Protocol

from mldb.log import native
from mldb.log.index.address import CommitRow, Entry, Intervals
from mldb.log.index.lineage import Memo, newest_visible
from mldb.log.ownership import OwnedLock

if TYPE_CHECKING:
    from sortedcontainers import SortedList

_LSN = itemgetter(0)

CommitField = Literal["epoch", "time"]

_HALF_SORTED = -1
_FEW_NAMES = 1 << 10
"""So many are sorted anew sooner than the package for more is imported."""
_MEMOS_MAX = 1 << 10


class IndexPart(Protocol):
    """What one segment, or a part of the active one, knows.

    Thread-safe for readers; versions outside a snapshot's intervals are ignored.
    """

    @property
    def first_lsn(self) -> int:
        """LSN of the first commit, or 0 when there is none."""

    @property
    def last_lsn(self) -> int:
        """LSN of the last commit, or 0 when there is none."""

    def newest(self, key: bytes, intervals: Intervals) -> Entry | None:
        """Return the newest version of *key* inside *intervals*; a tombstone is a version too."""

    def versions(self, key: bytes) -> Sequence[Entry]:
        """Return all versions of *key*, oldest first."""

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield the keys that start with *prefix*, in byte order."""

    def keys_from(self, prefix: bytes, start: bytes) -> Iterator[bytes]:
        """Yield those of them that do not stand before *start*."""

    def commit_at(self, lsn: int) -> CommitRow | None:
        """Return the commit *lsn*."""

    def commits(self, low: int, high: int) -> Iterator[CommitRow]:
        """Yield the commits with low <= lsn <= high, ascending."""

    def last_commit(self, low: int, high: int, field: CommitField, limit: int) -> CommitRow | None:
        """Return the last commit with low <= lsn <= high and *field* <= *limit*.

        Inside [low, high] the field must not decrease, as it does not along a lineage.
        """

    def entry_count(self) -> int:
        """How many versions this part holds."""

    def commit_count(self) -> int:
        """How many commits this part holds."""

    def dump(self) -> tuple[dict[bytes, list[Entry]], list[CommitRow]]:
        """Return everything, to be merged into a larger index."""


class MemoryIndex:
    """The index of commits not yet in any mapped index.

    ``add`` is called by the thread that holds the commit lock (or by the opening thread); every
    other method from any thread. Lists only grow, so a reader sees a prefix; what it must not see
    it ignores by LSN. ``_names_lock`` guards the sorted names, which are brought up to date by the
    first ordered read.
    """

    __slots__ = (
        "_commits",
        "_entries",
        "_log",
        "_memos",
        "_names",
        "_names_lock",
        "_order",
        "_sorted",
    )

    def __init__(self) -> None:
        self._entries: dict[bytes, list[Entry]] = {}
        self._commits: list[CommitRow] = []
        self._memos: dict[bytes, Memo] = {}  # of keys that many lineages wrote; true for ever
        self._log: list[bytes | CommitRow] = []  # what was stored, each commit behind its keys
        self._order: list[bytes] = []  # the keys as they came; only ever appended to
        self._sorted = 0  # how many of them are in _names; guarded by _names_lock
        # When first asked; guarded by _names_lock.
        self._names: list[bytes] | SortedList[bytes] | None = None
        self._names_lock = OwnedLock("the sorted names of the newest segment")

    @property
    def first_lsn(self) -> int:
        """LSN of the first commit, or 0."""
        return self._commits[0].lsn if self._commits else 0

    @property
    def last_lsn(self) -> int:
        """LSN of the last commit, or 0."""
        return self._commits[-1].lsn if self._commits else 0

    def add(self, row: CommitRow, entries: Sequence[tuple[bytes, Entry]]) -> None:
        """Append one commit and the versions it stored."""
        table, order, log, commits = self._entries, self._order, self._log, self._commits
        twin = native.twin
        if twin is not None and twin.add_versions(table, order, log, commits, row, entries):
            return
        for key, entry in entries:
            versions = table.get(key)
            if versions is None:
                table[key] = [entry]
                order.append(key)
            else:
                versions.append(entry)
            log.append(key)
        log.append(row)
        commits.append(row)

    def newest(self, key: bytes, intervals: Intervals) -> Entry | None:
        """Return the newest version inside the intervals."""
        versions = self._entries.get(key)
        if versions is None:
            return None
        last = versions[-1]
        if intervals:
            low, high = intervals[-1]
            if low <= last[0] <= high:
                return last
        memo = self._memos.setdefault(key, {})
        index = newest_visible(versions, intervals, _LSN, memo)
        if not memo:
            self._memos.pop(key, None)
        elif len(self._memos) > _MEMOS_MAX:
            self._memos = {}
        return versions[index] if index >= 0 else None

    def versions(self, key: bytes) -> Sequence[Entry]:
        """Return all versions, oldest first."""
        return tuple(self._entries.get(key, ()))

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield keys with this prefix in order; the names are those present at the call."""
        guard = self._names_lock.hold_unless_inside()
        if guard is None:  # a handler inside this very method: the sorted names are half done
            return iter(sorted(key for key in list(self._entries) if key.startswith(prefix)))
        with guard:
            return iter(self._between(prefix, after_prefix(prefix)))

    def _between(self, start: bytes, stop: bytes | None) -> list[bytes]:
        """The names with start <= name < stop. Under ``_names_lock``."""
        names = self._sort()
        if not isinstance(names, list):
            return list(names.irange(start, stop, inclusive=(True, False)))
        end = len(names) if stop is None else bisect_left(names, stop)
        return names[bisect_left(names, start) : end]

    def _sort(self) -> list[bytes] | SortedList[bytes]:
        """Bring the sorted names up to date; anew after an interrupt that left them half done."""
        names, done, count = self._names, self._sorted, len(self._order)
        if names is not None and done == count:
            return names
        self._sorted = _HALF_SORTED
        if count <= _FEW_NAMES:
            names = self._names = sorted(self._order[:count])
        elif names is None or isinstance(names, list) or done == _HALF_SORTED:
            from sortedcontainers import SortedList

            names = self._names = SortedList(self._order[:count])
        else:
            names.update(self._order[done:count])
        self._sorted = count
        return names

    def keys_from(self, prefix: bytes, start: bytes) -> Iterator[bytes]:
        """Yield the keys with this prefix from *start* on, as :meth:`keys` does."""
        guard = self._names_lock.hold_unless_inside()
        if guard is None:
            known = list(self._entries)
            return iter(sorted(key for key in known if key.startswith(prefix) and key >= start))
        with guard:
            return iter(self._between(max(prefix, start), after_prefix(prefix)))

    def commit_at(self, lsn: int) -> CommitRow | None:
        """Return the commit with this LSN."""
        index = bisect_left(self._commits, lsn, key=_LSN)
        if index < len(self._commits) and self._commits[index].lsn == lsn:
            return self._commits[index]
        return None

    def commits(self, low: int, high: int) -> Iterator[CommitRow]:
        """Yield the commits in this range."""
        start = bisect_left(self._commits, low, key=_LSN)
        stop = bisect_right(self._commits, high, key=_LSN)
        return iter(self._commits[start:stop])

    def last_commit(self, low: int, high: int, field: CommitField, limit: int) -> CommitRow | None:
        """Return the last commit in the range with field <= limit."""
        start = bisect_left(self._commits, low, key=_LSN)
        stop = bisect_right(self._commits, high, key=_LSN)
        index = bisect_right(self._commits, limit, start, stop, key=attrgetter(field)) - 1
        return self._commits[index] if index >= start else None

    def stored_after(self, lsn: int) -> set[bytes]:
        """Return the keys that the commits above *lsn* stored; costs what they stored."""
        found: set[bytes] = set()
        for item in reversed(self._log):
            if isinstance(item, bytes):
                found.add(item)
            elif item[0] <= lsn:
                break
        return found

    def entry_count(self) -> int:
        """How many versions are held; counted anew, since few ask."""
        return sum(map(len, list(self._entries.values())))

    def commit_count(self) -> int:
        """How many commits are held."""
        return len(self._commits)

    def dump(self) -> tuple[dict[bytes, list[Entry]], list[CommitRow]]:
        """Return copies; the versions of a key may grow, by LSNs above those there now."""
        return dict(self._entries), list(self._commits)

    def check(self) -> None:
        """Assert the invariants; for tests."""
        lsns = [row.lsn for row in self._commits]
        assert lsns == sorted(set(lsns)), lsns
        for key, versions in self._entries.items():
            own = [entry.commit_lsn for entry in versions]
            assert own == sorted(set(own)), (key, own)
            assert set(own) <= set(lsns), (key, own)


def after_prefix(prefix: bytes) -> bytes | None:
    """Return the smallest key greater than every key that starts with *prefix*."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None
