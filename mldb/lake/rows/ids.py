"""Which stored row has an id: sorted runs, each at least twice as long as the next.

Adding rows sorts those alone, and merges runs now and then: O(log N) a row over many additions. An
id that is above all before it, as ids that the lake assigns are, goes to the end of the last run.
An id may stand in several rows, of which the newest alone can be live.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mldb.arrays import Numbers
from mldb.lake.rows.growing import Growing


class IdRun(NamedTuple):
    """Ids in ascending order and the stored rows that have them; equal ids in row order.

    ``rows`` is None where row ``first + i`` has id i of the run.
    """

    ids: Numbers
    rows: Numbers | None
    first: int

    def rows_at(self, places: Numbers) -> Numbers:
        """The rows at these places."""
        return places + self.first if self.rows is None else self.rows[places]

    def newest(self, ids: Numbers, stored: int) -> Numbers | None:
        """The newest row below *stored* of each id; -1 where none has it, None where none has any.

        The last id is below none that are looked for at place -1, so that place needs no check.
        """
        place = np.searchsorted(self.ids, ids, "right") - 1
        while True:
            hit = self.ids[place] == ids
            if not hit.any():
                return None
            rows = self.rows_at(np.maximum(place, 0))
            beyond = hit & (rows >= stored)
            if not beyond.any():
                return np.where(hit, rows, -1)
            # An older row of the same id may be there; before the first place there is none.
            place = np.maximum(place - beyond, -1)
            ids = np.where(beyond & (place < 0), np.iinfo(np.int64).min, ids)


class IdIndex:
    """The ids of the first ``count`` stored rows. Any thread asks; one at a time adds.

    ``runs`` is replaced as a whole, so who reads it sees one state or the next.
    """

    def __init__(self) -> None:
        self.runs: tuple[IdRun, ...] = ()
        self.count = 0
        self._tail: Growing | None = None  # the ids of the last run, where it may be appended to

    def copy(self) -> IdIndex:
        """The same for another lineage; rows that it lacks are left out when asked for."""
        other = IdIndex()
        other.runs, other.count = self.runs, self.count
        return other

    def add(self, ids: Numbers) -> None:
        """Add the ids of the rows that follow: int64, in row order."""
        if not len(ids):
            return
        runs, first = self.runs, self.count
        ascends = bool((ids[1:] > ids[:-1]).all())
        last = runs[-1] if runs else None
        tail = self._tail
        if tail is not None and last is not None and ascends and ids[0] > last.ids[-1]:
            tail.cut(len(last.ids))
            tail.append(ids)
            runs = (*runs[:-1], IdRun(tail.first(tail.count), None, last.first))
        elif ascends:
            tail = Growing(np.int64, ids)
            runs = _merged((*runs, IdRun(tail.first(tail.count), None, first)))
        else:
            order = np.argsort(ids, kind="stable")
            runs, tail = _merged((*runs, IdRun(ids[order], order + first, 0))), None
        self._tail = None  # an interrupt in between leaves none that belongs to another run
        # Rows are added again where this is interrupted; they are found twice then, alike.
        self.runs = runs
        self.count = first + len(ids)
        self._tail = tail if runs[-1].rows is None else None

    def newest(self, ids: Numbers, stored: int) -> Numbers:
        """The newest row of each id (int64) among the first *stored* rows; -1 where none has it.

        O(log N) runs are searched.
        """
        found = np.full(len(ids), -1, np.int64)
        if not len(ids):
            return found
        order = np.argsort(ids)  # neighbours in the order are neighbours in the runs
        ascending = ids[order]
        for run in self.runs:
            if run.ids[0] <= ascending[-1] and run.ids[-1] >= ascending[0]:
                rows = run.newest(ascending, stored)
                if rows is not None:
                    np.maximum(found, rows, out=found)
        out = np.empty_like(found)
        out[order] = found
        return out

    def in_order(self, stored: int) -> Numbers:
        """The ids of the first *stored* rows, in row order: O(N)."""
        out = np.empty(stored, np.int64)
        for run in self.runs:
            if run.rows is None:
                part = run.ids[: max(stored - run.first, 0)]
                out[run.first : run.first + len(part)] = part
            else:
                inside = run.rows < stored
                out[run.rows[inside]] = run.ids[inside]
        return out

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(r.ids.nbytes + (0 if r.rows is None else r.rows.nbytes) for r in self.runs)


def _merged(runs: tuple[IdRun, ...]) -> tuple[IdRun, ...]:
    """Merge the last runs until each is more than twice as long as the next."""
    while len(runs) > 1 and len(runs[-2].ids) <= 2 * len(runs[-1].ids):
        left, right = runs[-2:]
        ids = np.concatenate([left.ids, right.ids])
        rows = np.concatenate([run.rows_at(np.arange(len(run.ids))) for run in (left, right)])
        # Sorted parts are merged, not sorted anew; the left ones stand first and are older.
        order = np.argsort(ids, kind="stable")
        runs = (*runs[:-2], IdRun(ids[order], rows[order], 0))
    return runs
