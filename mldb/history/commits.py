"""Commits from the newest to the oldest, each with its events: what ``db.commits`` yields.

The log is read from its end, a stretch at a time, so that the first ones cost the same in a log of
ten commits and of a million.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.log.batches import StoredBatch
from mldb.log.index.address import CommitRow, Lsn, to_time
from mldb.log.index.lineage import is_left, is_visible
from mldb.log.view import View

if TYPE_CHECKING:
    from mldb.history.events import Event

_FEW: Final = 16
_MANY: Final = 512
_SPAN_FIRST: Final = 1 << 10  # LSNs


@dataclass(frozen=True, slots=True)
class CommitEntry:
    """One commit: what it says of itself, and the events that are left of it.

    ``is_abandoned``: a rewind left it behind; ``is_pruned``: retention did not leave it.
    """

    lsn: Lsn
    parent: Lsn
    epoch: int
    time: datetime
    is_abandoned: bool
    is_pruned: bool
    events: tuple[Event, ...]


Reading = Callable[[View, int, int], Iterator[StoredBatch]]


def commits_of_view(
    view: View,
    read: Reading,
    *,
    epochs: tuple[int | None, int | None] = (None, None),
    since: datetime | None = None,
) -> Iterator[CommitEntry]:
    """Yield the commits of every lineage, newest first; *read* yields the batches of a range.

    *epochs* are the first and the last one wanted, None for any; *since* is a time with its zone.
    Raises InvalidTypeError, InvalidValueError, CorruptError.
    """
    low, high = epochs
    if low is not None and high is not None and low > high:
        raise InvalidValueError(f"epochs {low}..{high} are none: the first is above the last")
    if since is not None and (not isinstance(since, datetime) or since.tzinfo is None):
        raise InvalidTypeError("since is no datetime with a zone")
    return _read(view, read, _Wanted(view, low, high, since))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which commits are wanted, by what their row says alone. Pure."""

    view: View
    low: int | None
    high: int | None
    since: datetime | None

    def takes(self, row: CommitRow) -> bool:
        """Whether a commit is wanted."""
        return not (
            (self.low is not None and row.epoch < self.low)
            or (self.high is not None and row.epoch > self.high)
            or (self.since is not None and to_time(row.time) < self.since)
        )

    def ends(self, row: CommitRow) -> bool:
        """Whether no older commit can be wanted.

        Along one lineage neither times nor epochs go back; of commits that were left behind by a
        rewind the epochs may be higher, and not the times.
        """
        if not is_visible(row.lsn, self.view.intervals):
            return False
        if self.since is not None and to_time(row.time) < self.since:
            return True
        return self.low is not None and row.epoch < self.low and not self.view.jumps


def _read(view: View, read: Reading, wanted: _Wanted) -> Iterator[CommitEntry]:
    from mldb.history.events import events_of

    size = _FEW  # the first ones at once, whoever wants them all pays for few questions
    for rows in _stretches(view, wanted):
        for at in range(0, len(rows), size):
            some = rows[at : at + size]
            # All in between are read: what is wanted of a log lies together.
            batches = {each.row.lsn: each for each in read(view, some[-1].lsn, some[0].lsn)}
            for row in some:
                batch = batches[row.lsn]
                events = tuple(events_of(row, batch.frames, batch.file))
                yield CommitEntry(
                    Lsn(row.lsn),
                    Lsn(row.parent),
                    row.epoch,
                    to_time(row.time),
                    not is_visible(row.lsn, view.intervals),
                    not is_left(row.lsn, view.kept),
                    events,
                )
        size = _MANY


def _stretches(view: View, wanted: _Wanted) -> Iterator[list[CommitRow]]:
    """Yield the wanted commits, newest first, some at a time."""
    high, span = view.commit.lsn, _SPAN_FIRST
    while high > 0:
        low = max(high - span + 1, 1)
        rows = [row for _, row in view.commits(low, high)]
        rows.reverse()
        for at, row in enumerate(rows):
            if wanted.ends(row):
                yield [row for row in rows[:at] if wanted.takes(row)]
                return
        if found := [row for row in rows if wanted.takes(row)]:
            yield found
        # LSNs jump by millions after a crash; then there is nothing in between to be read.
        span = span * 4 if len(rows) < _MANY else _SPAN_FIRST
        high = low - 1
