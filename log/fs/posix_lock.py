"""Kernel locks on files, which end with their process: flock, on Linux and macOS."""

from __future__ import annotations

import os
import time
import weakref
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from typing import Final

from mldb.log.fs.descriptor import CLOSED, Fd, OsDescriptor
from mldb.log.fs.process import CURRENT
from mldb.log.fs.protocol import FileSystem

_TAKE: Final = LOCK_EX | LOCK_NB

# Locks are closed in a forked child, so that it cannot keep the lock of a dead parent alive.
_locks: weakref.WeakSet[OsLock] = weakref.WeakSet()


def _close_locks_in_child() -> None:
    for lock in list(_locks):
        lock.abandon()


os.register_at_fork(after_in_child=_close_locks_in_child)


class OsLock(OsDescriptor):
    """flock on its own file: the kernel frees it with the process, forked children close it."""

    __slots__ = ()

    def __init__(self, fs: FileSystem, name: str, fd: Fd) -> None:
        super().__init__(fs, name, fd)
        _locks.add(self)

    def try_acquire(self) -> bool:
        """Take the lock without waiting."""
        if self._process is not CURRENT[0]:
            raise self._forked()
        try:
            flock(self._fd, _TAKE)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._failure(error, "flock") from error
        return True

    def release(self) -> None:
        """Give the lock back; harmless on a closed one and in a forked child, which has none."""
        fd = self._fd
        if fd != CLOSED and self._process is CURRENT[0]:
            try:
                flock(fd, LOCK_UN)
            except OSError as error:
                raise self._failure(error, "flock") from error

    def close(self) -> None:
        """Release the lock now, whoever is inside a call, and close its descriptor."""
        try:
            self.release()
        finally:
            super().close()

    def abandon(self) -> None:
        """Close the copy that a fork made, without touching the lock, which is the parent's."""
        fd, self._fd = self._fd, CLOSED
        if isinstance(fd, Fd):
            fd.give_back()

    def holder(self) -> str:
        """Find the holder's pid in /proc/locks by inode; Linux only and informative only."""
        try:
            inode = str(os.fstat(self._fd).st_ino)
            with open("/proc/locks", encoding="ascii") as lines:
                for line in lines:
                    parts = line.split()
                    if "FLOCK" in parts and any(part.endswith(":" + inode) for part in parts):
                        pid = int(parts[parts.index("WRITE") + 1])
                        began = time.gmtime(os.stat(f"/proc/{pid}").st_ctime)
                        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", began)
                        return f"process {pid} on {os.uname().nodename}, started {started}"
        except (OSError, ValueError, IndexError):
            return "an unknown process"
        return "an unknown process"
