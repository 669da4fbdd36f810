"""What every contender is where it runs, and how it is made from a task."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from tests.bench.children import Result, Task

# Where the worker of a task is made. Modules are imported by name: most of them load torch.
_WORKERS = {
    "ingest": ("tests.bench_lake.work_ingest", "Ingest"),
    "stream": ("tests.bench_lake.work_stream", "StreamPass"),
    "first": ("tests.bench_lake.work_first", "FirstPass"),
    "start": ("tests.bench_lake.work_start", "Start"),
    "chains": ("tests.bench_lake.work_chains", "ChainRun"),
}


class AbsentError(Exception):
    """A contender that this machine does not have; the message is what the table says."""


class Worker(Protocol):
    """One contender where it runs; made from a task."""

    ready: Result
    """What is told before the first turn: checks, and ``how`` for the table."""

    def turn(self, message: Task) -> Result:
        """Measure once."""

    def close(self) -> None:
        """Give everything back."""


def make_worker(task: Task) -> Worker:
    """Prepare the worker of *task*. Raises AbsentError."""
    module, name = _WORKERS[task["task"]]
    worker: Worker = getattr(import_module(module), name)(task)
    return worker
