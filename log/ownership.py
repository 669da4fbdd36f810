"""Locks that know their owner before they are taken, so that no thread ever waits for itself.

Python runs signal handlers and finalizers between any two steps of a thread, inside whatever that
thread is doing; and Ctrl-C may end a call between any two steps. So a lock must tell three things
apart: another thread has it (wait), an outer call of this very thread has it (never wait), and a
call of this thread that is no more had it, because Ctrl-C came in the middle of its clean-up (free
it, and go on).

Taking a lock and writing down who took it is one step here: ``dict.setdefault``, which runs no
Python. What is written down is a *key*: the thread, and the frame whose ``with`` block holds the
lock. Whether that frame is still among the callers tells the second case from the third. The
:class:`Guard` of an acquisition lives in that frame, too: when the frame goes, with its traceback,
the guard's end frees the lock for the threads that wait.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from sys import _getframe
from threading import get_ident
from types import FrameType, TracebackType
from typing import Final

from mldb.errors import LockedError, ReentryError

_LOOK_SECONDS: Final = 0.05  # a waiter looks again after this long, whatever became of its turn
HELD: Final = 0
_WANTED: Final = 2

Key = list[int]
"""Thread and frame of one acquisition, and 0 once nobody wants it; its identity is what counts."""

_FREE: Final[Key] = []

_awaited: Final[dict[int, tuple[OwnedLock, Key]]] = {}
"""By thread, the lock that it queues for and with which key: what :func:`held_by_me` follows.

