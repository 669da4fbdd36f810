"""Metrics on their way into the log: those of one call, and those that wait to be stored together.

What waits is a list that calls only append to: one step, which no signal can cut in two and for
which no lock is taken, so that a handler may log inside a commit. A *flush* stores the first calls
of the list and then takes them off. It happens in front of every other commit of the handle, on
``sync`` and ``close``, at the end of the process, and otherwise by a thread that lives while there
is something to store. Order is kept: what was logged before a commit stands before it.
"""

from __future__ import annotations

import _thread
import atexit
import os
from contextlib import nullcontext, suppress
from queue import Empty, SimpleQueue
from time import monotonic_ns
from typing import Final, TypeAlias

from mldb.errors import ClosedError, EpochOrderError, MldbError, ReentryError
from mldb.history.kinds.changes import KeyChange, records_of
from mldb.log.log import Log
from mldb.log.ownership import OwnedLock
from mldb.state import lost
from mldb.state.background import Background
from mldb.write.metric_plans import SETS_MAX, MetricPlans, MetricRows, PackedRows
from mldb.write.rules import EpochRule, check_epoch

FLUSH_SECONDS: Final = 0.5
WAITING_MAX: Final = 1 << 16
"""So many calls wait at most; the next one stores them itself."""
_LOOKED_AT: Final = 16
"""So many calls that wait are looked at first, then twice as many."""
_LATE_NS: Final = 2_000_000_000  # a thread that has not begun by then never will


Waiting: TypeAlias = tuple[int | None, PackedRows]
"""One call that waits to be stored, under this epoch or that of the head: known by its identity."""

_active: Final[dict[int, MetricLog]] = {}
"""Those with something to store, by id: what the end of the process looks at."""
_ended: Final[list[bool]] = []


def _forget_in_child() -> None:
    for log in _active.values():
        log.waiting.clear()  # the parent stores them
    _active.clear()


os.register_at_fork(after_in_child=_forget_in_child)


