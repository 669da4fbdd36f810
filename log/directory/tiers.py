"""Which runs of segments are merged next: pure functions over sizes.

The directory covers the first segments of the log by parts, one after another. A part belongs to a
tier by how many versions it holds: tier t up to ``first * fanout**t``. When as many neighbours of
one tier stand at the end as the fanout says, they become one part of the next tier. So a store has
at most ``fanout - 1`` parts of each tier, a lookup touches O(log n) of them, and a version is
merged once a tier (O'Neil et al., "The log-structured merge-tree", Acta Informatica 33, 1996).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

FANOUT: Final = 4
"""Neighbours that become one: fewer mean fewer parts in a lookup, and more merging."""
VERSIONS_MAX: Final = 1 << 24
"""A part of this many versions grows no more: merging takes memory for all of them at once."""


def next_run(sizes: Sequence[int], fanout: int = FANOUT) -> tuple[int, int] | None:
    """Return (start, stop) of the units to merge next, None when there is nothing to do.

    *sizes* are the versions of all units in log order: parts of the directory, then segments not
    in any. The youngest full run comes first: it is the cheapest, and others may complete by it.
    """
    tiers = [tier_of(size, fanout) for size in sizes]
    stop = len(sizes)
    while stop > 0:
        # A larger neighbour on the left ends a run; smaller ones inside it are swept along.
        start = stop - 1
        tier = tiers[start]
        while start > 0 and tiers[start - 1] <= tier:
            start -= 1
        if stop - start >= fanout and sum(sizes[start:stop]) <= VERSIONS_MAX:
            return start, stop
        stop = start
    return None


def tier_of(size: int, fanout: int = FANOUT) -> int:
    """The tier of a unit of *size* versions."""
    tier = 0
    while size >= fanout:
        size //= fanout
        tier += 1
    return tier
