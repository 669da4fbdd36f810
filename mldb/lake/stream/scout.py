"""A thread that goes ahead of who reads a lake: page faults, the disk and checksums are its part.

It only prepares. Whatever it cannot do, who reads does, and meets the errors: a pass has the same
batches with it and without.
"""

from __future__ import annotations

import _thread
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

from mldb.errors import MldbError
from mldb.lake.order.plan import BatchRows
from mldb.lake.rows.pieces import Pieces, Reach

_PATIENCE: Final = 1.0
"""Seconds that closing waits for the piece under way. The thread touches nothing behind it."""


class Scout:
    """Prepares pieces ahead of batches. One thread makes the batches, which watches and closes.

    The thread keeps the pieces, and with them what they are read from, until it ends: with the last
    piece, with an error, with :meth:`close`, or with this object, which it has no reference to. It
    holds no lock, and is never waited for but where the disk is: see :class:`Reach`.
    """

    def __init__(self, pieces: Pieces, batch_rows: int, stride_max: int) -> None:
        """*batch_rows* are the positions of a batch.

        Where batches lie more than *stride_max* apart nothing is prepared: others read most of it.
        """
        self._pieces = pieces
        self._batch_rows = batch_rows
        self._stride_max = stride_max
        self._reach = [Reach(0, 0)]  # the newest; the thread reads it
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._done: SimpleQueue[int] = SimpleQueue()  # pieces that are prepared; the last: all
        self._stop: list[bool] = []  # not empty: no more
        self._prepared = 0
        self._has_begun = False
        self._pid = os.getpid()

    def watching(self, batches: Iterable[BatchRows]) -> Iterator[BatchRows]:
        """Pass batches on, and prepare what comes behind each."""
        before: int | None = None
        for count, batch in enumerate(batches):
            if before is None or batch.number - before <= self._stride_max:
                self._before(count, batch)
            before = batch.number
            yield batch

    def around(self, made: Iterator[Any]) -> Iterator[Any]:
        """Pass on what is made of the batches, and end with it."""
        try:
            yield from made
        finally:
            self.close()

    def _before(self, count: int, batch: BatchRows) -> None:
        """Say how far the pass has come, before a batch is made."""
        if self._stop or count < self._pieces.begins:
            return
        reach = self._pieces.reach(batch.number * self._batch_rows + len(batch.rows))
        if reach == self._reach[0]:
            return
        self._reach[0] = reach
        if not self._has_begun:
            self._begin()
        self._wake.put(True)
        if self._prepared < reach.needed:
            self._wait(reach)

    def _begin(self) -> None:
        self._has_begun = True
        given = (self._pieces, self._reach, self._wake, self._done, self._stop)
        try:
            _thread.start_new_thread(_prepare, given)
        except RuntimeError:  # who reads does without
            self._done.put(self._pieces.count)
            self._stop.append(True)

    def _wait(self, reach: Reach) -> None:
        """Wait for what the next batches need, where it comes from the disk."""
        if self._pieces.is_resident(reach.needed - 1):
            return
        while self._prepared < reach.needed:
            self._prepared = self._done.get()

    def __del__(self) -> None:
        """End the thread where Ctrl-C came to whoever would have."""
        with suppress(AttributeError):
            self._tell()

    def _tell(self) -> None:
        self._stop.append(True)
        self._wake.put(True)

    def close(self) -> None:
        """End the thread, and wait for the piece it is at. Again does nothing more."""
        self._tell()
        if not self._has_begun or self._pid != os.getpid():
            return
        with suppress(Empty):
            while self._prepared < self._pieces.count:
                self._prepared = self._done.get(timeout=_PATIENCE)


def _prepare(
    pieces: Pieces,
    reach: list[Reach],
    wake: SimpleQueue[bool],
    done: SimpleQueue[int],
    stop: list[bool],
) -> None:
    at = 0
    try:
        while at < pieces.count and not stop:
            at = max(at, reach[0].first)
            if at >= min(reach[0].stop, pieces.count):
                wake.get()
                continue
            pieces.ask(at, reach[0].stop)
            pieces.prepare(at)
            at += 1
            done.put(at)
    except (MldbError, OSError, MemoryError):
        pass  # who reads meets the same, and says so
    finally:
        done.put(pieces.count)
