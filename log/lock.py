"""The commit lock: one writer at a time over all threads and processes.

A process's mutex, then a kernel lock on a file, which a dead process never holds. flock alone is not
fair: a tight loop of commits starved a waiter for seconds. So who has to wait does so holding a
second lock, the *gate*, and every writer passes the gate once in a few commits: a waiter waits for
a handful of commits at most.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from mldb.errors import LockedError
from mldb.log.fs import FileSystem, KernelLock

GATE = "GATE"
LOCK = "LOCK"
_POLL_SECONDS_MAX = 0.002
_GATE_EVERY = 8


class CommitLock:
    """A reusable context manager. Any thread; not reentrant."""

    __slots__ = ("_commit", "_gate", "_mutex", "_root", "_turn", "timeout")

    def __init__(self, fs: FileSystem, timeout: float) -> None:
        self.timeout = timeout
        self._root = fs.root
        self._mutex = threading.Lock()
        self._gate = fs.lock(GATE)
        self._commit = fs.lock(LOCK)
        self._turn = 0  # guarded by _mutex

    def __enter__(self) -> None:
        if not self._mutex.acquire(timeout=self.timeout):
            raise LockedError(
                f"another thread of this process held the commit lock of {self._root} for "
                f"{self.timeout} s. Nothing was stored; try again or raise lock_timeout."
            )
        try:
            self._turn += 1
            if self._turn % _GATE_EVERY == 0 or not self._commit.try_acquire():
                self._pass_gate()
        except BaseException:
            self._mutex.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._commit.release()
        finally:
            self._mutex.release()

    def _pass_gate(self) -> None:
        """Queue at the gate, and take the commit lock while standing in it."""
        if not self._gate.try_acquire():
            self._wait(self._gate)
        try:
            if not self._commit.try_acquire():
                self._wait(self._commit)
        finally:
            self._gate.release()

    def _wait(self, lock: KernelLock) -> None:
        deadline = time.monotonic() + self.timeout
        pause = 0.00005
        while not lock.try_acquire():
            if time.monotonic() > deadline:
                raise LockedError(
                    f"{lock.holder()} has held the commit lock of {self._root} for more than "
                    f"{self.timeout} s. Nothing was stored; try again, raise lock_timeout, or end "
                    "that process (the lock ends with it)."
                )
            time.sleep(pause)
            pause = min(pause * 2, _POLL_SECONDS_MAX)

    def close(self) -> None:
        """Close both lock files. Waits for a commit in progress."""
        with self._mutex:
            self._gate.close()
            self._commit.close()
