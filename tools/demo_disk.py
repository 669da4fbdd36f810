"""A file system that counts what is written and can end the process in the middle of a write."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence

from mldb.log.fs import Buffer, File, OpenMode
from mldb.log.gather import groups
from mldb.log.os_fs import OsFile, OsFileSystem


class MeteredFileSystem(OsFileSystem):
    """A folder whose files count written bytes. Thread-safe.

    ``die_after(n)`` lets the n-th byte from then on be the last: SIGKILL follows it, with no chance
    to clean up, as a machine that kills a process for memory does.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.written = 0
        self._last: int | None = None
        self._lock = threading.Lock()

    def die_after(self, count: int) -> None:
        """Write *count* more bytes and be killed."""
        self._last = self.written + count

    def open(self, name: str, mode: OpenMode) -> OsFile:
        """Open a file that counts."""
        file = super().open(name, mode)
        return _MeteredFile(self, file)

    def write(self, file: File, buffers: Sequence[Buffer], offset: int) -> int:
        """Write, and be killed when the last byte is among them."""
        with self._lock:
            count = sum(memoryview(buffer).nbytes for buffer in buffers)
            if self._last is not None and self.written + count >= self._last:
                room = self._last - self.written
                file.pwritev(next(iter(groups(buffers, room)), []), offset)
                os.kill(os.getpid(), signal.SIGKILL)
            self.written += count
            return file.pwritev(buffers, offset)
