"""What the kernel is asked of a mapping: its pages read, its faults taken, what is known of it.

The first two are wishes. Where the kernel has no such call, or refuses it, nothing happened and the
pages come one fault at a time, as without it. The calls of ``ctypes`` are made without the lock of
the interpreter, which those of ``mmap`` keep; a fault keeps it as well.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from functools import cache
from mmap import PAGESIZE
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_WILLNEED: Final = 3
_HUGE, _NO_HUGE = 14, 15
"""A fault reads four MiB at once behind the first, and is followed by no other for each page."""
_POPULATE_READ: Final = 22
"""Since Linux 5.14; see madvise(2). Older kernels answer EINVAL."""
_PAGEMAP_SCAN: Final = 0xC0606610
"""Since Linux 6.7; see Documentation/admin-guide/mm/pagemap.rst. Older kernels answer ENOTTY."""
_SCAN: Final = struct.Struct("=12Q")  # struct pm_scan_arg
_FILE, _PRESENT, _SWAPPED = 4, 8, 16


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    import ctypes

    return _call("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@cache
def _mincore() -> Callable[[int, int, int], int] | None:
    import ctypes

    return _call("mincore", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def _call(name: str, *kinds: Any) -> Callable[[int, int, int], int] | None:
    """A function of the C library; None elsewhere than on Linux, or where it has none."""
    if sys.platform != "linux":
        return None
    import ctypes

    try:
        call = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    call.argtypes, call.restype = kinds, ctypes.c_int
    return call  # type: ignore[no-any-return]


def _pages(view: memoryview) -> tuple[npt.NDArray[np.uint8], int, int]:
    """The bytes, whose mapping stays as long as they do; where their first page begins; a size."""
    held = np.frombuffer(view, np.uint8)
    address: int = held.__array_interface__["data"][0]
    start = address - address % PAGESIZE
    return held, start, address + len(held) - start


def _advise(view: memoryview, advice: int) -> bool:
    call = _madvise()
    if call is None or not view.nbytes:
        return False
    _held, start, size = _pages(view)
    return call(start, size, advice) == 0


def populate(view: memoryview) -> bool:
    """See :meth:`mldb.log.fs.protocol.FileSystem.populate`.

    What is not in memory is read in huge pages, where the file system has them: faster than in
    small ones, and mapped by one fault each. Only now: whoever reads single rows of it once it has
    been dropped should not read as much for each.
    """
    if is_resident(view[-1:]):  # asking of all of them takes as long as a fault for each
        return _advise(view, _POPULATE_READ)
    is_huge = _advise(view, _HUGE)
    done = _advise(view, _POPULATE_READ)
    if is_huge:
        _advise(view, _NO_HUGE)
    return done


def read_ahead(view: memoryview) -> bool:
    """See :meth:`mldb.log.fs.protocol.FileSystem.read_ahead`."""
    return _advise(view, _WILLNEED)


def is_resident(view: memoryview) -> bool:
    """See :meth:`mldb.log.fs.protocol.FileSystem.is_resident`."""
    call = _mincore()
    if call is None or not view.nbytes:
        return True
    _held, start, size = _pages(view)
    found = np.ones(-(-size // PAGESIZE), np.uint8)
    if call(start, size, found.__array_interface__["data"][0]):
        return True
    return bool((found & 1).all())


def is_unwritten(view: memoryview) -> bool:
    """See :meth:`mldb.log.fs.protocol.FileSystem.is_unwritten`.

    A page that was written to is one of the process alone, and none of the file.
    """
    if sys.platform != "linux":
        return False
    if not view.nbytes:
        return True
    from fcntl import ioctl

    _held, start, size = _pages(view)
    found = np.zeros(3, np.uint64)  # one struct page_region
    place = found.__array_interface__["data"][0]
    sought = (_FILE, _FILE, _PRESENT | _SWAPPED, _FILE)  # none of a file, and in memory or swapped
    asked = _SCAN.pack(_SCAN.size, 0, start, start + size, 0, place, 1, 1, *sought)
    try:
        pages = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found_count: int = ioctl(pages, _PAGEMAP_SCAN, bytearray(asked))
        return found_count == 0
    except OSError:
        return False
    finally:
        os.close(pages)
