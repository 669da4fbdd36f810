"""A file system that counts what is written and can end the process in the middle of a write."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from typing import Final

from mldb.log.fs.descriptor import Fd
from mldb.log.fs.gather import byte_count
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.posix_file import OsFile
from mldb.log.fs.protocol import Buffer, OpenMode

_LOG_FILES: Final = ".seg"


class MeteredFileSystem(OsFileSystem):
    """A folder that counts what is written to its log, in ``written``. Thread-safe.

    Hints are no part of a save: the index of the log is saved as one whenever that has grown so
    far, between any two commits.

    After ``die_after(n)`` the n-th byte is the last one: SIGKILL follows it, without a chance to
    clean up, as when the system kills a process for its memory.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.written = 0
        self._last: int | None = None
        self._lock = threading.Lock()

    def die_after(self, count: int) -> None:
        """Let *count* more bytes (at least 1) reach the files, then die."""
        with self._lock:
            self._last = self.written + count

    def open(self, name: str, mode: OpenMode) -> OsFile:
        """Open a file; one of the log counts."""
        file = super().open(name, mode)
        return _MeteredFile(self, file) if name.endswith(_LOG_FILES) else file

    def admit(self, file: OsFile, buffers: Sequence[Buffer], offset: int) -> None:
        """Count a write before it happens; if it is the last, write a part of it and die."""
        count = byte_count(buffers)
        with self._lock:
            if self._last is not None and self.written + count >= self._last:
                part = b"".join(buffers)[: self._last - self.written]
                OsFile.pwritev(file, [part], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            self.written += count


class _MeteredFile(OsFile):
    """A file that reports its writes."""

    __slots__ = ("_meter",)

    def __init__(self, meter: MeteredFileSystem, file: OsFile) -> None:
        super().__init__(meter, file.name, Fd(os.dup(file._fd)))
        self._meter = meter
        file.close()

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Write all buffers, unless the process ends here."""
        self._meter.admit(self, buffers, offset)
        return super().pwritev(buffers, offset)
