"""What the machine itself can do: raw writes of a state, and the barest log with an index.

The raw writers bound W1. :class:`BareLog` bounds the rest: one file, one dict, one mapping, no
names on disk, no checksums, no transactions, no recovery. It has the interface of the peers, so
that the loops around it are the same.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from tests.bench.peer import Peer, Purpose, RowReader, Store, abilities
from tests.bench.timing import sync_path
from tests.bench.workloads import Array, State

LOG = "limit: log + index + memmap"
PREALLOCATED = "limit: log, preallocated"
_WRITTEN = "limit: log over old blocks"
MEMCPY = "limit: memcpy, reused buffer"
_STEP_BYTES = 8 << 20
_DIRECT_BYTES = 16 << 20
_PAGE_BYTES = 4096
_GATHER_MAX = 1024
_WRITE_RANGE = 2  # SYNC_FILE_RANGE_WRITE

Chunk: TypeAlias = list[memoryview]
Blocks: TypeAlias = Literal["new", "allocated", "written"]


def _bytes_of(array: Array) -> Any:
    """Return a flat view, typed Any: the NumPy stubs do not say that arrays are buffers."""
    return array.reshape(-1).view(np.uint8)


def chunks_of(state: State, step: int) -> list[Chunk]:
    """Cut the bytes of *state* into gathers of *step* bytes each (the last may be shorter)."""
    chunks: list[Chunk] = [[]]
    room = step
    for array in state.values():
        view = memoryview(_bytes_of(array))
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
    chunks = chunks_of(state, _STEP_BYTES)
    size = sum(array.nbytes for array in state.values())
    start_writeback = _sync_file_range()
    descriptor = _create(folder, 0, size if allocate else 0)
    begin = time.perf_counter()
    offset = 0
    for chunk in chunks:
        for first in range(0, len(chunk), _GATHER_MAX):
            group = chunk[first : first + _GATHER_MAX]
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


class BareLog(Store):
    """Values one after another in one file, a dict of positions, one mapping for reads.

    Synced appends go into a new file, into preallocated blocks, or into blocks that hold data
    already: then a sync has no extent to convert and no length to record.
    """

    def __init__(self, folder: Path, purpose: Purpose, blocks: Blocks = "new") -> None:
        self._folder = folder
        self._writing = purpose != "read"
        self._index: dict[str, list[int]] = {}
        self._epochs: dict[str, list[int]] = {}
        self._position = 0
        path = folder / "log"
        if self._writing:
            self._file = os.open(path, os.O_CREAT | os.O_RDWR)
            if purpose == "durable" and blocks != "new":
                _prepare_blocks(self._file, overwrite=blocks == "written")
            sync_path(folder)
            return
        self._index, self._epochs = json.loads((folder / "index").read_text())
        self._file = os.open(path, os.O_RDONLY)
        self._map = np.frombuffer(mmap.mmap(self._file, 0, prot=mmap.PROT_READ), np.uint8)

    def _note(self, name: str, size: int) -> None:
        self._index[name] = [self._position, size]
        self._position += size

    def _append(self, state: State) -> None:
        values = [_bytes_of(value) for value in state.values()]
        offset = self._position
        for first in range(0, len(values), _GATHER_MAX):
            offset += os.pwritev(self._file, values[first : first + _GATHER_MAX], offset)
        for name, value in state.items():
            self._note(name, value.nbytes)
        os.fdatasync(self._file)

    def put_all(self, prepared: Any) -> None:
        # One call moves at most 2 GiB, and a large value may be written in parts.
        for chunk in chunks_of(prepared, _STEP_BYTES):
            for part in chunk:
                os.write(self._file, part)
        for name, value in prepared.items():
            self._note(name, value.nbytes)
        os.fdatasync(self._file)

    def put_batch(self, batch: State) -> None:
        self._append(batch)

    def put_lazily(self, names: list[str], values: list[Array]) -> None:
        file, index, position = self._file, self._index, 0
        for name, value in zip(names, values, strict=True):
            size = os.pwrite(file, value.data, position)
            index[name] = [position, size]
            position += size

    def commit_epoch(self, epoch: int, changed: State, full: State) -> None:
        self._append({f"{name}@{epoch}": value for name, value in changed.items()})
        for name in changed:
            self._epochs.setdefault(name, []).append(epoch)

    def put_rows(self, name: str, matrix: Array) -> None:
        self.put_all({name: matrix})

    def get(self, name: str) -> Array:
        position, size = self._index[name]
        return self._map[position : position + size]

    def get_all(self) -> Iterator[Array]:
        return (self.get(name) for name in self._index)

    def get_as_of(self, name: str, epoch: int) -> Array:
        epochs = self._epochs[name]
        return self.get(f"{name}@{epochs[bisect_right(epochs, epoch) - 1]}")

    def rows(self, name: str, row_values: int) -> RowReader:
        matrix = self.get(name).view(np.float32).reshape(-1, row_values)

        def read(start: int, out: Array) -> None:
            np.copyto(out, matrix[start : start + len(out)])

        return read

    def close(self) -> None:
        os.close(self._file)
        if self._writing:
            (self._folder / "index").write_text(json.dumps([self._index, self._epochs]))


def _prepare_blocks(file: int, *, overwrite: bool) -> None:
    size = 256 << 20
    os.posix_fallocate(file, 0, size)
    if overwrite:
        zeros = bytes(_STEP_BYTES)
        for offset in range(0, size, _STEP_BYTES):
            os.pwrite(file, zeros, offset)
    os.fsync(file)


def _open_preallocated(folder: Path, purpose: Purpose) -> Store:
    return BareLog(folder, purpose, "allocated")


def _open_written(folder: Path, purpose: Purpose) -> Store:
    return BareLog(folder, purpose, "written")


LIMITS = (
    Peer(
        name=LOG,
        open=BareLog,
        can=abilities("load", "lazy", "batch", "commits", "as_of", "rows"),
    ),
    Peer(
        name=PREALLOCATED,
        open=_open_preallocated,
        can=abilities("batch", "commits"),
    ),
    Peer(
        name=_WRITTEN,
        open=_open_written,
        can=abilities("batch", "commits"),
        notes={
            "batch": "for information: blocks that hold data already",
            "commits": "for information: blocks that hold data already",
        },
    ),
)
