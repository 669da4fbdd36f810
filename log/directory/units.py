"""The units that are asked for sealed versions: parts of the directory, and segments in none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from mldb.errors import MldbError
from mldb.log.index.address import CommitRow, Entry, Intervals
from mldb.log.index.memory import CommitField
from mldb.log.sealed import SealedPart

if TYPE_CHECKING:
    from mldb.log.index.listing import PlainIndex
    from mldb.log.index.mapped import MappedIndex


class UnitIndex(Protocol):
    """What a unit answers: as an IndexPart does."""

    def newest(self, key: bytes, intervals: Intervals) -> Entry | None:
        """Return the newest version of *key* inside *intervals*; a tombstone is a version too."""

    def versions(self, key: bytes) -> Sequence[Entry]:
        """Return all versions of *key*, oldest first."""

    def keys_from(self, prefix: bytes, start: bytes) -> Iterator[bytes]:
        """Yield the keys with this prefix that do not stand before *start*, in order."""

    def commit_at(self, lsn: int) -> CommitRow | None:
        """Return the commit *lsn*."""

    def last_commit(self, low: int, high: int, field: CommitField, limit: int) -> CommitRow | None:
        """Return the last commit with low <= lsn <= high and *field* <= *limit*."""

    def entry_count(self) -> int:
        """How many versions it holds."""


class Unit(Protocol):
    """The index of one sealed segment, or of a run of them. Any thread."""

    @property
    def first_lsn(self) -> int:
        """LSN of the first commit."""

    @property
    def last_lsn(self) -> int:
        """LSN of the last commit."""

    @property
    def lookup(self) -> UnitIndex:
        """What single questions are asked of, mapped when first asked."""

    @property
    def index(self) -> MappedIndex | PlainIndex:
        """The index for listings, as it is now."""

    def distrust(self, error: MldbError) -> bool:
        """Take it that the index is no good, and tell whether another can be asked."""

    @property
    def mapped_bytes(self) -> int:
        """How much of it is mapped now."""

    def release(self) -> None:
        """Let the mapping go; the next question maps it again."""


Find = Callable[[Sequence[SealedPart]], Sequence[Unit]]
"""Returns the units over these segments, in log order."""


class Units:
    """The units of the sealed segments of one manifest. Any thread; views of it share one.

    What it holds is replaced as a whole when the directory grew: all views see it, and none other
    versions by it, since what they may see is decided by LSNs. The counters may miss a lookup when
    two threads count at once.
    """

    __slots__ = ("_find", "_found", "_sealed", "lookups", "touched")

    def __init__(self, sealed: Sequence[SealedPart], find: Find | None = None) -> None:
        self._sealed = sealed
        self._find = find
        self._found: tuple[Unit, ...] | None = None if find is not None and sealed else ()
        self.lookups = 0
        """Lookups that no active index could answer."""
        self.touched = 0
        """How many units these asked."""

    @property
    def newest_first(self) -> tuple[Unit, ...]:
        """The units, the newest first."""
        found = self._found
        if found is None:
            find = self._find
            assert find is not None
            found = self._found = tuple(reversed(find(self._sealed)))
        return found

    def refresh(self) -> None:
        """Look again what the directory has, at the next lookup."""
        if self._find is not None and self._sealed:
            self._found = None

    def above(self, lsn: int) -> list[Unit]:
        """The units with commits above *lsn*, the newest first; an empty one may lie between."""
        return [unit for unit in self.newest_first if unit.last_lsn > lsn]

    def commit_at(self, lsn: int) -> CommitRow | None:
        """Return commit *lsn*, when it is sealed."""
        for unit in self.newest_first:
            if unit.first_lsn <= lsn <= unit.last_lsn:
                return unit.lookup.commit_at(lsn)
        return None
