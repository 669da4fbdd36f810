"""Kernel locks on files, which end with their process: flock, on Linux and macOS."""

from __future__ import annotations

import os
import time
import weakref
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from typing import Final

from mldb.log.fs.descriptor import CLOSED, Descriptor
from mldb.log.fs.protocol import translate

_TAKE: Final = LOCK_EX | LOCK_NB

# Locks are closed in a forked child, so that it cannot keep the lock of a dead parent alive.
_locks: weakref.WeakSet[OsLock] = weakref.WeakSet()


def _close_locks_in_child() -> None:
    for lock in list(_locks):
        lock.close()


os.register_at_fork(after_in_child=_close_locks_in_child)


class OsLock(Descriptor):
    """flock on its own file: the kernel frees it with the process, forked children close it."""

    __slots__ = ()

    def __init__(self, root: str, name: str, fd: int) -> None:
        super().__init__(root, name, fd)
        _locks.add(self)

    def try_acquire(self) -> bool:
        """Take the lock without waiting."""
        try:
            flock(self._fd, _TAKE)
        except BlockingIOError:
            return False
        except OSError as error:
            raise translate(error, "flock", self._root, self.name) from error
        return True

    def release(self) -> None:
        """Give the lock back; harmless on a closed one."""
        if self._fd != CLOSED:
            flock(self._fd, LOCK_UN)

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