class MetricLog:
    """The metrics of one handle. Any thread; :meth:`add` also in a handler inside any call.

    ``waiting`` is appended to by everybody; only who holds ``_turn`` takes off its front, and
    changes ``_trying``. It keeps the log alive while there is something to store, not the handle.
    """

    def __init__(self, log: Log, epochs: EpochRule, background: Background) -> None:
        self._log = log
        self._epochs = epochs
        self._background = background
        self.plans = MetricPlans(log.head)
        self.waiting: list[Waiting] = []
        self.flushed = 0  # calls stored
        self.failed: MldbError | None = None
        """What went wrong behind somebody's back, until somebody is told."""
        self._turn = OwnedLock("the metrics that wait to be stored")
        self._trying: tuple[Waiting, int, KeyChange] | None = None
        self._appended = 0  # the newest commit of a flush that was not waited for
        self._runner: dict[int, object] = {}
        self._late = 0
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._closed = False

    def stats(self) -> dict[str, float]:
        """Return figures: calls that wait, calls stored from there, sets of names known."""
        return {
            "waiting": len(self.waiting),
            "waiting_max": WAITING_MAX,
            "flushed": self.flushed,
            "flush_seconds": FLUSH_SECONDS,
            "sets": self.plans.sets,
            "sets_max": SETS_MAX,
        }

    # --- waiting ----------------------------------------------------------------------------------

    def add(self, epoch: int | None, rows: PackedRows) -> Waiting:
        """Let the points of one call wait. Raises EpochOrderError and what storing raises."""
        if epoch is not None:
            epoch = self._checked(epoch)
        item = (epoch, rows)
        waiting = self.waiting
        if len(waiting) >= WAITING_MAX:
            with suppress(ReentryError):  # a handler inside a commit: one more may wait
                self.flush()
        waiting.append(item)
        if not self._runner:
            self._start()
        return item

    def take_back(self, item: Waiting) -> bool:
        """Take a call off that came when the handle was closed; False when it was stored.

        Waits for a flush that may be storing it, unless this thread is inside that one: what it
        stores was taken before.
        """
        with self._turn.hold_unless_inside() or nullcontext():
            place = self._place_behind(item)
            if place:
                del self.waiting[place - 1]
        return place > 0

    def _checked(self, epoch: int) -> int:
        found = check_epoch(epoch)
        assert found is not None
        self._epochs.check(self._log.state.view, found)
        before = self.waiting[-1:]
        if before and found < (before[0][0] or 0):
            raise EpochOrderError(
                f"epoch {found} is lower than epoch {before[0][0]}, under which this handle has "
                "logged metrics that wait to be stored. Nothing was logged."
            )
        return found

    def raise_failed(self) -> None:
        """Raise what went wrong while nobody waited, once."""
        failed, self.failed = self.failed, None
        if failed is not None:
            raise failed

    # --- storing ----------------------------------------------------------------------------------

    def flush(self, until: Waiting | None = None, *, durable: bool = True) -> None:
        """Store what waits, up to *until* where it is given, in order.

        Without *durable* the disk is not waited for. Does nothing inside another flush of this
        thread. Raises what a commit raises; then the rest waits on. Points whose epoch others have
        passed meanwhile can never be stored: EpochOrderError says how many were dropped.
        """
        guard = self._turn.hold_unless_inside()
        if guard is None:
            return
        with guard:
            self._finish_trying()
            # No more than there is now: who logs meanwhile must not keep this call for ever.
            left = len(self.waiting) if until is None else self._place_behind(until)
            while (batch := self._next(left, is_free=until is not None)) is not None:
                self._store(*batch, durable=durable)
                left -= len(batch[0])
            if not self.waiting and not isinstance(self.failed, EpochOrderError):
                self.failed = None  # all of it is stored after all

    def flush_before(self, until: Waiting | None = None) -> None:
        """Store what waits, in front of another commit, whose sync makes it durable.

        What goes wrong is raised by the next call that logs; what waits is kept.
        """
        try:
            self.flush(until, durable=False)
        except ReentryError:
            return  # the commit will raise it
        except MldbError as error:
            self._note(error)

    def _note(self, error: MldbError) -> None:
        before = self.failed
        if isinstance(before, EpochOrderError):  # points were dropped: that must be told
            before.add_note(f"Later: {error}")
        else:
            self.failed = error

    def _place_behind(self, until: Waiting) -> int:
        """How many calls wait up to *until*, it included; 0 when it is stored."""
        return next((place for place, item in enumerate(self.waiting, 1) if item is until), 0)

    def _next(self, left: int, *, is_free: bool) -> tuple[list[Waiting], MetricRows] | None:
        """Return the next calls, of *left*, that one commit can hold; None when none is to be.

        *is_free*: checkpoints on their way are behind all of it. What is looked at grows with what
        fits: where each call has an epoch of its own, each is a commit, and the list is long.
        """
        epoch = self.waiting[0][0] if left and self.waiting else None
        if not (left and self.waiting) or not (is_free or self._may_store(epoch)):
            return None
        rows, taken = MetricRows(), list[Waiting]()
        while block := self.waiting[len(taken) : min(left, 2 * len(taken) + _LOOKED_AT)]:
            for item in block:
                if item[0] != epoch or not rows.add(item[1]):
                    return taken, rows
                taken.append(item)
        return taken, rows

    def _may_store(self, epoch: int | None) -> bool:
        """Whether no checkpoint on its way, of a lower epoch, has to be stored first."""
        if epoch is None or not self._background.is_writing():
            return True
        return epoch <= self._log.state.view.commit.epoch

    def _store(self, items: list[Waiting], rows: MetricRows, *, durable: bool) -> None:
        changes, epoch = rows.changes(), items[0][0]
        decide = self._epochs.join if epoch is None else self._epochs.choice(epoch)
        self._trying = items[0], len(items), changes[0]
        sequencer = self._log.sequencer
        try:
            if durable:
                row = sequencer.commit(records_of(changes), decide)
            else:
                row = sequencer.append(records_of(changes), decide)[0]
                self._appended = row.lsn
        except EpochOrderError as error:
            self._take_off(items[0], len(items))
            raise EpochOrderError(f"{_counted(len(items))} not stored: {error}") from error
        self._take_off(items[0], len(items))
        self.flushed += len(items)

    def _take_off(self, first: Waiting, count: int) -> None:
        """Take calls off the front, unless that was done: Ctrl-C may come between any two steps."""
        if self.waiting and self.waiting[0] is first:
            del self.waiting[:count]
        self._trying = None

    def _finish_trying(self) -> None:
        """After a flush that Ctrl-C ended: take off what it stored, and nothing else.

        PackedRows hold the time in nanoseconds, so the same bytes are the same points.
        """
        if self._trying is None:
            return
        first, count, (_, key, attr) = self._trying
        if any(entry.attr == attr for entry in self._log.head().versions(key)):
            self._take_off(first, count)
        self._trying = None

    # --- behind -----------------------------------------------------------------------------------

    def _start(self) -> None:
        """See that somebody stores what waits. Takes no lock: a handler may have called."""
        now = monotonic_ns()
        if now < self._late:
            return  # a thread was started just now
        self._late = now + _LATE_NS
        _active[id(self)] = self
        if not _ended:
            with suppress(RuntimeError):  # the machine has no thread left
                _thread.start_new_thread(self._run, ())
                return
        self._late = 0
        self.flush_before()

    def _run(self) -> None:
        me = object()
        if self._runner.setdefault(0, me) is not me:
            return  # another one was started at the same moment
        try:
            while not self._closed:
                with suppress(Empty):
                    self._wake.get(timeout=FLUSH_SECONDS)
                if self._closed or not self._flush_behind():
                    break
        finally:
            _active.pop(id(self), None)
            self._runner.clear()
            self._late = 0
            if self.waiting and not self._closed:  # somebody logged when this ended
                self._start()

    def _flush_behind(self) -> bool:
        """Store what waits; False when there is nothing to come back for."""
        if not self.waiting and self._appended <= self._durable():
            return False
        try:
            self.flush()
            if self._appended > self._durable():
                self._log.sync()
        except MldbError as error:
            self._note(error)
            return not isinstance(error, ClosedError)
        return True

    def _durable(self) -> int:
        """Up to which commit the disk has all; everything where nobody asked for that."""
        if self._log.options.durability != "commit":
            return self._appended
        return self._log.sequencer.syncing.durable_lsn

    # --- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Store what waits, before the log is closed. Raises what storing raises, with a count."""
        self._closed = True
        self._wake.put(None)
        _active.pop(id(self), None)
        try:
            self.flush()
        except MldbError as error:
            left = len(self.waiting)
            self.waiting.clear()
            if left:
                error.add_note(f"{_counted(left)} not stored.")
            raise
        self.raise_failed()

    def finish(self) -> None:
        """Store what waits at the end of the process; what cannot be is told by ``lost``."""
        try:
            self.flush()
            self.raise_failed()
        except MldbError as error:
            text = f"{_counted(len(self.waiting))} not stored in {self._log.fs.root}: {error}"
            lost.note(next(lost.numbers), text)
            self.waiting.clear()


def _counted(calls: int) -> str:
    return f"{calls} buffered call{'s' * (calls != 1)} of db.log {'was' if calls == 1 else 'were'}"


def finish_metrics() -> None:
    """Store what waits in all handles of this process, for who is about to end it."""
    for log in list(_active.values()):
        log.finish()


def _end() -> None:
    _ended.append(True)  # from here on what is logged is stored at once
    finish_metrics()


atexit.register(_end)
