"""Which patches are folded into larger ones, and on which versions these build. Pure.

A patch is told by the version that it builds on, and that by the next one, down to a version that
is whole. Two things make *folds* of it, patches that do what several did, with the newest value of
each row; the whole version is never written again, and what is read stays the same:

- A patch that no kept commit sees, and on which one other patch alone builds, goes into that one.
  So below the versions that are seen stand at most as many others, and no byte is stored twice.
- A version that more than ``LINKS_MAX`` patches lead to is folded with those below it of which each
  is not much larger than all of the chain behind it, as digits of a counter are carried. The
  patches stay for the commits that see them. So no read goes through more than 64 of them. Where no
  row is set twice, a fold takes what it folds, and each patch is folded once for some 64 patches,
  once more for some 1,000, for 16,000 and so on: of 1,000 steps the patches take 2 x afterwards.
  Where rows are set again, less; and never more than the tensor for 64 steps.

A second pass finds nothing to fold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from mldb.arrays import Bools, Numbers
from mldb.compaction.cold import ColdVersion, SizeOf
from mldb.compaction.sight import with_bases
from mldb.compaction.table import NO_ROW, VersionTable
from mldb.log import format as fmt

LINKS_MAX: Final = 64
"""Patches that a read goes through, at most, once a pass folded what it may."""
_LINKS_LEAST: Final = LINKS_MAX // 2
"""So many are folded at once: those that come are left alone until there are as many again."""
_CARRY: Final = 16
"""A patch is folded again when what came since is so many times its size."""


class Fold(NamedTuple):
    """A patch that is stored anew, the row that it builds on then, and its bytes, at most."""

    row: int
    base: int
    size: int


Anew: TypeAlias = ColdVersion | Fold
"""What is stored in another form."""


class Folding(NamedTuple):
    """What is folded, and what becomes of the table by it."""

    folds: list[Fold]
    """In the order of rows."""
    stays: Bools
    """The rows that stay when all of that is done."""
    freed: Numbers
    """By segment: the bytes of rows of other ones that go, as a patch of it takes them in."""
    deep: Bools
    """Which segments have a patch that is folded to be read faster."""


def plan_folds(
    table: VersionTable,
    seen: Bools,
    allowed: Bools,
    weights: Numbers,
    size_of: SizeOf,
    *,
    may_change: Bools | None = None,
) -> Folding:
    """Return what is to be folded among the rows that are *seen*, and those that they build on.

    Patches that are not seen go into others of the segments that are *allowed*; what is folded to
    be read faster is so in every segment but those of which *may_change* is false, which stay as
    they are. *weights* is what each row takes. O(patches).
    """
    stays = with_bases(table, seen.copy())
    if may_change is None:
        may_change = np.ones(len(table.sizes), np.bool_)
    chains = _Chains(table, seen, stays, allowed & may_change, may_change, size_of)
    chains.take_in()
    while chains.shorten():
        chains.take_in()
    freed = np.zeros(len(table.sizes), np.int64)
    deep = np.zeros(len(table.sizes), np.bool_)
    bases = table.base_row.copy()
    folds: list[Fold] = []
    for row in chains.rows:
        if row in chains.gone or chains.base[row] == bases[row]:
            continue
        bases[row] = chains.base[row]
        deep[table.segment[row]] |= row in chains.deep
        folds.append(Fold(row, chains.base[row], chains.size[row]))
    for row in chains.taken:
        place = table.segment[chains.taker(row)]
        freed[place] += weights[row] * (table.segment[row] != place)
    if folds:
        stays = with_bases(replace(table, base_row=bases), seen.copy())
    return Folding(sorted(folds), stays, freed, deep)


def growth_of(table: VersionTable, folds: Sequence[Fold]) -> Numbers:
    """By how many bytes each row grows, at most."""
    grown = np.zeros(len(table), np.int64)
    for row, _, size in folds:
        grown[row] = size - int(table.length[row])
    return grown


def segments_of(table: VersionTable, folds: Sequence[Fold]) -> Bools:
    """The segments of which something is folded."""
    found = np.zeros(len(table.sizes), np.bool_)
    found[table.segment[[fold.row for fold in folds]]] = True
    return found


class _Chains:
    """The patches of a table while some of them are folded. One thread."""

    def __init__(
        self,
        table: VersionTable,
        seen: Bools,
        stays: Bools,
        allowed: Bools,
        may_change: Bools,
        size_of: SizeOf,
    ) -> None:
        is_patch = stays & (table.encoding == fmt.ENCODING_PATCH) & (table.base_row != NO_ROW)
        rows = np.flatnonzero(is_patch)
        # One that says it builds on a newer one is damaged: it is left as it is.
        rows = rows[table.commit[table.base_row[rows]] < table.commit[rows]]
        self.rows: list[int] = rows[np.argsort(table.commit[rows], kind="stable")].tolist()
        self.base = dict(zip(rows.tolist(), table.base_row[rows].tolist(), strict=True))
        self.size = dict(zip(rows.tolist(), table.length[rows].tolist(), strict=True))
        self.taken: dict[int, int] = {}
        """Rows that went into another one, which may have done so itself."""
        self.gone: set[int] = set()
        self.deep: set[int] = set()
        self._segment, self._allowed, self._may_change = table.segment, allowed, may_change
        self._attr = table.attr_number
        self._seen = seen.copy()
        others = stays & (table.encoding != fmt.ENCODING_PATCH) & (table.base_row != NO_ROW)
        self._seen[table.base_row[others]] = True
        self._whole = {
            int(number): size_of(table.key_of(row), table.attr_of(row)) or 0
            for number, row in zip(*np.unique(self._attr[rows], return_index=True), strict=True)
            for row in (int(rows[row]),)
        }

    def taker(self, row: int) -> int:
        """The row that takes one in, in the end."""
        while row in self.taken:
            row = self.taken[row]
        return row

    def take_in(self) -> None:
        """Fold what is not seen into the one patch that builds on it."""
        users = self._users()
        for row in reversed(self.rows):
            if row in self.gone or not self._allowed[self._segment[row]]:
                continue
            below = self.base[row]
            while (
                below in self.base
                and not self._seen[below]
                and users[below] == 1
                and self._attr[below] == self._attr[row]
            ):
                self._set_base(row, self.base[below], self.size[row] + self.size[below])
                self.gone.add(below)
                self.taken[below] = row
                below = self.base[row]

    def shorten(self) -> bool:
        """Fold what too many patches lead to; return whether there was any."""
        depth: dict[int, int] = {}
        was = len(self.deep)
        for row in self.rows:
            if row in self.gone:
                continue
            depth[row] = depth.get(self.base[row], 0) + 1
            if depth[row] > LINKS_MAX and self._may_change[self._segment[row]]:
                lowest, size = self._carried(row)
                if lowest == row:
                    continue
                self._set_base(row, self.base[lowest], size)
                self.deep.add(row)
                depth[row] = depth[lowest]
        return len(self.deep) > was

    def _carried(self, row: int) -> tuple[int, int]:
        """The lowest patch that is folded into this one, and the bytes of all of them."""
        found, size, total = row, self.size[row], self.size[row]
        links, at = 1, self.base[row]
        while at in self.base and self._attr[at] == self._attr[row]:
            links += 1
            own = self.size[at]
            is_small = _CARRY * own <= total
            total += own
            if is_small or links <= _LINKS_LEAST:
                found, size = at, total
            at = self.base[at]
        return found, size

    def _users(self) -> Counter[int]:
        """How many patches build on each row; those that nothing needs any more are gone."""
        users: Counter[int] = Counter()
        for row in reversed(self.rows):
            if row in self.gone:
                continue
            if self._seen[row] or users[row]:
                users[self.base[row]] += 1
            else:
                self.gone.add(row)
        return users

    def _set_base(self, row: int, base: int, size: int) -> None:
        self.base[row] = base
        whole = self._whole[int(self._attr[row])]
        self.size[row] = max(min(size, whole), self.size[row])
