"""Make batches in a second thread, a few ahead of who asks for them."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from types import GeneratorType
from typing import Any, Final, Generic, TypeVar

from mldb.lake.stream.pace import Pace

_T = TypeVar("_T")
_END: Final = object()
_FINALIZER_SECONDS: Final = 1.0
"""How long a finalizer waits for the thread, which may want a lock that its own thread holds."""


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class Ahead(Generic[_T]):
    """An iterator over *batches*, which a thread makes, up to *depth* ahead. One thread asks.

    An error is raised where its batch would have come, and ends it. ``close``, or dropping the
    iterator, ends the thread after the batch it is at; all that a batch needs is taken and let go
    in that thread, where no Ctrl-C comes. The thread has no reference to this object, and does
    nothing before it is asked: whatever moment Ctrl-C ends a call at, none works for nobody.

    With *first_here* who asks makes the first batch, and the thread begins behind it: waiting for
    another thread takes longer than reading a batch. Ctrl-C may then come in the middle of it. With
    a *pace* as well, who asks makes those behind it too, until the pace says that a thread is worth
    it. It decides who makes a batch, and never what is in it.
    """

    def __init__(
        self,
        batches: Iterable[_T],
        depth: int,
        *,
        first_here: bool = False,
        pace: Pace | None = None,
    ) -> None:
        self._first_here = first_here
        self._pace = pace
        # Whoever takes them out closes them: the thread when it begins, or who ends it before.
        self._given: list[Iterator[_T]] = [iter(batches)]
        self._ready: SimpleQueue[Any] = SimpleQueue()
        self._room: SimpleQueue[bool] = SimpleQueue()  # one item for every batch that may be made
        # Not empty: no more; without the lock of an event, for finalizers.
        self._stop: list[bool] = []
        self._room_at_start = depth
        self._has_begun = False  # the thread runs, if all went well
        self._pid = os.getpid()
        self._thread = threading.Thread(
            target=_work,
            args=(self._given, self._room, self._ready, self._stop),
            name="mldb-stream",
            daemon=True,
        )

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        if self._stop:
            raise StopIteration
        try:
            if self._has_begun:
                # The consumer is done with the step before: its batch may be filled again.
                self._room.put(True)
                item = self._ready.get()
            elif self._first_here:
                pace, given = self._pace, self._given[:1]
                if pace is not None:
                    pace.asked()
                item = next(given[0], _END) if given else _END
                if item is not _END and (pace is None or pace.made()):
                    self._thread.start()
                    self._make_room()
            else:
                item = self._first_of_thread()
        except BaseException:
            self.close()
            raise
        if item is _END:
            self.close()
            raise StopIteration
        if isinstance(item, _Failure):
            self.close()
            try:
                raise item.error
            finally:
                del item  # it would hold the traceback that holds it
        return item  # type: ignore[no-any-return]

    def _first_of_thread(self) -> Any:
        """The first batch, where the thread makes that as well."""
        # The first alone: making more would compete with handing it over. Asked for before the
        # thread starts, which would else wait once more; an end that comes first is seen first.
        self._room.put(True)
        self._thread.start()
        item = self._ready.get()
        self._make_room()
        return item

    def _make_room(self) -> None:
        """Let the thread, which runs, make the batches that follow."""
        self._has_begun = True
        for _ in range(self._room_at_start - 1):
            self._room.put(True)

    def close(self) -> None:
        """End the thread and wait for it. Again does nothing more. Any thread.

        A second Ctrl-C ends the waiting; the thread was told by then.
        """
        self._end(None)

    def _end(self, seconds: float | None) -> None:
        self._stop.append(True)
        self._room.put(True)
        if self._pid != os.getpid() or self._thread is threading.current_thread():
            return  # it stayed in the parent, or is the one in which the collector runs
        with suppress(IndexError):
            _close(self._given.pop())  # it was not started
        with suppress(RuntimeError):
            self._thread.join(seconds)

    def __del__(self) -> None:
        with suppress(AttributeError):  # Ctrl-C came before there was anything to end
            self._end(_FINALIZER_SECONDS)


def prefetch(
    batches: Iterable[_T], depth: int, *, first_here: bool = False, pace: Pace | None = None
) -> Ahead[_T] | Generator[_T]:
    """Yield *batches* in order, made by a thread up to *depth* ahead; 0 makes them in the caller's.

    With *first_here* the caller's makes the first one, and with a *pace* those behind it until that
    says otherwise. The iterator has a method ``close``; see :class:`Ahead`.
    """
    if depth > 0:
        return Ahead(batches, depth, first_here=first_here, pace=pace)
    return batches if isinstance(batches, GeneratorType) else _as_generator(batches)


def _as_generator(batches: Iterable[_T]) -> Generator[_T]:
    yield from batches


def _work(
    given: list[Iterator[Any]],
    room: SimpleQueue[bool],
    ready: SimpleQueue[Any],
    stop: list[bool],
) -> None:
    try:
        made = given.pop()
    except IndexError:
        return  # it was ended before it began
    try:
        while True:
            room.get()
            if stop:
                break
            ready.put(next(made, _END))
    except BaseException as error:  # noqa: BLE001 - raised again by who waits for the batch
        ready.put(_Failure(error))
    finally:
        _close(made)


def _close(made: Iterator[Any]) -> None:
    """Let go what a generator holds; where another thread is in it, when that one is done."""
    close = getattr(made, "close", None)
    if close is not None and not getattr(made, "gi_running", False):
        close()
