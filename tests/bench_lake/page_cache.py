"""The page cache of files: filled, dropped, and asked what it holds."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

_STEP = 8 << 20
_FEW = 0.01
"""This share of the pages may stay and a file still counts as dropped."""


def fill(folder: Path) -> None:
    """Read every file below *folder*."""
    buffer = bytearray(_STEP)
    for descriptor in _files(folder):
        while os.readv(descriptor, [buffer]):
            pass


def drop(folder: Path) -> str:
    """Drop the pages of every file below *folder*; return "", or what stayed.

    Files that somebody maps keep theirs. Where they do, all clean pages of the machine are dropped,
    if this user may.
    """
    os.sync()
    for descriptor in _files(folder):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(folder) > _FEW:
        with suppress(OSError):
            Path("/proc/sys/vm/drop_caches").write_text("1")
    stayed = resident(folder)
    return f"PAGE CACHE NOT DROPPED: {stayed:.0%} stayed" if stayed > _FEW else ""


def resident(folder: Path) -> float:
    """Return the share of the pages of all files below *folder* that are in memory (mincore)."""
    call = ctypes.CDLL(None, use_errno=True).mincore
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    there = pages = 0
    for descriptor in _files(folder):
        size = os.fstat(descriptor).st_size
        if not size:
            continue
        with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as mapped:
            whole = np.frombuffer(mapped, np.uint8)
            found = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
            if call(whole.ctypes.data, size, found.ctypes.data):
                raise OSError(ctypes.get_errno(), "mincore")
            del whole
        there += int((found & 1).sum())
        pages += len(found)
    return there / max(pages, 1)


def _files(folder: Path) -> Iterator[int]:
    """Yield a descriptor of every file, closed when the next one is asked for."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                yield descriptor
            finally:
                os.close(descriptor)
