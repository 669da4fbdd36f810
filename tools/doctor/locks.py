"""Who holds the locks of a store: tried without waiting, never kept, and nothing is made.

A shared lock is asked for, which whoever holds the lock of a writer does not let anyone have. It is
given back at once: a writer that comes in this very moment waits some microseconds.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from fcntl import LOCK_NB, LOCK_SH, LOCK_UN, flock
from typing import Final, Literal, TypeAlias

from mldb.compaction.status import WORKER_LOCK
from mldb.log.lock import GATE, LOCK

LOCKS: Final = {LOCK: "commits", GATE: "the queue for commits", WORKER_LOCK: "background work"}
"""The locks of a store, by what they are for."""
_LOOKS: Final = 5
_LOOK_SECONDS: Final = 0.02
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

LockState: TypeAlias = Literal["free", "held", "absent", "unknown"]


@dataclass(frozen=True, slots=True)
class LockSeen:
    """One lock: its file, relative to the store, and the pid of who holds it; 0 is not known."""

    name: str
    state: LockState
    pid: int = 0


def see_lock(root: str, name: str) -> LockSeen:
    """Look at one lock once. Raises nothing: what cannot be told is "unknown"."""
    try:
        fd = os.open(os.path.join(root, name), _FLAGS)
    except FileNotFoundError:
        return LockSeen(name, "absent")
    except (OSError, ValueError):
        return LockSeen(name, "unknown")
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return LockSeen(name, "unknown")
        try:
            flock(fd, LOCK_SH | LOCK_NB)
        except BlockingIOError:
            return LockSeen(name, "held", _holder(found.st_ino))
        except OSError:
            return LockSeen(name, "unknown")
        flock(fd, LOCK_UN)
        return LockSeen(name, "free")
    finally:
        os.close(fd)


def see_locks(root: str) -> list[LockSeen]:
    """Look at the locks of a store; one is called held when it was at each of some looks."""
    found = {name: see_lock(root, name) for name in LOCKS}
    for _ in range(_LOOKS - 1):
        held = [name for name, seen in found.items() if seen.state == "held"]
        if not held:
            break
        time.sleep(_LOOK_SECONDS)
        found |= {name: see_lock(root, name) for name in held}
    return list(found.values())


def _holder(inode: int) -> int:
    """The pid of who holds a lock on this file, where the system tells: Linux does."""
    with suppress(OSError, ValueError, IndexError), open("/proc/locks", encoding="ascii") as lines:
        for line in lines:
            parts = line.split()
            is_lock = parts[1:2] == ["FLOCK"] and parts[3] == "WRITE"
            if is_lock and parts[5].rpartition(":")[2] == str(inode):
                return max(int(parts[4]), 0)
    return 0
