"""Addresses in the log: the LSN that users hold, and the rows that the index hands out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple


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
Intervals = tuple[Interval, ...]
"""Ascending, disjoint, inclusive LSN ranges: what one snapshot sees."""


def to_time(nanoseconds: int) -> datetime:
    """Turn a commit time into an aware datetime (microseconds; the rest is cut)."""
    return datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC).replace(
        microsecond=nanoseconds % 1_000_000_000 // 1000
    )
