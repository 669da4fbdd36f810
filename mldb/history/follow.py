"""Following a store: events as this and other processes commit them, each once, in log order.

Nothing wakes a reader: it looks whether the log grew, which costs two calls of the system, and
sleeps in between. What it has still to tell is registered the whole time, so that retention in
another process prunes no commit before it was told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mldb.errors import ClosedError, InvalidTypeError, InvalidValueError
from mldb.history.as_of import AsOf, resolve
from mldb.log.log import Log
from mldb.log.readers import Hold
from mldb.log.view import View

if TYPE_CHECKING:
    from mldb.history.events import Event


class Follower:
    """Where one ``db.follow()`` stands. One thread at a time; it lives as long as its iterator.

    *guard* raises ClosedError when the handle is of no use any more, *is_closed* says whether that
    is because it was closed.
    """

    def __init__(
        self,
        log: Log,
        start: AsOf,
        guard: Callable[[], None],
        is_closed: Callable[[], bool],
        *,
        poll: float,
        timeout: float | None,
    ) -> None:
        """Stand behind commit *start* of the newest head. Raises what *start* raises."""
        _check_seconds("poll", poll)
        if timeout is not None:
            _check_seconds("timeout", timeout)
        view = log.head()
        after = view.commit if start is None else resolve(view, view.intervals, start)
        self._log = log
        self._guard = guard
        self._is_closed = is_closed
        self._poll = poll
        self._timeout = timeout
        self._seen = after.lsn
        self._hold, _ = log.hold(after.lsn + 1)

    def told(self) -> Iterator[Event]:
        """Yield what is committed, until *timeout* seconds pass without any or the store is closed.

        Raises CorruptError, and ClosedError in a forked child.
        """
        from mldb.history.events import events_of  # a training loop that only saves never needs it

        last = time.monotonic()
        try:
            while True:
                view = self._newest()
                high = view.commit.lsn
                if high > self._seen:
                    for row, frames, file in self._log.batches(view, self._seen + 1, high):
                        yield from events_of(row, frames, file)
                    self._advance(high)
                    last = time.monotonic()
                    continue
                left = self._poll
                if self._timeout is not None:
                    left = min(left, last + self._timeout - time.monotonic())
                if left < 0:
                    return
                time.sleep(left)
        except ClosedError:
            if not self._is_closed():
                raise  # a forked child: it is told what to do instead
        finally:
            self._hold.release()

    def _newest(self) -> View:
        self._guard()
        return self._log.head()

    def _advance(self, high: int) -> None:
        """Stand behind commit *high*: later ones stay readable, earlier ones need not."""
        older: Hold = self._hold
        self._hold, _ = self._log.hold(high + 1)
        older.release()
        self._seen = high


def _check_seconds(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidTypeError(f"{what} is a {type(value).__name__}; give seconds")
    if not value >= 0:
        raise InvalidValueError(f"{what} is {value!r}; give seconds, 0 or more")
