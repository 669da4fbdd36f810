"""A few threads that share the rows of a batch, for kernels that free the interpreter lock.

numba's own parallel loops are not used: their OpenMP threads end a process that forks, which data
loaders do, and their other layer refuses calls from two threads. These threads are plain ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Final

from mldb.gpu.device import Chains

PART_ROWS: Final = 128
"""Fewest rows for which a thread is woken: 0.2 ms of isotropic steps of 640 dimensions."""

PARTS_PER_THREAD: Final = 4
"""Large batches are cut finer than threads, so that a thread that was held up delays little."""


class RowThreads:
    """Threads that run ranges of rows; batches are taken in the order in which they were given.

    Closed by its owner. A forked child has none of the threads and must not use it.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.count = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="mldb-rows")

    def start(self, run: Callable[[int, int], None], rows: int) -> list[Future[None]]:
        """Start ``run(first, end)`` over ranges that cover all rows."""
        parts = max(1, min(self.count * PARTS_PER_THREAD, rows // PART_ROWS))
        edges = [rows * i // parts for i in range(parts + 1)]
        return [self._pool.submit(run, first, end) for first, end in pairwise(edges)]

    def close(self) -> None:
        """Finish what was started and end the threads."""
        self._pool.shutdown(wait=True)


class Running:
    """A batch that threads work on."""

    def __init__(self, futures: list[Future[None]], finish: Callable[[], Chains]) -> None:
        self._futures = futures
        self._finish = finish

    def wait(self) -> None:
        """Wait until it is done, whether it failed or not."""
        wait(self._futures)

    def result(self) -> Chains:
        """Wait for it. Raises InvalidValueError when a row of it was not of length 1."""
        for future in self._futures:
            future.result()
        return self._finish()
