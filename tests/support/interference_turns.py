"""Who runs when: one of two threads at a time, or a handler at one bytecode of its own thread.

Everything that waits for a lock of the store says so here (:func:`rehearsed`), so that the other
has its turn; nothing sleeps, and a run repeats itself.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from queue import Empty, SimpleQueue
from threading import get_ident
from types import CodeType, FrameType, SimpleNamespace
from typing import Any, ClassVar, Final
from unittest.mock import patch

from mldb.log import batch
from mldb.log import lock as log_lock
from mldb.log.ownership import Waiter
from mldb.write.metric_log import MetricLog
from tests.support.interference_operations import Copies

UNSEEN_SECONDS: Final = 5.0
"""A thread that has not come back after this long waits where nobody told the Duet."""

HANG_SECONDS: Final = 30.0
"""A run that takes longer than this hangs."""

PATIENCE: Final = 500
"""Looks at a lock after which nobody will ever free it."""

ids = random.Random()
"""Store ids, names of files: the same in every run of a schedule, so that alike disks are equal."""


def repeat(seed: str) -> None:
    """Let everything random start again from *seed*."""
    ids.seed(seed)
    batch._ids.clear()


class Stuck(BaseException):
    """Both threads wait, and nobody is left to wait for."""


class Duet:
    """A leader and a guest, of which one runs at a time. ``blind`` counts waits that nobody saw."""

    running: ClassVar[dict[int, Duet]] = {}
    """By thread."""

    def __init__(self) -> None:
        self.hung = ""
        self.blind = 0
        self.met = False
        self._leader = get_ident()
        self._to_leader: SimpleQueue[None] = SimpleQueue()
        self._to_guest: SimpleQueue[None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._guest_done = self._leader_done = self._parked = False
        self._pauses = 0

    def lead(self, act: Callable[[], None]) -> None:
        """Run the leader's part, then what is left of the guest's."""
        self.running[self._leader] = self
        former = signal.signal(signal.SIGALRM, self._too_late)
        signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
        try:
            act()
        except Stuck:
            self.hung = self.hung or "the leader waited for nobody"
        finally:
            self._leader_done = True
            self._settle()
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
            del self.running[self._leader]

    def _too_late(self, number: int, frame: FrameType | None) -> None:
        self.hung = self._stacks()
        raise Stuck

    def invite(self, act: Callable[[], None]) -> None:
        """Give the guest its turn: until it is done, or waits."""
        self.met = True
        self._thread = threading.Thread(target=self._guest, args=(act,), daemon=True)
        self._thread.start()
        self._wait_for_guest()

    def _guest(self, act: Callable[[], None]) -> None:
        self.running[get_ident()] = self
        try:
            act()
        except Stuck:
            self.hung = self.hung or "the guest"
        finally:
            del self.running[get_ident()]
            self._guest_done = True
            self._to_leader.put(None)

    def _wait_for_guest(self) -> None:
        try:
            self._to_leader.get(timeout=UNSEEN_SECONDS)
        except Empty:
            self.blind += 1

    def pause(self) -> None:
        """Called by whoever waits for a lock: the other one's turn."""
        self._pauses += 1
        if self._pauses > PATIENCE:
            self.hung = self.hung or self._stacks()
            raise Stuck
        if get_ident() == self._leader:
            if self._parked:
                self._to_guest.put(None)
                self._wait_for_guest()
            elif self.blind:
                time.sleep(0.001)
        elif self._leader_done or self.blind:
            time.sleep(0.0002)
        else:
            self._parked = True
            self._to_leader.put(None)
            self._to_guest.get()
            self._parked = False

    def _settle(self) -> None:
        """Let the guest finish."""
        thread = self._thread
        if thread is None:
            return
        if self._parked:
            self._to_guest.put(None)
        thread.join(5)
        if thread.is_alive():
            self.hung = self.hung or self._stacks()

    def _stacks(self) -> str:
        frames = sys._current_frames()
        threads = [self._leader, self._thread.ident if self._thread else None]
        shown = [
            "".join(traceback.format_stack(frames[ident])[-12:])
            for ident in threads
            if ident in frames
        ]
        return "\n--- the other ---\n".join(shown)


def pause_of_thread() -> bool:
    """Give the other thread its turn, if this one is of a Duet."""
    duet = Duet.running.get(get_ident())
    if duet is None:
        return False
    duet.pause()
    return True


@contextmanager
def rehearsed() -> Iterator[None]:
    """Let everything that waits for a lock say so to its Duet, and copies be made in memory."""
    wait = Waiter.wait

    def sleep(seconds: float) -> None:
        if not pause_of_thread():
            time.sleep(seconds)

    def waits(self: Waiter, seconds: float) -> None:
        try:
            self.turn.get_nowait()
        except Empty:
            if not pause_of_thread():
                wait(self, seconds)

    with ExitStack() as stack:
        stack.enter_context(patch.object(os, "urandom", ids.randbytes))
        stack.enter_context(patch.object(batch, "_IDS_AT_ONCE", 4))
        if hasattr(log_lock, "time"):
            told = SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
            stack.enter_context(patch.object(log_lock, "time", told))
        stack.enter_context(patch.object(Waiter, "wait", waits))
        stack.enter_context(patch("mldb.database.OsFileSystem", Copies))
        # Metrics that wait are stored by the operations, and not by a thread of no Duet.
        stack.enter_context(patch.object(MetricLog, "_start", lambda self: None))
        yield


class Tracer:
    """Calls *act* once, at the *at*-th bytecode of mldb, where a handler or finalizer could run."""

    counted: ClassVar[dict[CodeType, bool]] = {}
    """Whether the bytecodes of a function count: the disk in memory is no part of a real store."""

    def __init__(self, at: int, act: Callable[[str], None]) -> None:
        self.left = at
        self._act = act

    def run(self, call: Callable[[], None]) -> None:
        """Call with the tracing on; it ends at the place."""
        former = sys.gettrace()
        sys.settrace(self._enter)
        try:
            call()
        finally:
            sys.settrace(former)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        counts = self.counted.get(code)
        if counts is None:
            name = frame.f_globals.get("__name__", "")
            counts = name.startswith("mldb.") and not name.startswith("mldb.log.fs.memory")
            self.counted[code] = counts
        if not counts:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._at_opcode

    def _at_opcode(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            self.left -= 1
            if not self.left:
                sys.settrace(None)
                module = frame.f_globals["__name__"]
                self._act(f"{module}:{frame.f_lineno} {frame.f_code.co_name}+{frame.f_lasti}")
        return self._at_opcode
