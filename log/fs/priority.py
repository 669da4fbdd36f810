"""Running behind everybody else: the priorities of threads, of the disk, and of memory."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from contextlib import suppress
from typing import Final

_NICEST: Final = 19
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}
"""The number of the system call, which no library has a function for."""
_IOPRIO_THREAD: Final = 1
_IOPRIO_IDLE: Final = 3 << 13
_FIRST_TO_GO: Final = 500


def be_last() -> None:
    """Let this thread run where hardly anybody else wants the core or the disk, as far as it can.

    On Linux only this thread, and those it starts from now on; elsewhere the whole process. There
    is no way back: a thread that must be prompt is started before. Never raises.

    It is the lowest priority of batch work (1.5 % of a core that others want), not Linux's idle
    class (0.3 %). A core that runs an idle thread counts as free, so that who wakes is put there,
    and on some kernels waits for the next tick: one in fifty durable commits of another process
    took 4 ms instead of 0.2, beside nothing but a loop in that class.
    """
    with suppress(OSError):
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICEST)
        else:
            os.setpriority(os.PRIO_PROCESS, 0, _NICEST)
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        _idle_disk()


def _idle_disk() -> None:
    """Ask for the disk's idle class; whether that means something depends on its scheduler."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).syscall(number, _IOPRIO_THREAD, 0, _IOPRIO_IDLE)


def go_first() -> None:
    """Let this process be the one that is ended when memory runs out; never raises."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(_FIRST_TO_GO))
