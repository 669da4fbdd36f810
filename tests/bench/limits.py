"""What the machine itself can do with a state: one memcpy, and raw writes of several kinds."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tests.bench.timing import sync_path
from tests.bench.workloads import Array, State

MEMCPY = "limit: memcpy, reused buffer"
STEP_BYTES = 8 << 20
_DIRECT_BYTES = 16 << 20
_PAGE_BYTES = 4096
GATHER_MAX = 1024
_WRITE_RANGE = 2  # SYNC_FILE_RANGE_WRITE

Chunk: TypeAlias = list[memoryview]


def bytes_of(array: Array) -> Any:
    """Return a flat view, typed Any: the NumPy stubs do not say that arrays are buffers."""
    return array.reshape(-1).view(np.uint8)


def chunks_of(state: State, step: int) -> list[Chunk]:
    """Cut the bytes of *state* into gathers of *step* bytes each (the last may be shorter)."""
    chunks: list[Chunk] = [[]]
    room = step
    for array in state.values():
        view = memoryview(bytes_of(array))
        while len(view) > 0:
            part, view = view[:room], view[room:]
            chunks[-1].append(part)
            room -= len(part)
            if not room:
                chunks.append([])
                room = step
    return [chunk for chunk in chunks if chunk]


def _sync_file_range() -> Callable[[int, int, int, int], int]:
    call = ctypes.CDLL(None).sync_file_range
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    result: Callable[[int, int, int, int], int] = call
    return result


def _create(folder: Path, flags: int, allocate: int) -> int:
    descriptor = os.open(folder / "raw", os.O_CREAT | os.O_EXCL | os.O_RDWR | flags)
    if allocate:
        os.posix_fallocate(descriptor, 0, allocate)
        os.fsync(descriptor)
        sync_path(folder)
    return descriptor


def _finish(descriptor: int, folder: Path) -> None:
    os.fdatasync(descriptor)
    sync_path(folder)


def write_raw(state: State, folder: Path, *, allocate: bool, early: bool) -> float:
    """Gather-write *state* into one new file; return the seconds until it is durable.

    ``allocate`` reserves the blocks before the clock starts; ``early`` asks for writeback after
    every step.
    """
    chunks = chunks_of(state, STEP_BYTES)
    size = sum(array.nbytes for array in state.values())
    start_writeback = _sync_file_range()
    descriptor = _create(folder, 0, size if allocate else 0)
    begin = time.perf_counter()
    offset = 0
    for chunk in chunks:
        for first in range(0, len(chunk), GATHER_MAX):
            group = chunk[first : first + GATHER_MAX]
            wrote = os.pwritev(descriptor, group, offset)
            if early:
                start_writeback(descriptor, offset, wrote, _WRITE_RANGE)
            offset += wrote
    _finish(descriptor, folder)
    seconds = time.perf_counter() - begin
    os.close(descriptor)
    if offset != size:
        raise RuntimeError(f"raw write stopped at byte {offset} of {size}: no figure")
    return seconds


def write_direct(state: State, folder: Path) -> float:
    """Write *state* with O_DIRECT from two aligned buffers, filling one while one is written."""
    chunks = chunks_of(state, _DIRECT_BYTES)
    size = sum(array.nbytes for array in state.values())
    jobs = iter(enumerate(chunks))
    lock = threading.Lock()
    descriptor = _create(folder, os.O_DIRECT, -(-size // _PAGE_BYTES) * _PAGE_BYTES)

    def work(buffer: mmap.mmap) -> None:
        while True:
            with lock:
                job = next(jobs, None)
            if job is None:
                return
            used = _fill(buffer, job[1])
            padded = -(-used // _PAGE_BYTES) * _PAGE_BYTES
            os.pwrite(descriptor, memoryview(buffer)[:padded], job[0] * _DIRECT_BYTES)

    buffers = [mmap.mmap(-1, _DIRECT_BYTES) for _ in range(2)]
    for buffer in buffers:
        np.frombuffer(buffer, np.uint8)[:] = 1  # fault the pages in before the clock starts
    threads = [threading.Thread(target=work, args=(buffer,)) for buffer in buffers]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _finish(descriptor, folder)
    seconds = time.perf_counter() - begin
    os.close(descriptor)
    return seconds


def _fill(buffer: mmap.mmap, chunk: Chunk) -> int:
    target = np.frombuffer(buffer, np.uint8)
    used = 0
    for part in chunk:
        np.copyto(target[used : used + len(part)], np.frombuffer(part, np.uint8))
        used += len(part)
    return used


class Memcpy:
    """Copies a state into one buffer that is allocated and touched once, at construction."""

    def __init__(self, state: State) -> None:
        self._sources = [array.reshape(-1).view(np.uint8) for array in state.values()]
        self._buffer = np.ones(sum(source.nbytes for source in self._sources), np.uint8)

    def seconds(self) -> float:
        """Copy everything once; return the seconds it took."""
        begin = time.perf_counter()
        offset = 0
        for source in self._sources:
            np.copyto(self._buffer[offset : offset + source.nbytes], source)
            offset += source.nbytes
        return time.perf_counter() - begin


RawWriter: TypeAlias = Callable[[State, Path], float]
RAW_WRITERS: dict[str, RawWriter] = {
    "limit: write, fresh file": lambda s, f: write_raw(s, f, allocate=False, early=False),
    "limit: write, early writeback": lambda s, f: write_raw(s, f, allocate=False, early=True),
    "limit: write, preallocated": lambda s, f: write_raw(s, f, allocate=True, early=False),
    "limit: write, preallocated + early": lambda s, f: write_raw(s, f, allocate=True, early=True),
    "limit: direct I/O, preallocated": write_direct,
}
