"""Which versions are cold, and on what each of them is to build. Pure, NumPy.

A cold version is encoded as the difference to an older version of its key, which stays as it is or
was encoded before it. So bases and versions form a forest. Its depth is bounded, and so that few
versions are *keyframes*, which build on none, version number ``p`` since a keyframe builds on
number ``p & (p - 1)``, as the nodes of a Fenwick tree do (Fenwick 1994): with a depth of 4 there is
one keyframe for 31 versions, half of the others build on the one just before them, and a quarter on
the one before that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from mldb.arrays import Bools, Numbers
from mldb.compaction.table import NO_ROW, VersionTable
from mldb.log import format as fmt

CHAIN: Final = 4
"""Versions that one builds on, one on another, at most."""

SizeOf: TypeAlias = "Callable[[bytes, bytes], int | None]"
"""From key and attr to the decoded size in bytes; None for what is stored raw for ever."""


class ColdVersion(NamedTuple):
    """A version that is to be encoded anew, and the row that it may build on, or NO_ROW."""

    row: int
    base: int


def cold_rows(
    table: VersionTable, stays: Bools, hot: Bools, commits: Numbers, times: Numbers, before: int
) -> Bools:
    """Return which rows are cold: not *hot*, stored and followed by commits up to *before*.

    While a version is the newest of its key nobody notes that it is read; so it counts as read
    until the next one is stored. *commits* and their *times* ascend by LSN; *before* is in
    nanoseconds.
    """
    if not len(commits):
        return np.zeros(len(table), np.bool_)
    place = np.minimum(np.searchsorted(commits, table.commit), len(commits) - 1)
    old = (commits[place] == table.commit) & (times[place] <= before)
    cold: Bools = stays & ~hot & old
    same = table.key[1:] == table.key[:-1]
    cold[:-1] &= ~same | (times[place[1:]] <= before)
    return cold


def forest(
    table: VersionTable, stays: Bools, cold: Bools, size_of: SizeOf, *, chain: int = CHAIN
) -> list[ColdVersion]:
    """Return what is to be encoded anew, in the order of commits, and on what it builds.

    No version builds on more than *chain* others, whichever of them pay in the end. What was tried
    before is left out. O(rows).
    """
    tried = table.flags & (fmt.ENTRY_TOMBSTONE | fmt.ENTRY_SETTLED) != 0
    own = ~np.isin(table.encoding, fmt.BUILT_ENCODINGS)
    wanted = stays & cold & own & ~tried & (table.length > 0)
    if not wanted.any():
        return []
    rows = np.flatnonzero(stays & (table.length > 0) | (table.base_row != NO_ROW) & stays)
    rows = rows[np.argsort(table.commit[rows], kind="stable")]
    leaders = _leaders(table, rows, wanted)
    depth: dict[int, int] = {}
    trails: dict[int, list[int]] = {}  # by key: its versions since the keyframe, as rows with bytes
    found: list[ColdVersion] = []
    key, attr = table.key, table.attr_number
    for row in rows.tolist():
        if table.encoding[row] == fmt.ENCODING_PATCH:
            continue  # its bytes are those of others, laid over
        owner, trail = _with_bytes(table, row), trails.setdefault(int(key[row]), [])
        leader = leaders.get(row, row)
        if leader != row:
            depth[row] = depth[leader]
        elif owner == row:
            depth[row] = _stored_depth(table, row, depth, chain)
            if wanted[row] and size_of(table.key_of(row), table.attr_of(row)):
                base = _base_in(trail)
                fits = base != NO_ROW and attr[base] == attr[row] and depth[base] < chain
                found.append(ColdVersion(row, base if fits else NO_ROW))
                depth[row] = depth[base] + 1 if fits else 0
        if owner in depth:
            if not depth[owner]:
                trail.clear()
            trail.append(owner)
    return found


def _base_in(trail: list[int]) -> int:
    """What the next version of a key builds on; NO_ROW where there is none before it."""
    place = len(trail)
    return trail[place & (place - 1)] if place else NO_ROW


def _leaders(table: VersionTable, rows: Numbers, wanted: Bools) -> dict[int, int]:
    """Of names that share bytes: the row whose form all of them have, the first of them.

    Only where all of them are wanted that one is; *wanted* is changed so.
    """
    if not table.shared[rows].any():
        return {}
    groups: dict[tuple[int, int, int], list[int]] = {}
    for row in rows.tolist():
        if table.length[row]:
            place = int(table.segment[row]), int(table.frame[row]), int(table.offset[row])
            groups.setdefault(place, []).append(row)
    leaders: dict[int, int] = {}
    for group in groups.values():
        if len(group) > 1:
            leaders |= dict.fromkeys(group[1:], group[0])
            wanted[group[0]] = wanted[group].all()
    return leaders


def _with_bytes(table: VersionTable, row: int) -> int:
    """The row itself, or the one that a reference names."""
    if table.encoding[row] == fmt.ENCODING_REFERENCE and table.base_row[row] != NO_ROW:
        return int(table.base_row[row])
    return row


def _stored_depth(table: VersionTable, row: int, depth: dict[int, int], chain: int) -> int:
    """How many versions one builds on as it is stored; *chain* when that is not known."""
    if table.encoding[row] != fmt.ENCODING_DELTA:
        return 0
    return depth.get(int(table.base_row[row]), chain - 1) + 1
