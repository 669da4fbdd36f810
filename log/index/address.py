"""Addresses in the log: the LSN that users hold, and the rows that the index hands out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from mldb.deferred import NamedTuple


class Lsn(int):
    """Log sequence number of a commit: strictly increasing, never reused, kept by compaction.

    Its own type, because a plain ``int`` given as ``as_of`` means an epoch.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Lsn({int(self)})"

    def __str__(self) -> str:
        return str(int(self))


class Entry(NamedTuple):
    """One version of one key, as the index stores it.

    ``segment`` is the id of its segment. ``frame`` and ``offset`` are bytes from the start of the
    segment: where its frame starts, and where its stored bytes do. ``length`` counts the stored
    bytes. The remaining fields are those of FORMAT.md section 4.
    """

    commit_lsn: int
    segment: bytes
    frame: int
    offset: int
    length: int
    attr: bytes
    flags: int
    encoding: int
    base: int
    digest: bytes
    owner: bytes


_EntryFields = tuple[int, bytes, int, int, int, bytes, int, int, int, bytes, bytes]

make_entry: Callable[[_EntryFields], Entry] = partial(tuple.__new__, Entry)
"""Make an Entry of its fields in order, at half the cost of a call: once per version stored."""


class CommitRow(NamedTuple):
    """One commit, as the index stores it.

    ``start`` is the offset of the first frame of its batch, ``end`` the offset of the commit frame;
    ``time`` never decreases along a lineage, ``clock`` is the raw clock. Both are nanoseconds.
    ``id`` is 16 random bytes, empty in commits of version 1.
    """

    lsn: int
    parent: int
    epoch: int
    time: int
    clock: int
    start: int
    end: int
    id: bytes


CommitFields = tuple[int, int, int, int, int, int, int, bytes]
"""A CommitRow, or its fields in order."""

make_row: Callable[[CommitFields], CommitRow] = partial(tuple.__new__, CommitRow)
"""Make a CommitRow of its fields in order, at half the cost of a call: once per commit."""

EMPTY_COMMIT = CommitRow(0, 0, 0, 0, 0, 0, 0, b"")
"""The state before the first commit."""

Interval = tuple[int, int]
"""First and last LSN, inclusive."""


class Run:
    """Commits that follow each other, from one that continues an older one. Immutable.

    ``low`` is the LSN of the first, ``target`` the commit that it continues from, in the run
    ``parent``; ``skip`` is a run some way further up the path, by which any place on it is
    reached in O(log n) steps; ``depth`` counts the runs above; ``first`` is the first LSN of the
    path. Two are equal when their paths are.
    """

    __slots__ = ("depth", "first", "low", "parent", "skip", "target")

    def __init__(self, low: int, target: int, parent: Run | None) -> None:
        self.low = low
        self.target = target
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.first: int = low if parent is None else parent.first
        self.skip = parent
        if parent is not None and parent.skip is not None:
            # Jump lengths as the digits of a skew binary number: Myers, "An applicative
            # random-access stack" (1983).
            far = parent.skip
            further = far.skip or far
            if parent.depth - far.depth == far.depth - further.depth:
                self.skip = further

    def __eq__(self, other: object) -> bool:
        one: Run | None = self
        two = other if isinstance(other, Run) else None
        while one is not two:
            if one is None or two is None or (one.low, one.target) != (two.low, two.target):
                return False
            one, two = one.parent, two.parent
        return True

    def __hash__(self) -> int:
        return hash((self.low, self.target, self.depth))

    def __repr__(self) -> str:
        return f"Run({self.low}, {self.target}, depth {self.depth})"


Intervals = tuple[Interval, ...] | tuple[Run, Interval]
"""What one snapshot sees: the newest interval of LSNs last, as a plain pair.

In front of it stands nothing, older intervals spelled out (ascending, disjoint), or the run that
the newest interval belongs to, whose path leads to them. ``mldb.log.index.lineage`` answers what is
asked of it; a commit that follows its parent replaces the last pair and shares the rest.
"""


def to_time(nanoseconds: int) -> datetime:
    """Turn a commit time into an aware datetime (microseconds; the rest is cut)."""
    return datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC).replace(
        microsecond=nanoseconds % 1_000_000_000 // 1000
    )
