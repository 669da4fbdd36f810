"""How others hold a background worker: slow it down, pause it, end it.

Who wants it to pause, or to give way, holds a kernel lock on a file of its own in ``hints/``. The
worker looks for such files between two writes; so asking costs nobody anything, and what a dead
process asked for is over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal, TypeAlias

from mldb.errors import MldbError
from mldb.log.active import HINTS
from mldb.log.fs.protocol import FileSystem, KernelLock
from mldb.log.lone import discard

Wish: TypeAlias = Literal["pause", "stop"]

WISHES: Final = "worker-"
"""How the names of their files begin; kind and a unique part follow."""
WISH_KINDS: Final[tuple[Wish, ...]] = ("pause", "stop")
_LOOK_SECONDS: Final = 0.1
_SLICE_SECONDS: Final = 0.05


class WorkerStopped(Exception):
    """The worker was asked to end, or has nobody left to work for. Internal to a worker."""


class StandingWish:
    """A wish that stands until :meth:`withdraw`, or until this process ends. Any thread, once."""

    def __init__(self, fs: FileSystem, wish: Wish) -> None:
        """Make the wish. Raises StorageIOError, StorageFullError, ReadOnlyError."""
        self._fs = fs
        self._lock: KernelLock | None = None
        while self._lock is None:
            self._name = f"{HINTS}/{WISHES}{wish}-{os.urandom(16).hex()}"
            lock = fs.lock(self._name)
            if lock.try_acquire() and fs.exists(self._name):
                self._lock = lock
            else:  # the worker looked in between and took it for that of a dead process
                lock.close()

    def withdraw(self) -> None:
        """Take it back; again, nothing happens. Never raises."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with suppress(MldbError):
                discard(self._fs, self._name)
            with suppress(MldbError):
                lock.close()


def wishes(fs: FileSystem) -> set[Wish]:
    """What living processes ask of the worker; the files of dead ones are removed."""
    found: set[Wish] = set()
    for base in fs.list(HINTS):
        kind = next((kind for kind in WISH_KINDS if base.startswith(f"{WISHES}{kind}-")), None)
        if kind is None or kind in found:
            continue
        lock = fs.lock(f"{HINTS}/{base}")
        try:
            if lock.try_acquire():
                discard(fs, f"{HINTS}/{base}")
            else:
                found.add(kind)
        finally:
            lock.close()
    return found


class Gate:
    """What a worker passes between two writes. One thread; :meth:`stop` may be called by any.

    *rate* bounds the bytes written in a second, 0 does not. *is_alone* tells whether nobody is left
    to work for. *paused* is told when a pause begins (True) and when it ends.
    """

    def __init__(
        self,
        fs: FileSystem,
        rate: int,
        is_alone: Callable[[], bool],
        paused: Callable[[bool], None],
    ) -> None:
        self._fs = fs
        self._rate = rate
        self._is_alone = is_alone
        self._paused = paused
        self._stopped = False
        self._looked = float("-inf")
        self._free_at = 0.0

    def stop(self) -> None:
        """Let the next pass end the worker."""
        self._stopped = True

    def refuse_stopped(self) -> None:
        """Raise WorkerStopped where the worker is to end."""
        if self._stopped or self._is_alone():
            raise WorkerStopped

    def __call__(self, written: int = 0) -> None:
        """Wait for as long as the *written* bytes take at the rate, and while a pause is wished.

        Raises WorkerStopped, also while it waits.
        """
        now = time.monotonic()
        if self._rate:
            self._free_at = max(self._free_at, now) + written / self._rate
        self._wait_for(lambda: time.monotonic() >= self._free_at)
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        if self._asked():
            self._paused(True)
            self._wait_for(lambda: not self._asked())
            self._paused(False)
            self._free_at = 0.0

    def _wait_for(self, is_over: Callable[[], bool]) -> None:
        while True:
            self.refuse_stopped()
            if is_over():
                return
            self._fs.pause(_SLICE_SECONDS)

    def _asked(self) -> bool:
        """Whether a pause is wished. Raises WorkerStopped."""
        self._looked = time.monotonic()
        found = wishes(self._fs)
        if "stop" in found:
            raise WorkerStopped
        return "pause" in found
