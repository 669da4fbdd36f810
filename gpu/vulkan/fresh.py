"""Pages of fresh memory, all at once: one call instead of a fault for each page that is written."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy.typing as npt

_POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE of linux/mman.h, since Linux 5.14


def take_pages(memory: npt.NDArray[Any]) -> None:
    """Have the system give *memory* its pages now, in a quarter of the time that faults take.

    For memory that is going to be written as a whole; what is in it stays. A hint: where the system
    does not know it, or has no pages, nothing happens and writing does what it always does.
    """
    call = _madvise()
    if call is None or not memory.nbytes:
        return
    start = memory.ctypes.data & -os.sysconf("SC_PAGE_SIZE")
    call(start, memory.ctypes.data + memory.nbytes - start, _POPULATE_WRITE)


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        call = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    call.restype = ctypes.c_int
    return call