Ctrl-C may leave one behind; then nobody wants its key.
"""


class Guard:
    """One acquisition: a context manager that frees the lock at its end, or when it is collected.

    It belongs to the frame that took the lock. Any thread may let it go.
    """

    __slots__ = ("_lock", "key")

    def __init__(self, lock: OwnedLock, key: Key) -> None:
        self._lock = lock
        self.key = key

    def __enter__(self) -> Guard:
        return self

    def free(self) -> None:
        """Let the lock go now; again, or when it is gone already, nothing happens."""
        lock = self._lock
        if lock.slot.get(HELD) is self.key:
            lock.let_go()
        self.key = _FREE

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The frame with the block is still there: a handler that comes now knows it is inside.
        lock = self._lock
        if lock.slot.get(HELD) is self.key:
            lock.let_go()
        self.key = _FREE

    def __del__(self) -> None:
        try:
            key = self.key
        except AttributeError:  # Ctrl-C came before there was anything to free
            return
        if key is _FREE:
            return
        key[_WANTED] = 0  # first: who passes the lock on looks at this after passing it on
        if self._lock.slot.get(HELD) is key:
            self._lock.recover(key)


class Waiter:
    """A thread in the queue of a lock. ``turn`` gets an item when the lock was passed to it."""

    __slots__ = ("key", "turn")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.turn: SimpleQueue[None] = SimpleQueue()

    def wait(self, seconds: float) -> None:
        """Wait for the turn, or until *seconds* have passed."""
        try:
            self.turn.get(timeout=seconds)
        except Empty:
            return


class OwnedLock:
    """A mutex of one process whose owner is known. Any thread; waiting threads take turns.

    ``what`` names what it guards, for messages. Not reentrant: see :meth:`hold` and
    :meth:`hold_unless_inside` for what a nested call gets.
    """

    __slots__ = ("_claims", "_queue", "slot", "what")
    slot: dict[int, Key]
    """The key of who holds the lock, at HELD. Changed by this class and its guards alone."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.slot = {}
        self._queue: deque[Waiter] = deque()
        # By id of a left-over key: the thread that frees it, and the key, so that its id stays its.
        self._claims: dict[int, tuple[int, Key]] = {}

    @property
    def holder(self) -> Key | None:
        """The key of who holds the lock now."""
        return self.slot.get(HELD)

    def hold(self, timeout: float | None = None) -> Guard:
        """Take the lock for the ``with`` block of the caller.

        Waits for other threads, at most *timeout* seconds. Raises ReentryError when an outer call
        of this thread holds it, LockedError when the time is over.
        """
        key = [get_ident(), id(_getframe(1)), 1]
        guard = Guard(self, key)  # before the lock is taken: from here on its end frees the lock
        if self.slot.setdefault(HELD, key) is not key:
            if self._is_inside():
                raise self.reentry()
            self._queue_up(key, timeout)
        return guard

    def hold_unless_inside(self) -> Guard | None:
        """Take the lock as :meth:`hold` does; None when an outer call of this thread has it."""
        key = [get_ident(), id(_getframe(1)), 1]
        guard = Guard(self, key)
        if self.slot.setdefault(HELD, key) is not key:
            if self._is_inside():
                return None
            self._queue_up(key, None)
        return guard

    def try_hold(self) -> Guard | None:
        """Take the lock if it is free; None when anybody has it. Never waits."""
        key = [get_ident(), id(_getframe(1)), 1]
        guard = Guard(self, key)
        take = self.slot.setdefault
        if take(HELD, key) is key:
            return guard
        return None if self._is_inside() or take(HELD, key) is not key else guard

    def is_inside(self) -> bool:
        """Whether an outer call of this thread holds the lock; frees what a dead one left."""
        return HELD in self.slot and self._is_inside()

    def _is_inside(self) -> bool:
        holder = self.slot.get(HELD)
        if holder is None or holder[0] != get_ident():
            return False
        target = holder[1]
        frame: FrameType | None = _getframe(1)
        while frame is not None:
            if id(frame) == target:
                return True
            frame = frame.f_back
        self.recover(holder)
        return False

    def reentry(self) -> ReentryError:
        """What a write gets that was begun inside a call of its own thread."""
        return ReentryError(
            f"this call was made inside another call of the same thread that holds {self.what}: in "
            "a signal handler, a finalizer or a callback. Waiting would never end, so nothing was "
            "stored. To save when a signal comes, use db.save_on_signal(signum, fn); elsewhere "
            "note what is to be stored and store it when the outer call has returned."
        )

    def _queue_up(self, key: Key, timeout: float | None) -> None:
        slot, queue = self.slot, self._queue
        deadline = None if timeout is None else time.monotonic() + timeout
        waiter = Waiter(key)
        try:
            queue.append(waiter)
            _awaited[key[0]] = self, key
            while slot.setdefault(HELD, key) is not key:
                left = _LOOK_SECONDS if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise LockedError(
                        f"another thread of this process held {self.what} for {timeout} s. Nothing "
                        "was stored; try again or raise lock_timeout."
                    )
                waiter.wait(min(left, _LOOK_SECONDS))
        except BaseException:
            # It may be passed on just now, and who keeps the error keeps the guard.
            key[_WANTED] = 0
            if slot.get(HELD) is key:
                self.recover(key)
            raise
        finally:
            _awaited.pop(key[0], None)
            with suppress(ValueError):  # it was its turn
                queue.remove(waiter)

    def let_go(self) -> None:
        """Free the lock, which the caller holds: for the next in the queue, or for anybody."""
        if self._queue:
            self._pass_on()
        else:
            self.slot.pop(HELD, None)

    def _pass_on(self) -> None:
        queue = self._queue
        while queue:
            try:
                waiter = queue.popleft()
            except IndexError:  # it gave up just now
                break
            key = self.slot[HELD] = waiter.key
            if key[_WANTED]:
                waiter.turn.put(None)
            else:
                self.recover(key)  # its thread was interrupted; this or its own end passes it on
            return
        self.slot.pop(HELD, None)

    def recover(self, key: Key) -> None:
        """Free what an interrupted call left; any thread, any number of times.

        From the claim on the left-over belongs to this call: a handler in the middle of it is
        inside, and if it is interrupted as well, this thread's next call goes on.
        """
        me = get_ident()
        if self._claims.setdefault(id(key), (me, key))[0] != me:
            return
        key[0], key[1] = me, id(_getframe())
        if self.slot.get(HELD) is key:
            self.let_go()
        self._claims.pop(id(key), None)


def held_by_me(thread: int) -> OwnedLock | None:
    """The lock for which *thread* waits and which an outer call of this very thread holds, or None.

    *thread* may wait for it by way of others, each for a lock of the next. Who is about to wait for
    *thread* asks this, and asks again now and then: it would wait for ever.
    """
    me, passed = get_ident(), set[int]()
    while thread not in passed:
        passed.add(thread)
        lock, key = _awaited.get(thread, (None, _FREE))
        holder = None if lock is None or not key[_WANTED] else lock.holder
        if lock is None or holder is None:
            return None
        if holder[0] == me:
            return lock if lock.is_inside() else None
        thread = holder[0]
    return None
