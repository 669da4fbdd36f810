"""Devices kept open between streams: opening one takes from 10 ms to seconds.

Of each spec one device may be idle, with no memory for batches: that is given back when the device
is. It is closed when the last open store closes whose lakes have asked for such a device, and with
the process. Nothing here waits for a time to pass, and no thread is needed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Protocol, TypeAlias

from mldb.errors import GpuUnavailableError
from mldb.gpu.capability import Needs
from mldb.gpu.cpu.chains import load_chains
from mldb.gpu.device import Device, Table
from mldb.gpu.select import is_torch_on_cpu, open_device
from mldb.noise.philox_compiled import load_kernels

IDLE_MAX: Final = 1
"""Of each spec, or a few more in a race; those that were idle for longest are closed."""

_Key: TypeAlias = tuple[int, str]  # process and spec

# Each idle device with what it was opened for. No lock: give_back runs in finalizers, which may
# start in the middle of borrow, and a fork may leave a lock held for ever. Each operation on a
# deque is atomic, and so is each one on a dict.
_idle: dict[_Key, deque[tuple[Needs | None, Device]]] = {}
# By id, the open stores that asked for a device of the spec: while there are any, one may be idle.
_users: dict[_Key, dict[int, bool]] = {}


class User(Protocol):
    """What a device is kept for: something that is closed one day."""

    def at_close(self, act: Callable[[], object]) -> None:
        """Have *act* called when this is closed or dropped; at once where it was."""


def borrow(spec: str, needs: Needs | None = None, *, user: User) -> Device:
    """Return a device that nobody else uses, opened now if none is idle that answers.

    With "auto" it is one that was opened for the same *needs*, which decide what it is. Results are
    views where the device allows that. Raises InvalidValueError, GpuUnavailableError.
    """
    key = os.getpid(), spec
    _enter(key, user)
    free = _idle.get(key, deque())
    others: list[tuple[Needs | None, Device]] = []
    try:
        with suppress(IndexError):
            while True:
                idle = free.pop()
                if spec == "auto" and idle[0] != needs:
                    others.append(idle)
                elif idle[1].answers():
                    return idle[1]
                else:
                    idle[1].close()  # it was lost meanwhile
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
    gets a new one. So is one that no open store may ask for any more. A forked child has no use for
    its parent's devices and leaves them alone.
    """
    if pid != os.getpid():
        return
    for table in tables:
        table.close()
    key = pid, spec
    if at_work or not _users.get(key) or not rested(device):
        device.close()
        return
    free = _idle.setdefault(key, deque())
    free.append((needs, device))
    _close_idle(key, IDLE_MAX if _users.get(key) else 0)  # the last user may have left meanwhile


def rested(device: Device) -> bool:
    """Have a device give back what only batches need; False where it is of no use any more."""
    with suppress(GpuUnavailableError):
        device.rest()
    return device.usable


def _enter(key: _Key, user: User) -> None:
    """Count a user until it closes."""
    users = _users.setdefault(key, {})
    if id(user) not in users:
        users[id(user)] = True
        user.at_close(partial(_leave, key, id(user)))


def _leave(key: _Key, number: int) -> None:
    """Forget a user; with the last one goes what is idle. A forked child leaves that alone."""
    users = _users.get(key, {})
    users.pop(number, None)
    if not users and key[0] == os.getpid():
        _close_idle(key, 0)


def _close_idle(key: _Key, most: int) -> None:
    free = _idle.get(key, deque())
    with suppress(IndexError):
        while len(free) > most:
            free.popleft()[1].close()
