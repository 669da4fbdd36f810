"""Devices kept open between streams: opening one takes from 10 ms to seconds."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from mldb.gpu.capability import Needs
from mldb.gpu.cpu.chains import load_chains
from mldb.gpu.device import Device, Table
from mldb.gpu.select import is_torch_on_cpu, open_device
from mldb.noise.philox_compiled import load_kernels

IDLE_MAX: Final = 2
"""Of each spec, or a few more in a race; those that were idle for longest are closed."""

# By process and spec, each with what it was opened for. No lock: give_back runs in finalizers,
# which may start in the middle of borrow, and a fork may leave a lock held for ever. Each operation
# on a deque is atomic.
_idle: dict[tuple[int, str], deque[tuple[Needs | None, Device]]] = {}


def borrow(spec: str, needs: Needs | None = None) -> Device:
    """Return a device that nobody else uses, opened now if none is idle.

    With "auto" it is one that was opened for the same *needs*, which decide what it is. Results are
    views where the device allows that. Raises InvalidValueError, GpuUnavailableError.
    """
    free = _idle.get((os.getpid(), spec), deque())
    others: list[tuple[Needs | None, Device]] = []
    try:
        with suppress(IndexError):
            while True:
                idle = free.pop()
                if spec != "auto" or idle[0] == needs:
                    return idle[1]
                others.append(idle)
    finally:
        free.extend(reversed(others))
    return open_device(spec, copy=False, needs=needs)


def compile_for(spec: str, needs: Needs) -> None:
    """Compile now what processes that are forked later would each compile: kernels of the CPU.

    Nothing where another device would run, or numba is not installed. Takes some seconds the first
    time. Raises InvalidValueError.
    """
    if not is_torch_on_cpu(spec, needs):
        return
    if needs.chains:
        load_chains(needs.form)
    else:
        load_kernels()


def give_back(
    spec: str,
    device: Device,
    pid: int,
    tables: Sequence[Table] = (),
    at_work: Sequence[object] = (),
    *,
    needs: Needs | None = None,
) -> None:
    """Close *tables* and take back a device that was borrowed in process *pid*; from any thread.

    One that was lost, or left *at_work* by an error or by Ctrl-C, is closed: the next one who asks
    gets a new one. A forked child has no use for its parent's devices and leaves them alone.
    """
    if pid != os.getpid():
        return
    for table in tables:
        table.close()
    if not device.usable or at_work:
        device.close()
        return
    free = _idle.setdefault((pid, spec), deque())
    free.append((needs, device))
    with suppress(IndexError):
        while len(free) > IDLE_MAX:
            free.popleft()[1].close()
