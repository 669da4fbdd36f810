"""The life of a background worker: one process, one store, a list of jobs, behind everybody else.

Two threads: one works at the lowest priority; the main thread keeps the usual one and makes the
calls that hold the commit lock. If these ran at the lowest too, a busy machine could keep the lock
from who commits for seconds. Ending at any moment leaves a store that opens.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from queue import SimpleQueue
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from mldb.compaction.gate import Gate, WorkerStopped
from mldb.compaction.status import WORKER_LOCK, WorkerStatus, load_status
from mldb.deferred import dataclass
from mldb.errors import FormatVersionError, MldbError, StoreMovedError
from mldb.log import format as fmt
from mldb.log.aside import Promptly
from mldb.log.fs.priority import be_last
from mldb.log.fs.process import CURRENT
from mldb.log.fs.protocol import FileSystem
from mldb.log.manifest import manifest_numbers

CONSOLIDATION: Final = "consolidation"
"""The job of lakes with a policy, which rows alone may ask for."""
FAILED: Final = 1
"""The exit status of a worker that ended with an error."""
_TELL_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOrder:
    """What a worker is told by who starts it. Sizes in bytes, *rate* in bytes a second.

    *store_id* in hex, *parent* the process that it works for, *version* and *format* those of the
    mldb that runs there.
    """

    store: str
    store_id: str
    parent: int
    version: str = fmt.WRITER.decode()
    format: int = fmt.FORMAT_VERSION
    rate: int = 0
    gain_bytes: int = 1 << 30
    gain_share: float = 0.3
    drops: bool = False
    segment_bytes: int = 256 << 20
    segment_entries: int = 1 << 16
    job: str = ""
    """The one job that is to be done; all of them where it is empty."""

    def text(self) -> str:
        """As one argument of a command."""
        return json.dumps(asdict(self))

    @staticmethod
    def of(text: str) -> WorkerOrder:
        """The order that :meth:`text` wrote. Raises FormatVersionError for another version's."""
        try:
            return WorkerOrder(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise FormatVersionError(f"this mldb does not understand the order: {error}") from None

    def refuse_other(self) -> None:
        """Raise FormatVersionError unless it was given by this very version of mldb."""
        own = fmt.WRITER.decode()
        if (self.version, self.format) != (own, fmt.FORMAT_VERSION):
            raise FormatVersionError(
                f"{self.version} (format {self.format}) runs in process {self.parent}, but what "
                f"was started for it is {own} (format {fmt.FORMAT_VERSION}): another version was "
                "installed meanwhile. Nothing was changed; start the program again."
            )


class JobReport(NamedTuple):
    """What a job did: the bytes it gave back, and more in plain values."""

    returned: int
    report: Mapping[str, Any]


class WorkerStore(Protocol):
    """A store that a worker opened."""

    def close(self) -> None:
        """Close it."""

    def call_promptly(self, promptly: Promptly) -> None:
        """Let *promptly* make the calls that hold the commit lock."""

    @property
    def store_id(self) -> bytes:
        """Its identity."""


S = TypeVar("S", bound=WorkerStore)


class Bench:
    """What a job works with: the *order*, the *gate* to pass, and whom to tell how far it is."""

    def __init__(self, fs: FileSystem, order: WorkerOrder, is_alone: Callable[[], bool]) -> None:
        self.fs = fs
        self.order = order
        self.gate = Gate(fs, order.rate, is_alone, self._tell_pause)
        # What those before it found and did stays until it is known better.
        known = load_status(fs) or WorkerStatus(0, 0)
        self.status = replace(
            known,
            pid=CURRENT[0].pid,
            started=fs.time_ns(),
            state="looking",
            job="",
            done=0,
            total=0,
            error="",
        )
        self._told = float("-inf")

    def tell(self, done: int, total: int) -> None:
        """Tell how many bytes were written of about how many; saved now and then."""
        self.status = replace(self.status, done=done, total=total)
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self.say()

    def say(self, **changes: Any) -> None:
        """Change the status and save it."""
        self.status = replace(self.status, **changes)
        self.status.save(self.fs)
        self._told = time.monotonic()

    def _tell_pause(self, is_paused: bool) -> None:
        self.say(state="paused" if is_paused else "working")


@dataclass(frozen=True, slots=True)
class Job(Generic[S]):
    """Something that a worker does with a store. *run* returns None where nothing was due."""

    name: str
    run: Callable[[S, Bench], JobReport | None]


def run_worker(
    fs: FileSystem,
    order: WorkerOrder,
    jobs: Sequence[Job[S]],
    open_store: Callable[[], S],
    is_alone: Callable[[], bool],
) -> int:
    """Do the *jobs* in turn, and return the exit status. Where another worker is at it, do nothing.

    The main thread's; it takes SIGTERM and SIGINT as a wish to end. What goes wrong is in the
    status, and the last line on stderr.
    """
    try:
        order.refuse_other()
        _refuse_gone(fs, order)
        lock = fs.lock(WORKER_LOCK)
        try:
            if not lock.try_acquire():
                return 0
            return _Worker(fs, order, is_alone).work(jobs, open_store)
        finally:
            lock.close()
    except MldbError as error:
        # Nobody's status but this worker's own is written, and it has none yet.
        tell_error(error)
        return FAILED


def tell_error(error: BaseException) -> str:
    """Write what went wrong to stderr, as one line at the end; return it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    print(text, file=sys.stderr, flush=True)
    return text


def _refuse_gone(fs: FileSystem, order: WorkerOrder) -> None:
    """Raise StoreMovedError where no store lies: opening would make a new one."""
    if not manifest_numbers(fs.list("")):
        raise StoreMovedError(
            f"there is no store at {order.store} any more. Nothing was made or changed."
        )


class _Worker:
    """The two threads of a worker. ``_calls`` are those that the main thread is to make."""

    def __init__(self, fs: FileSystem, order: WorkerOrder, is_alone: Callable[[], bool]) -> None:
        self._bench = Bench(fs, order, is_alone)
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._error: BaseException | None = None

    def work(self, jobs: Sequence[Job[S]], open_store: Callable[[], S]) -> int:
        """Open the store, do the jobs, close it, and say how that went."""
        bench = self._bench
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda signum, frame: bench.gate.stop())
        bench.say()
        try:
            store = open_store()
            try:
                self._work_in(store, jobs)
            finally:
                store.close()
        except MldbError as error:
            self._error = self._error or error
        if self._error is None:
            bench.say(state="ended", job="")
            return 0
        bench.say(state="failed", error=tell_error(self._error))
        return FAILED

    def _work_in(self, store: S, jobs: Sequence[Job[S]]) -> None:
        if store.store_id.hex() != self._bench.order.store_id:
            raise StoreMovedError(
                f"another store lies at {self._bench.order.store} now, and was not touched."
            )
        store.call_promptly(self._promptly)
        thread = threading.Thread(target=self._run, args=(store, jobs), name="mldb-worker")
        thread.start()
        while (call := self._calls.get()) is not None:
            call()
        thread.join()

    def _run(self, store: S, jobs: Sequence[Job[S]]) -> None:
        """The thread of the lowest priority."""
        bench = self._bench
        try:
            be_last()
            for job in jobs:
                if bench.order.job not in ("", job.name):
                    continue
                bench.gate.refuse_stopped()
                bench.say(state="working", job=job.name, done=0, total=0)
                found = job.run(store, bench)
                if found is not None:
                    reports = {**bench.status.reports, job.name: found.report}
                    returned = bench.status.returned + found.returned
                    bench.say(reports=reports, returned=returned)
        except WorkerStopped:
            pass
        except BaseException as error:  # noqa: BLE001 - it is told by the main thread
            self._error = error
        finally:
            self._calls.put(None)

    def _promptly(self, call: Callable[[], None]) -> None:
        """Have the main thread make the call, and wait for it."""
        ended: SimpleQueue[BaseException | None] = SimpleQueue()

        def made() -> None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - it is raised where it was asked for
                ended.put(error)
            else:
                ended.put(None)

        self._calls.put(made)
        error = ended.get()
        if error is not None:
            raise error
