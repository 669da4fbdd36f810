"""Devices kept open between streams: opening one takes from 10 ms to seconds."""

from __future__ import annotations

import os
import threading
from typing import Final

from mldb.gpu.device import Device
from mldb.gpu.select import open_device

IDLE_MAX: Final = 2  # of each kind; more are closed when they come back

_lock = threading.Lock()
_idle: dict[tuple[int, str], list[Device]] = {}  # by process and spec; guarded by _lock


def borrow(spec: str) -> Device:
    """Return a device that nobody else uses, opened now if none is idle.

    Results are views where the device allows that. Raises InvalidValueError, GpuUnavailableError.
    """
    with _lock:
        free = _idle.get((os.getpid(), spec))
        if free:
            return free.pop()
    return open_device(spec, copy=False)


def give_back(spec: str, device: Device, pid: int) -> None:
    """Take a device back from who borrowed it in process *pid*; called from any thread.

    A forked child has no use for its parent's devices and leaves them alone.
    """
    if pid != os.getpid():
        return
    with _lock:
        free = _idle.setdefault((pid, spec), [])
        if len(free) < IDLE_MAX:
            free.append(device)
            return
    device.close()
