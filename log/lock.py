"""The commit lock: one writer at a time over all threads and processes.

A lock of the process that knows its owner, then a kernel lock on a file, which a dead process never
holds. flock alone is not fair: a tight loop of commits starved a waiter for seconds. So who has to
wait does so holding a second lock, the *gate*, and every writer passes the gate once in a few
commits: a waiter waits for a handful of commits at most.
"""

from __future__ import annotations

import time
import weakref
from sys import _getframe
from threading import get_ident
from typing import Final

from mldb.errors import ClosedError, LockedError
from mldb.log.fs.protocol import FileSystem, KernelLock
from mldb.log.ownership import HELD, Guard, OwnedLock

GATE: Final = "GATE"
LOCK: Final = "LOCK"
_POLL_SECONDS_MIN: Final = 0.00005
_POLL_SECONDS_MAX: Final = 0.002
_GATE_EVERY: Final = 8

# All of this process: who is to wait looks whether it waits for its own thread.
_locks: weakref.WeakSet[CommitLock] = weakref.WeakSet()


class CommitLock(OwnedLock):
    """The lock over threads and processes. Any thread; not reentrant.

    The kernel locks are opened when first needed; who holds the lock of the process owns them and
    ``_turn``.
    """

    __slots__ = ("__weakref__", "_closed", "_commit", "_fs", "_gate", "_turn", "timeout")

    def __init__(self, fs: FileSystem, timeout: float) -> None:
        super().__init__(f"the commit lock of {fs.root}")
        self.timeout = timeout
        self._fs = fs
        self._gate: KernelLock | None = None
        self._commit: KernelLock | None = None
        self._turn = 0
        self._closed = False
        _locks.add(self)

    def hold(self, timeout: float | None = None) -> Guard:
        """Take both locks for the ``with`` block of the caller, in ``timeout`` seconds in all.

        Raises ReentryError inside a commit of the same thread, LockedError when the time is over,
        ClosedError after :meth:`close`.
        """
        key = [get_ident(), id(_getframe(1)), 1]
        guard = Guard(self, key)
        began = 0.0
        if self.slot.setdefault(HELD, key) is not key:
            if self._is_inside():
                raise self.reentry()
            began = time.monotonic()
            self._queue_up(key, self.timeout)
        try:
            self._turn = turn = self._turn + 1
            commit = self._commit or self._open()
            if not turn % _GATE_EVERY or not commit.try_acquire():
                self._pass_gate(commit, (began or time.monotonic()) + self.timeout)
        except BaseException:
            guard.free()
            raise
        return guard

    def try_hold(self) -> Guard | None:
        """Take both locks if nobody has them; never wait. None when somebody does."""
        guard = Guard(self, [get_ident(), id(_getframe(1)), 1])
        if self.slot.setdefault(HELD, guard.key) is not guard.key:
            return None
        try:
            if (self._commit or self._open()).try_acquire():
                return guard
        except BaseException:
            guard.free()
            raise
        guard.free()
        return None

    def hold_in_process(self) -> Guard:
        """Keep the other threads of this process from committing; for the caller's block."""
        guard = Guard(self, [get_ident(), id(_getframe(1)), 1])
        if self.slot.setdefault(HELD, guard.key) is not guard.key:
            if self._is_inside():
                raise self.reentry()
            self._queue_up(guard.key, None)
        return guard

    def let_go(self) -> None:
        """Give the kernel lock back, which does no harm when it is not held; then the other."""
        commit = self._commit
        if commit is not None:
            commit.release()
        if self._queue:
            self._pass_on()
        else:
            self.slot.pop(HELD, None)

    def _open(self) -> KernelLock:
        if self._closed:
            raise ClosedError(f"the store {self._fs.root} was closed. Nothing was stored.")
        self._commit = self._fs.lock(LOCK)
        return self._commit

    def _pass_gate(self, commit: KernelLock, deadline: float) -> None:
        """Queue at the gate, and take the commit lock while standing in it."""
        gate = self._gate
        if gate is None:
            gate = self._gate = self._fs.lock(GATE)
        try:
            for lock in (gate, commit):
                if not lock.try_acquire():
                    self._refuse_own()
                    self._wait(lock, deadline)
        finally:
            gate.release()

    def _refuse_own(self) -> None:
        """Raise ReentryError when this thread is inside a commit of another handle of the store."""
        for other in list(_locks):
            if other is not self and other.is_inside():
                mine = self._fs.identity(LOCK)
                if mine is not None and mine == other._fs.identity(LOCK):
                    raise self.reentry()

    def _wait(self, lock: KernelLock, deadline: float) -> None:
        pause = _POLL_SECONDS_MIN
        while not lock.try_acquire():
            left = deadline - time.monotonic()
            if left <= 0:
                raise LockedError(
                    f"{lock.holder()} has held the commit lock of {self._fs.root} for more than "
                    f"{self.timeout} s. Nothing was stored; try again, raise lock_timeout, or end "
                    "that process (the lock ends with it)."
                )
            self._fs.pause(min(pause, left))
            pause = min(pause * 2, _POLL_SECONDS_MAX)

    def make_file(self) -> None:
        """Make the lock file where a copy of the store lost it."""
        guard = super().hold()
        with guard:
            if self._commit is None:
                self._open()

    def close(self) -> None:
        """Close both lock files; who comes later gets ClosedError. Waits for a commit going on."""
        guard = super().hold_unless_inside()
        self._closed = True
        commit, gate, self._commit, self._gate = self._commit, self._gate, None, None
        for lock in (gate, commit):
            if lock is not None:
                lock.close()
        if guard is not None:
            guard.free()
