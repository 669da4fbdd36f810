"""Contenders in processes of their own, which live for all rounds and answer to JSON lines.

Between turns a contender waits and takes no time from others.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress

from mldb.closing import Closing
from tests.bench.children import REPOSITORY, Result, Task, environment
from tests.bench.timing import Samples, interleave
from tests.bench_lake.worker import AbsentError, Worker, make_worker

_EXIT_SECONDS = 30.0


class Child:
    """A worker in a process of its own. Raises RuntimeError with its error text when it fails."""

    def __init__(self, task: Task) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self._task = task
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench_lake.serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=REPOSITORY,
            env=environment(),
        )
        try:
            self.ready = self.turn(task)
            if "absent" in self.ready:
                raise AbsentError(self.ready["absent"])
        except BaseException:
            self.close()
            raise

    def turn(self, message: Task) -> Result:
        """Send one line and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it ended; what it wrote to standard error is raised below
            print(json.dumps(message), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"task {self._task} ended early:\n{self._errors.read()}")
        result: Result = json.loads(answer)
        return result

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


class Group(Closing):
    """The contenders of one table: those that are there, and the reasons of those that are not."""

    def __init__(self, tasks: Mapping[str, Task], *, processes: bool) -> None:
        self.workers: dict[str, Worker] = {}
        self.absent: dict[str, str] = {}
        make: Callable[[Task], Worker] = Child if processes else make_worker
        try:
            for name, task in tasks.items():
                try:
                    self.workers[name] = make(task)
                except AbsentError as reason:
                    self.absent[name] = str(reason)
        except BaseException:
            self.close()
            raise

    def measure(self, label: str, rounds: int, figure: Callable[[Result], float]) -> Samples:
        """Interleave one turn of every contender per round; *figure* is taken of its answer."""

        def contender(worker: Worker) -> Callable[[], float]:
            return lambda: figure(worker.turn({}))

        contenders = {name: contender(worker) for name, worker in self.workers.items()}
        return interleave(label, contenders, rounds)

    def notes(self) -> dict[str, str]:
        """What each contender says of itself."""
        return {name: str(w.ready.get("how", "")) for name, w in self.workers.items()}

    def close(self) -> None:
        """End all contenders."""
        while self.workers:
            self.workers.popitem()[1].close()
