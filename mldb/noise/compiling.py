"""The one lock under which kernels are compiled, and what a fork does with it.

Compiling imports numba and takes its locks. A process forked meanwhile by another thread would have
them held by a thread that it does not have, and wait for ever at its first kernel. So a fork waits
for the compilation that runs, a few seconds, and none begins until it is done.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - see _before_fork
import logging  # noqa: F401
import os
import signal
import threading
from typing import Final

from mldb.errors import LockedError
from mldb.log.ownership import Guard, OwnedLock

_WHAT: Final = "the compilation of kernels"
_WAIT_SECONDS: Final = 120
"""A fork goes on after so long: what is compiled may wait for a lock that a hook took before."""
_TOLD_AFTER: Final = 0.05

_locks: Final = [OwnedLock(_WHAT)]
_held: Final[list[Guard]] = []
"""What the thread that forks holds from before to after."""
_interrupts: Final[list[BaseException]] = []


def compile_lock() -> OwnedLock:
    """The lock of this process; whoever may compile or import numba holds it."""
    return _locks[0]


def _before_fork() -> None:
    """Take the lock, unless a handler forks inside its own compilation, whose locks it has.

    Hooks that were registered later have run by now and hold what they hold. Those of logging and
    of thread pools, which compiling uses, were registered before: that is what the imports above
    are for.
    """
    lock = compile_lock()
    while not lock.is_inside():
        try:
            _held.append(lock.hold(_WAIT_SECONDS))
            return
        except LockedError:
            return
        except KeyboardInterrupt as error:  # nothing raised here stops the fork: it is told later
            _interrupts.append(error)


def _after_in_parent() -> None:
    while _held:
        _held.pop().free()
    if _interrupts:
        _interrupts.clear()
        # Not from here: what a hook raises is printed and goes no further.
        main = threading.main_thread().ident
        threading.Timer(_TOLD_AFTER, signal.pthread_kill, (main, signal.SIGINT)).start()


def _after_in_child() -> None:
    if _held or not compile_lock().is_inside():
        # A new one: in the queue of the old one are threads that this process does not have.
        _locks[0] = OwnedLock(_WHAT)
    _held.clear()
    _interrupts.clear()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
