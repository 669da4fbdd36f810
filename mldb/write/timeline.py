"""Moving through time: snapshots, events, tags, pins and rewinding."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from mldb.errors import InvalidTypeError, InvalidValueError, MissingError
from mldb.history.as_of import AsOf, resolve
from mldb.history.kinds.changes import KeyChange, records_of
from mldb.log.index.address import EMPTY_COMMIT, CommitRow, Lsn
from mldb.log.readers import Hold
from mldb.log.view import View
from mldb.names import check_name
from mldb.query.surface import Snapshot
from mldb.write.handle import Handle

if TYPE_CHECKING:
    from mldb.history.commits import CommitEntry
    from mldb.history.events import Event


class TimelineVerbs(Handle):
    """What names, visits and moves the head along the history. Any thread."""

    @overload
    def at(self, as_of: AsOf = None) -> Snapshot: ...
    @overload
    def at(self, *, epoch: int) -> Snapshot: ...
    @overload
    def at(self, *, lsn: int) -> Snapshot: ...
    @overload
    def at(self, *, time: datetime) -> Snapshot: ...
    @overload
    def at(self, *, tag: str) -> Snapshot: ...

    def at(
        self,
        as_of: AsOf = None,
        *,
        epoch: int | None = None,
        lsn: int | None = None,
        time: datetime | None = None,
        tag: str | None = None,
    ) -> Snapshot:
        """Return the snapshot at *as_of*, or at exactly one of epoch, lsn, time or tag.

        It is a context manager: until it is closed, compaction keeps what it reads. Raises
        MissingError, VersionGoneError, InvalidTypeError, InvalidValueError.
        """
        number = _checked("lsn", lsn, int)
        points: tuple[AsOf, ...] = (
            as_of,
            _checked("epoch", epoch, int),
            None if number is None else Lsn(number),
            _checked("time", time, datetime),
            _checked("tag", tag, str),
        )
        asked = [point for point in points if point is not None]
        if len(asked) > 1:
            raise InvalidValueError("at() takes one of as_of, epoch, lsn, time, tag")
        scope = self._scope(asked[0] if asked else None)
        scope.source.reads.tell_if_due()  # a handle that only reads makes no commits that do
        return Snapshot(scope, self._guard, self._queries)

    def tags(self) -> dict[str, Lsn]:
        """Return the tags and the commits that they name.

        Cost: O(tags).
        """
        from mldb.history import tags

        return tags.tags(self._scope().view)

    def pins(self) -> list[Lsn]:
        """Return the pinned commits, ascending.

        Cost: O(pins).
        """
        from mldb.history import tags

        return tags.pins(self._scope().view)

    def events(self, start: AsOf = None, stop: AsOf = None) -> Iterator[Event]:
        """Yield the events from commit *start* to commit *stop*, both included, in log order.

        They are those of every lineage; ``Rewound`` events say where the lineage jumps. Of a commit
        that retention pruned they are those whose versions others still need. The range is fixed at
        the call. Raises CorruptError, VersionGoneError when *start* or *stop* was pruned.

        Cost: O(events told).
        """
        scope = self._scope()
        low = 1 if start is None else resolve(scope.view, scope.intervals, start).lsn
        high = scope.commit.lsn if stop is None else resolve(scope.view, scope.intervals, stop).lsn
        return self._events(max(low, 1), high)

    def _events(self, low: int, high: int) -> Iterator[Event]:
        hold, view = self._log.hold(low)  # what it has still to tell stays readable
        return self._told(hold, view, low, high)

    def _told(self, hold: Hold, view: View, low: int, high: int) -> Iterator[Event]:
        from mldb.history.events import events_of  # a training loop that only saves never needs it

        try:
            for row, frames, file in self._log.batches(view, low, high):
                yield from events_of(row, frames, file)
        finally:
            hold.release()

    def commits(
        self,
        *,
        epochs: tuple[int | None, int | None] = (None, None),
        since: datetime | None = None,
    ) -> Iterator[CommitEntry]:
        """Yield the commits of every lineage with their events, from the newest to the oldest.

        *epochs* are the first and the last wanted, None for any; *since* is a time with its zone.
        The log is read from its end: the first ones cost the same however long it is. The head is
        fixed at the call. Raises InvalidTypeError, InvalidValueError at the call, CorruptError.

        Cost: O(events told), from the end of the log.
        """
        from mldb.history.commits import commits_of_view

        self._guard()
        hold, view = self._log.hold(1)
        found = commits_of_view(view, self._log.batches, epochs=epochs, since=since)
        return _while_held(hold, found)

    def follow(
        self, start: AsOf = None, *, poll: float = 0.2, timeout: float | None = None
    ) -> Iterator[Event]:
        """Yield events as they are committed, by this process or another, each once, in log order.

        They are those after commit *start*, or from this call on, of every lineage. Looks every
        *poll* seconds and sleeps in between; ends when *timeout* seconds pass without any (None:
        never), and when the store is closed, by whichever thread. Works with ``mode="r"``. Until it
        has told a commit, retention leaves it. Raises MissingError, VersionGoneError,
        InvalidValueError at the call, CorruptError later. One thread for each iterator.

        Cost: O(events told); a look without any costs a few calls of the system.
        """
        from mldb.history.follow import Follower

        self._guard()
        return Follower(
            self._log, start, self._guard, lambda: self._closed, poll=poll, timeout=timeout
        ).told()

    def tag(self, name: str, as_of: AsOf = None) -> Lsn:
        """Name a commit (the head by default) and return its LSN; an existing tag moves."""
        from mldb.history.kinds.timeline import tag_set

        key = check_name(name)
        target = self._existing(as_of)
        self._change(tag_set(key, target))
        return target

    def untag(self, name: str) -> None:
        """Remove a tag. Raises MissingError.

        Cost: O(tags).
        """
        from mldb.history.kinds.timeline import tag_deleted

        key = check_name(name)
        if name not in self.tags():
            raise MissingError(
                f"there is no tag {name[:80]!r}; db.tags() lists them. Nothing was stored."
            )
        self._change(tag_deleted(key))

    def pin(self, as_of: AsOf) -> Lsn:
        """Keep a commit readable whatever retention says; return its LSN."""
        from mldb.history.kinds.timeline import pin_set

        target = self._existing(as_of)
        self._change(pin_set(target))
        return target

    def unpin(self, as_of: AsOf) -> None:
        """Take a pin back. Raises MissingError.

        Cost: O(pins).
        """
        from mldb.history.kinds.timeline import pin_cleared

        target = self._existing(as_of)
        if target not in self.pins():
            raise MissingError(
                f"commit {target} is not pinned; db.pins() lists the pins. Nothing was stored."
            )
        self._change(pin_cleared(target))

    def _existing(self, as_of: AsOf) -> Lsn:
        row = self._scope(as_of).commit
        if row == EMPTY_COMMIT:
            raise MissingError("there is no commit yet at that point; store something first")
        return Lsn(row.lsn)

    def _change(self, change: KeyChange) -> CommitRow:
        self._settle_background()
        return self._commit(records_of([change]), None)

    def rewind(self, as_of: AsOf) -> Lsn:
        """Make the state at *as_of* the head state and return the LSN of the rewind.

        Later commits build on it. Nothing is lost: the commits that are left behind stay readable
        by LSN, and tags, pins and retention are not rewound. The head's epoch becomes that of
        *as_of*. Raises MissingError, VersionGoneError.
        """
        from mldb.history.kinds.timeline import rewound

        self._guard()
        self._settle_background()
        self._metrics.flush_before()
        rule = self._epochs

        def decide(view: View) -> tuple[int, CommitRow]:
            target = resolve(view, view.intervals, as_of)
            record.extra = rewound(target.lsn).extra
            rule.highest = target.epoch
            return target.epoch, target

        record = rewound(0)
        return Lsn(self._log.commit([record], decide).lsn)


def _while_held(hold: Hold, found: Iterator[CommitEntry]) -> Iterator[CommitEntry]:
    try:
        yield from found
    finally:
        hold.release()


def _checked(option: str, value: object, kind: type) -> Any:
    """Return what was given for *option* of ``at``, or None. Raises InvalidTypeError."""
    if isinstance(value, np.integer):
        value = int(value)
    # A bool is an int, and so is an Lsn, which as an epoch would mean something else.
    other = isinstance(value, bool) or (option == "epoch" and isinstance(value, Lsn))
    if value is not None and (other or not isinstance(value, kind)):
        raise InvalidTypeError(f"{option} is a {type(value).__name__}; give {kind.__name__}")
    return value
