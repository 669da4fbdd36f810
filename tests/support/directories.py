"""A directory that is made at every seal, in the thread that seals, also of small stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from mldb.log.directory import directory
from mldb.log.directory.maker import Maker


@contextmanager
def made_at_once(due: int = 2, fanout: int = 2) -> Iterator[list[int]]:
    """Make parts wherever a thread would be woken; yields how many were made, each time."""
    made: list[int] = []

    def wake(self: Maker) -> None:
        if not self._running:
            self._running[0] = None  # type: ignore[assignment]  # no thread, and no second call
            try:
                made.append(self.make(fanout))
            finally:
                self._running.clear()

    with mock.patch.object(directory, "DUE", due), mock.patch.object(Maker, "wake", wake):
        yield made
