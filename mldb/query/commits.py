"""The table of commits in columns: epoch and time of many commits at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mldb.arrays import Bools, Numbers
from mldb.log.index.listing import asked
from mldb.log.index.mapped import MappedIndex
from mldb.log.view import View

_Table = npt.NDArray[np.int64]
_NAMES = ("commit_lsn", "commit_epoch", "commit_time")


class CommitColumns:
    """LSN, epoch and time of every commit, on every lineage. For one thread at a time."""

    def __init__(self) -> None:
        self.number = -1
        self.high = 0
        self._table: _Table = np.empty((3, 0), np.int64)

    def bring_up_to(self, view: View) -> None:
        """Take in what *view* has besides; an older one changes nothing. Raises CorruptError."""
        after = 0 if view.number > self.number else self.high
        if after and view.commit.lsn <= after:
            return
        if after:
            found = [_of_rows(list(view.commits(after + 1, view.commit.lsn)))]
        else:
            found = _all(view)
        table = np.concatenate([self._table, *found] if after else found, axis=1)
        table = table[:, table[0] <= view.commit.lsn]
        if (table[0, 1:] <= table[0, :-1]).any():
            table = table[:, np.unique(table[0], return_index=True)[1]]
        self._table, self.number, self.high = table, view.number, view.commit.lsn

    def of(self, lsns: Numbers) -> tuple[Numbers, Numbers, Bools]:
        """Return the epochs and times (nanoseconds) of these commits, and which are not known."""
        known, epochs, times = self._table
        if not len(known):
            zeros = np.zeros(len(lsns), np.int64)
            return zeros, zeros, np.ones(len(lsns), np.bool_)
        place = np.minimum(np.searchsorted(known, lsns), len(known) - 1)
        return epochs[place], times[place], known[place] != lsns


def _all(view: View) -> list[_Table]:
    found = []
    for unit in reversed(view.units.newest_first):
        table = asked(unit, _of_index)
        if table is None and unit.last_lsn:
            table = _of_rows(list(view.commits(unit.first_lsn, unit.last_lsn)))
        if table is not None:
            found.append(table)
    found += [
        _of_rows([(b"", row) for row in part.commits(1, view.commit.lsn)])
        for part in reversed(view.active)
    ]
    return found or [np.empty((3, 0), np.int64)]


def _of_index(index: object) -> _Table | None:
    if not isinstance(index, MappedIndex):
        return None
    reader = index.reader
    return np.array([reader.whole(name).astype(np.int64) for name in _NAMES])


def _of_rows(rows: list[tuple[bytes, Any]]) -> _Table:
    table = np.array([(row.lsn, row.epoch, row.time) for _, row in rows], np.int64)
    return table.reshape(-1, 3).T
