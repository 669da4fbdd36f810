"""The index of a segment whose file was replaced: what it held, as the newest view has it.

A view that somebody holds may name a segment that is no more. Its versions and commits lie in
others then, under the same keys and LSNs. So each question about the segment is one about the
newest view, within the LSNs of the segment; and the entries found say where the bytes lie now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from mldb.errors import VersionGoneError
from mldb.log.index.address import CommitRow, Entry, Intervals
from mldb.log.index.lineage import is_left, lowest, within
from mldb.log.index.memory import CommitField
from mldb.log.manifest import Kept


class Newest(Protocol):
    """What is asked of the newest view; see ``mldb.log.view``."""

    @property
    def kept(self) -> Kept | None:
        """The commits that retention left; None when nothing was ever pruned."""

    def newest(self, key: bytes, intervals: Intervals) -> Entry | None:
        """Return the newest version of *key* inside *intervals*."""

    def versions(self, key: bytes) -> list[Entry]:
        """Return every version of *key*, oldest first."""

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield the keys with this prefix in order."""

    def commit_at(self, lsn: int) -> CommitRow | None:
        """Return commit *lsn*."""

    def commits(self, low: int, high: int) -> Iterator[tuple[bytes, CommitRow]]:
        """Yield (segment id, commit) in this range."""

    def last_commit(self, intervals: Intervals, field: CommitField, limit: int) -> CommitRow | None:
        """Return the last commit inside *intervals* with *field* <= *limit*."""


class MovedIndex:
    """Answers as the index of a removed segment did. Any thread.

    Raises VersionGoneError where the commit asked about was pruned: then the newest version of a
    key within some LSNs is no longer the one that was newest there.
    """

    __slots__ = ("_head", "first_lsn", "last_lsn")

    def __init__(self, head: Callable[[], Newest], first_lsn: int, last_lsn: int) -> None:
        self._head = head
        self.first_lsn = first_lsn
        self.last_lsn = last_lsn

    def _clip(self, low: int, high: int) -> tuple[int, int]:
        return max(low, self.first_lsn), min(high, self.last_lsn)

    def newest(self, key: bytes, intervals: Intervals) -> Entry | None:
        """Return the newest version inside the intervals."""
        inside = within(intervals, self.first_lsn, self.last_lsn)
        if not inside:
            return None
        view = self._head()
        first, last = lowest(intervals), intervals[-1][1]
        # One LSN alone names its version, whatever became of the commit.
        if first != last and not is_left(last, view.kept):
            raise VersionGoneError(
                f"commit {last} was pruned while it was being read. Hold a snapshot (db.at) in a "
                "folder that can be written to keep what you read, or pin the commit."
            )
        return view.newest(key, inside)

    def versions(self, key: bytes) -> list[Entry]:
        """Return all versions of the segment's LSNs that are left, oldest first."""
        low, high = self.first_lsn, self.last_lsn
        return [entry for entry in self._head().versions(key) if low <= entry.commit_lsn <= high]

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield the keys with this prefix that have versions here, in order."""
        view, inside = self._head(), ((self.first_lsn, self.last_lsn),)
        for key in view.keys(prefix):
            if view.newest(key, inside) is not None:
                yield key

    def keys_from(self, prefix: bytes, start: bytes) -> Iterator[bytes]:
        """Yield those of them that do not stand before *start*."""
        return (key for key in self.keys(prefix) if key >= start)

    def commit_at(self, lsn: int) -> CommitRow | None:
        """Return the commit with this LSN."""
        return self._head().commit_at(lsn) if self.first_lsn <= lsn <= self.last_lsn else None

    def commits(self, low: int, high: int) -> Iterator[CommitRow]:
        """Yield the commits in this range."""
        return (row for _, row in self.placed(low, high))

    def placed(self, low: int, high: int) -> Iterator[tuple[bytes, CommitRow]]:
        """Yield (segment id, commit) in this range."""
        return self._head().commits(*self._clip(low, high))

    def last_commit(self, low: int, high: int, field: CommitField, limit: int) -> CommitRow | None:
        """Return the last commit in the range with field <= limit."""
        inside = self._clip(low, high)
        return self._head().last_commit((inside,), field, limit) if inside[0] <= inside[1] else None

    def entry_count(self) -> int:
        """How many versions are left."""
        return sum(len(self.versions(key)) for key in self.keys(b""))
