"""What the kernel is asked of a mapping beforehand: its pages read, its page faults taken at once.

Both are wishes. Where the kernel has no such call, or refuses it, nothing happened and the pages
come one fault at a time, as without it. The calls of ``ctypes`` are made without the lock of the
interpreter, which those of ``mmap`` keep; a fault keeps it as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from mmap import PAGESIZE
from typing import Final

import numpy as np

_WILLNEED: Final = 3
_POPULATE_READ: Final = 22
"""Since Linux 5.14; see madvise(2). Older kernels answer EINVAL."""


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    try:
        call = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    call.restype = ctypes.c_int
    return call


def _advise(view: memoryview, advice: int) -> bool:
    call = _madvise()
    if call is None or not view.nbytes:
        return False
    held = np.frombuffer(view, np.uint8)  # the mapping stays as long as this does
    address: int = held.__array_interface__["data"][0]
    start = address - address % PAGESIZE
    return call(start, address + len(held) - start, advice) == 0


def populate(view: memoryview) -> bool:
    """See :meth:`mldb.log.fs.protocol.FileSystem.populate`."""
    return _advise(view, _POPULATE_READ)


def read_ahead(view: memoryview) -> bool:
    """See :meth:`mldb.log.fs.protocol.FileSystem.read_ahead`."""
    return _advise(view, _WILLNEED)
