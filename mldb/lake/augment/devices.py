"""Devices kept open between streams: opening one takes from 10 ms to seconds."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from mldb.gpu.device import Device, Table
from mldb.gpu.select import open_device

IDLE_MAX: Final = 2
"""Of each kind, or a few more in a race; the rest are closed when they come back."""

# By process and spec. No lock: give_back runs in finalizers, which may start in the middle of
# borrow, and a fork may leave a lock held for ever. Each operation on a deque is atomic.
_idle: dict[tuple[int, str], deque[Device]] = {}


def borrow(spec: str) -> Device:
    """Return a device that nobody else uses, opened now if none is idle.

    Results are views where the device allows that. Raises InvalidValueError, GpuUnavailableError.
    """
    with suppress(KeyError, IndexError):
        return _idle[os.getpid(), spec].pop()
    return open_device(spec, copy=False)


def give_back(
    spec: str,
    device: Device,
    pid: int,
    tables: Sequence[Table] = (),
    at_work: Sequence[object] = (),
) -> None:
    """Close *tables* and take back a device that was borrowed in process *pid*; from any thread.

    One that was lost, or left *at_work* by an error or by Ctrl-C, is closed: the next one who asks
    gets a new one. A forked child has no use for its parent's devices and leaves them alone.
    """
    if pid != os.getpid():
        return
    for table in tables:
        table.close()
    free = _idle.setdefault((pid, spec), deque())
    if device.usable and not at_work and len(free) < IDLE_MAX:
        free.append(device)
    else:
        device.close()
