"""S10 and S11: the first pass that a process makes over the rows, every batch copied to one buffer.

Imports, and opening the store, are not measured; making the loader and all that it does first are.
A turn is the first pass only once, so every round has a process of its own.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.bench.children import Result, Task
from tests.bench_lake.loaders import Loaders, Sink
from tests.bench_lake.setting import Data, Floats
from tests.bench_lake.work_stream import checked

_READ_ROWS = 1024
"""Of one read into the buffer that is used again: a few batches, 2.5 MiB."""
_DISK_STEP = 8 << 20


class FirstPass:
    """Makes one pass over what ``maker`` and ``kind`` say; "limit" is a loop named by ``how``."""

    def __init__(self, task: Task) -> None:
        self._data, self._batch = Data(**task["data"]), int(task["batch"])
        self._loaders = Loaders(task)
        self._sink = Sink(self._batch, self._data.dim)
        self._sink.array.fill(0)  # its page faults are nobody's
        maker, kind = self._maker, self._kind = task["maker"], task["kind"]
        if maker == "limit":
            loop = _LIMITS[task["how"]]
            self._run: Callable[[], int] = lambda: loop(self._data, self._batch, self._sink.array)
        else:
            if maker == "mldb":
                import mldb.lake.stream.loader  # noqa: F401 - imports are not what is measured

                self._loaders.lake()
            self._run = lambda: self._sink.drain(self._loaders.make(maker, kind))
        self.ready: Result = {}

    def turn(self, message: Task) -> Result:
        """Make one pass: rows per second, by the clock and by the processor time of all threads.

        With ``message["check"]`` another pass that is not measured, of which the bytes are summed;
        RuntimeError when they are not those of all rows.
        """
        if "check" in message:
            if self._maker != "limit":
                checked(self._loaders.make(self._maker, self._kind), self._kind, self._data)
            return {}
        begin, used = time.perf_counter(), time.process_time()
        rows = self._run()
        used, seconds = time.process_time() - used, time.perf_counter() - begin
        return {"rate": rows / seconds, "cpu": rows / used}

    def close(self) -> None:
        """Close the store."""
        self._loaders.close()


def _mapped_copy(data: Data, batch: int, buffer: Floats) -> int:
    rows = data.mapped()
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        np.copyto(buffer[: len(part)], part)
    return len(rows)


def _mapped_gather(data: Data, batch: int, buffer: Floats) -> int:
    rows = data.mapped()
    order = np.random.default_rng(0).permutation(len(rows))
    for start in range(0, len(rows), batch):
        chosen = order[start : start + batch]
        np.take(rows, chosen, 0, out=buffer[: len(chosen)], mode="clip")
    return len(rows)


def _read_copy(data: Data, batch: int, buffer: Floats) -> int:
    """Read a few batches into memory that is used again, and copy them out of it."""
    held = np.zeros((_READ_ROWS, data.dim), np.float32)
    file = os.open(Path(data.folder) / "rows.f32", os.O_RDONLY)
    row_bytes = held.nbytes // _READ_ROWS
    try:
        for start in range(0, data.rows, _READ_ROWS):
            count = os.preadv(file, [held.data], start * row_bytes) // row_bytes
            for first in range(0, count, batch):
                part = held[first : min(first + batch, count)]
                np.copyto(buffer[: len(part)], part)
    finally:
        os.close(file)
    return data.rows


def _disk_read(data: Data, flags: int) -> int:
    """Read the file in long pieces into page-aligned memory that is used again; copy nothing.

    A file system without direct reads (*flags*) reads as it does.
    """
    name = Path(data.folder) / "rows.f32"
    try:
        file = os.open(name, os.O_RDONLY | flags)
    except OSError:
        file = os.open(name, os.O_RDONLY)
    held = mmap.mmap(-1, _DISK_STEP)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        at = 0
        while count := os.preadv(file, [held], at):
            at += count
    finally:
        os.close(file)
        held.close()
    return data.rows


_LIMITS: dict[str, Callable[[Data, int, Floats], int]] = {
    "mapped copy": _mapped_copy,
    "mapped gather": _mapped_gather,
    "read": _read_copy,
    "disk": lambda data, _batch, _buffer: _disk_read(data, 0),
    "disk, direct": lambda data, _batch, _buffer: _disk_read(data, os.O_DIRECT),
}
