"""Which rows of a lake ended, and which are back: a state is a number of removals.

A removal ends rows. A merge ends its sources, and an undone one ends what was made of them and
restores them; each counts as one removal. Almost every row that ended stays so: of each row there
is the removal that ended it last, and of the restored ones what it was before.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from mldb.arrays import Bools, Numbers
from mldb.lake.rows.growing import Growing

LIVE: Final = np.iinfo(np.int32).max
"""The removal that a row which is live was ended by."""
TRIPLE: Final = 3


class Ends:
    """The removals of one lineage. One thread at a time changes it; any thread reads.

    How many removals there are is told by the chain that this belongs to, when all of one is in:
    what it was not told is not asked for, and forgotten after an interrupt.
    """

    __slots__ = ("commits", "ended", "gone", "restored")

    def __init__(self) -> None:
        self.commits = Growing(np.int64)
        """Of each removal its commit."""
        self.gone = Growing(np.int64)
        """Of each removal the rows that ended up to it, less those that are back."""
        self.ended = Growing(np.int32)
        """Of each row the removal that ended it. Rows behind the last one are live."""
        self.restored = Growing(np.int64)
        """Of each row that is back: its number, the removal that ended it, and what restored it."""

    def triples(self) -> Numbers:
        """What is in ``restored``, [n, 3]."""
        return self.restored.first(self.restored.count).reshape(-1, TRIPLE)

    def count(self, removals: int) -> int:
        """Rows that are not live after so many removals."""
        return int(self.gone.first(removals)[-1]) if removals else 0

    def live(self, removals: int, stored: int) -> Numbers | None:
        """The rows that are live among the first *stored*, ascending; None when all are. O(N)."""
        if not removals:
            return None
        ended = self.ended.first(min(self.ended.count, stored))
        is_live = ended >= removals
        is_live[self._back_later(removals)[:, 0]] = False
        return np.concatenate([np.flatnonzero(is_live), np.arange(len(ended), stored)])

    def are_live(self, rows: Numbers, removals: int, stored: int) -> Bools:
        """Which of these rows are live among the first *stored*; numbers below 0 are none."""
        ended = self.ended.first(self.ended.count)
        inside = (rows >= 0) & (rows < len(ended))
        found = rows >= 0
        found[inside] = ended[rows[inside]] >= removals
        back = self._back_later(removals)
        if len(back):
            found &= ~np.isin(rows, back[:, 0])
        return found & (rows < stored)

    def ended_by(self, rows: Numbers, removals: int, stored: int) -> Numbers:
        """The removal that ended each of these rows, as of so many; LIVE for a live one."""
        by = np.full(len(rows), LIVE, np.int64)
        ended = self.ended.first(self.ended.count)
        inside = rows < len(ended)
        by[inside] = ended[rows[inside]]
        by[self.are_live(rows, removals, stored)] = LIVE
        back = self._back_later(removals)
        if len(back):
            order = np.argsort(back[:, 0])
            place = np.minimum(np.searchsorted(back[order, 0], rows), len(back) - 1)
            hit = back[order[place], 0] == rows
            by[hit] = back[order[place], 1][hit]
        return by

    def has_restored(self, before: int, after: int) -> bool:
        """Whether rows that were dead after *before* removals are back after *after* of them."""
        by = self.triples()[:, 2]
        return bool(((by >= before) & (by < after)).any())

    def _back_later(self, removals: int) -> Numbers:
        """Those of ``triples`` whose rows are dead after so many removals, and back later.

        Read after ``ended``: a row is here before it is marked as live there.
        """
        found = self.triples()
        return found[(found[:, 1] < removals) & (found[:, 2] >= removals)]

    # --- changing ---------------------------------------------------------------------------------

    def add(self, commit: int, removals: int, stored: int, rows: Numbers, back: Numbers) -> None:
        """End live *rows* and restore dead rows *back*, by the removal behind *removals*."""
        self.ended.append(np.full(stored - self.ended.count, LIVE, np.int32))
        ended = self.ended.first(stored)
        by = np.full(len(back), removals)
        self.restored.append(np.stack([back, ended[back], by], axis=1).reshape(-1))
        ended[back] = LIVE
        ended[rows] = removals
        before = self.count(removals)
        self.commits.append([commit])
        self.gone.append([before + len(rows) - len(back)])

    def forget(self, removals: int) -> None:
        """Undo what an interrupt left of a removal that was not told."""
        self.commits.cut(removals)
        self.gone.cut(removals)
        ended = self.ended.first(self.ended.count)
        ended[ended >= removals] = LIVE
        restored = self.triples()
        told = restored[:, 2] < removals
        ended[restored[~told, 0]] = restored[~told, 1]
        self.restored.cut(TRIPLE * int(told.sum()))

    def fork(self, removals: int, stored: int) -> Ends:
        """The same for another lineage, which begins with so many removals and rows."""
        other = Ends()
        other.commits = Growing(np.int64, self.commits.first(removals))
        other.gone = Growing(np.int64, self.gone.first(removals))
        ended = self.ended.first(min(self.ended.count, stored))
        other.ended = Growing(np.int32, np.where(ended < removals, ended, LIVE))
        back = self._back_later(removals)
        other.ended.first(other.ended.count)[back[:, 0]] = back[:, 1]
        restored = self.triples()
        other.restored = Growing(np.int64, restored[restored[:, 2] < removals].reshape(-1))
        return other

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for part in (self.commits, self.gone, self.ended, self.restored))
