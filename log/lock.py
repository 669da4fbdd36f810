"""The commit lock: one writer at a time over all threads and processes.

A process's mutex, then a kernel lock on a file, which a dead process never holds. flock alone is
not fair: a tight loop of commits starved a waiter for seconds. So who has to wait does so holding a
second lock, the *gate*, and every writer passes the gate once in a few commits: a waiter waits for
a handful of commits at most.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

from mldb.errors import LockedError
from mldb.log.fs.protocol import FileSystem, KernelLock

GATE = "GATE"
LOCK = "LOCK"
_POLL_SECONDS_MAX = 0.002
_GATE_EVERY = 8


class CommitLock:
    """The lock as a reusable context manager. Any thread; not reentrant.

    Entering raises LockedError after ``timeout`` seconds. The files are opened when first needed;
    ``_mutex`` guards them and ``_turn``.
    """

    __slots__ = ("_commit", "_fs", "_gate", "_mutex", "_turn", "timeout")

    def __init__(self, fs: FileSystem, timeout: float) -> None:
        self.timeout = timeout
        self._fs = fs
        self._mutex: Any = threading.RLock()  # _is_owned is what threading.Condition asks it too
        self._gate: KernelLock | None = None
        self._commit: KernelLock | None = None
        self._turn = 0

    def __enter__(self) -> None:
        mutex = self._mutex
        self.recover()
        try:
            if not mutex.acquire(timeout=self.timeout):
                raise LockedError(
                    f"another thread of this process held the commit lock of {self._fs.root} for "
                    f"{self.timeout} s. Nothing was stored; try again or raise lock_timeout."
                )
            self._turn += 1
            commit = self._commit or self._open()
            if self._turn % _GATE_EVERY == 0 or not commit.try_acquire():
                self._pass_gate(commit)
        except BaseException:
            self.recover()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._let_go()

    def recover(self) -> None:
        """Give back what a Ctrl-C right before ``__exit__`` left with this thread; usually nothing.

        Whoever commits calls it when its ``with`` block ends with an exception; entering does too.
        """
        if self._mutex._is_owned():
            self._let_go()

    def _let_go(self) -> None:
        """Give both locks back.

        Ctrl-C may come between any two steps of Python, so behind the call that took the mutex,
        too: whether this thread holds it is asked of the mutex itself.
        """
        try:
            if self._commit is not None:
                self._commit.release()
        finally:
            self._mutex.release()

    def _open(self) -> KernelLock:
        self._commit = self._fs.lock(LOCK)
        return self._commit

    def _pass_gate(self, commit: KernelLock) -> None:
        """Queue at the gate, and take the commit lock while standing in it."""
        gate = self._gate
        if gate is None:
            gate = self._gate = self._fs.lock(GATE)
        try:
            if not gate.try_acquire():
                self._wait(gate)
            if not commit.try_acquire():
                self._wait(commit)
        finally:
            gate.release()

    def _wait(self, lock: KernelLock) -> None:
        deadline = time.monotonic() + self.timeout
        pause = 0.00005
        while not lock.try_acquire():
            if time.monotonic() > deadline:
                raise LockedError(
                    f"{lock.holder()} has held the commit lock of {self._fs.root} for more than "
                    f"{self.timeout} s. Nothing was stored; try again, raise lock_timeout, or end "
                    "that process (the lock ends with it)."
                )
            time.sleep(pause)
            pause = min(pause * 2, _POLL_SECONDS_MAX)

    def make_file(self) -> None:
        """Make the lock file where a copy of the store lost it."""
        with self._mutex:
            if self._commit is None:
                self._open()

    def close(self) -> None:
        """Close both lock files. Waits for a commit in progress."""
        with self._mutex:
            for lock in (self._gate, self._commit):
                if lock is not None:
                    lock.close()
            self._gate = self._commit = None
