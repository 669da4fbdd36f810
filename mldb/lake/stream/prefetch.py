"""Make batches in a second thread, a few ahead of who asks for them."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_END: Final = object()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def prefetch(batches: Iterable[_T], depth: int) -> Generator[_T]:
    """Yield *batches* in order; a thread makes them, up to *depth* ahead.

    An error is raised where its batch would have come. Closing the iterator, or dropping it, ends
    the thread after the batch it is at. With depth 0 there is no thread.
    """
    if depth <= 0:
        yield from batches
        return
    ready: SimpleQueue[Any] = SimpleQueue()
    room: SimpleQueue[bool] = SimpleQueue()  # one item for every batch that may be made
    stop: list[bool] = []  # not empty: no more; without the lock of an event, for finalizers
    room.put(True)  # the first alone: making more would compete with handing it over
    more = depth - 1
    thread = threading.Thread(
        target=_work, args=(iter(batches), room, ready, stop), name="mldb-stream", daemon=True
    )
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            for _ in range(more):
                room.put(True)
            more = 0
            yield item
            # The consumer is done with the step before: its batch may be filled again.
            del item
            room.put(True)
    finally:
        stop.append(True)
        room.put(True)
        if thread is not threading.current_thread():  # the collector may run in it
            thread.join()


def _work(
    batches: Iterator[Any],
    room: SimpleQueue[bool],
    ready: SimpleQueue[Any],
    stop: list[bool],
) -> None:
    try:
        while True:
            room.get()
            if stop:
                return
            ready.put(next(batches, _END))
    except BaseException as error:  # noqa: BLE001 - raised again by who waits for the batch
        ready.put(_Failure(error))
