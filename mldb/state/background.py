"""Checkpoints written behind the training loop, by a thread that lives while there are some.

``submit`` copies a state into reused memory and queues it; a thread hashes, writes and syncs, all
in calls that run without the GIL. The queue is bounded. An error surfaces at the next write, at
``result()`` and at ``close()``; when none of these comes, at the end of the process.

One list says all: a job is in it from the moment it is accepted until it is stored or its error was
raised, and the memory in use is that of the jobs in it. So there is nothing to give back when
Ctrl-C comes in the middle. The thread is no daemon and ends when the list is empty: it never keeps
the interpreter alive, and the interpreter waits for it.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from mldb.deferred import replace
from mldb.errors import ClosedError
from mldb.log.aside import Aside
from mldb.log.index.address import CommitRow
from mldb.log.ownership import OwnedLock
from mldb.state import lost
from mldb.tensors.codec import Prepared

if TYPE_CHECKING:
    from mldb.state.checkpointing import CheckpointJob, PendingCheckpoint

_ALIGN: Final = 64
_SPLIT_BYTES: Final = 32 << 20  # from here a second thread speeds the copy up
_LOOK_SECONDS: Final = 0.05
_THREAD_NAME: Final = "mldb-checkpoints"

_Write: TypeAlias = "Callable[[CheckpointJob], CommitRow]"

_active: Final[dict[int, Background]] = {}
"""Those with something to write, by id: what the end of the process waits for."""


def _forget_in_child() -> None:
    _active.clear()  # the parent writes them


os.register_at_fork(after_in_child=_forget_in_child)


# --- the copy -------------------------------------------------------------------------------------


class CopyBuffer:
    """Reused memory for the copy of one state. Used by one call or job at a time."""

    def __init__(self) -> None:
        self.data = np.empty(0, dtype=np.uint8)

    def copy_of(self, job: CheckpointJob) -> CheckpointJob:
        """Return *job* with its bytes copied here; waits until the copy is complete.

        What ``prepare`` had to copy already, as from a device into page-locked memory, nobody else
        can change: it is not copied again.
        """
        shared = {name: item for name, item in job.tensors.items() if not item.owned}
        sizes = [-(-item.nbytes // _ALIGN) * _ALIGN for item in shared.values()]
        # A second thread may still copy when Ctrl-C has ended this call: the memory stays its own.
        data, self.data = self.data, np.empty(0, dtype=np.uint8)
        if data.nbytes < sum(sizes):
            data = np.empty(sum(sizes), dtype=np.uint8)
        starts = list(accumulate(sizes, initial=0))
        parts = [
            (data[start : start + item.nbytes], item)
            for start, item in zip(starts, shared.values(), strict=False)
        ]
        _copy_all(parts, starts)
        self.data = data
        copied = {
            name: item._replace(buffers=(target.data,), owned=True)
            for name, (target, item) in zip(shared, parts, strict=True)
        }
        return replace(job, tensors={**job.tensors, **copied})


_Part = tuple[np.ndarray[Any, np.dtype[np.uint8]], Prepared]


def _copy_all(parts: list[_Part], starts: list[int]) -> None:
    """Copy all *parts*; *starts* is where each begins in the buffer, and where the last one ends.

    The halves are counted in bytes of the buffer: tiny tensors are mostly the room between them.
    """
    total = starts[-1]
    if total < _SPLIT_BYTES:
        _copy(parts)
        return
    split = bisect_left(starts, total // 2)
    rest = Aside(partial(_copy, parts[split:]))
    try:
        _copy(parts[:split])
    finally:
        rest.result()


def _copy(parts: list[_Part]) -> None:
    for target, prepared in parts:
        place = 0
        for buffer in prepared.buffers:
            source = np.frombuffer(buffer, dtype=np.uint8)
            np.copyto(target[place : place + source.nbytes], source)
            place += source.nbytes


# --- the queue ------------------------------------------------------------------------------------


class _Queued:
    """A job in the queue, with the memory that it is in. It keeps the store alive until written."""

    __slots__ = ("buffer", "job", "pending", "write")

    def __init__(
        self, job: CheckpointJob, buffer: CopyBuffer, pending: PendingCheckpoint, write: _Write
    ) -> None:
        self.job: CheckpointJob | None = job
        self.buffer = buffer
        self.pending = pending
        self.write: _Write | None = write

    def run(self) -> None:
        """Write it. What goes wrong is the outcome."""
        from mldb.state.checkpointing import checkpoint_of

        job, write, pending = self.job, self.write, self.pending
        assert job is not None
        assert write is not None
        try:
            checkpoint = checkpoint_of(job, write(job), pending.stall_ms)
        except BaseException as error:  # noqa: BLE001 - it is handed to the training thread
            del job, write
            self.job = self.write = None
            pending.finish(None, error)
        else:
            del job, write
            self.job = self.write = None
            pending.finish(checkpoint, None)


class Background:
    """Writes checkpoints behind the training loop, in the order given. Any thread.

    *depth* jobs may be on their way. *exit_timeout* is how many seconds the end of the process
    waits for them, None for as long as it takes. *store* names the store in messages.
    """

    def __init__(self, depth: int, *, exit_timeout: float | None = None, store: str = "") -> None:
        self._store = store
        self._exit_timeout = exit_timeout
        self._buffers = tuple(CopyBuffer() for _ in range(depth))
        self._queue: list[_Queued] = []
        self._entry = OwnedLock("the queue of background checkpoints")  # to copy and to queue
        self._turn = OwnedLock("the writing of background checkpoints")
        self._thread: threading.Thread | None = None  # the newest
        self.closed = False
        """Whether it takes no more jobs, and has written all."""

    def submit(self, job: CheckpointJob, started: float, write: _Write) -> PendingCheckpoint:
        """Fix the value of *job* and queue it for *write*; waits while every buffer is in use.

        *write* is held until the job is done and no longer, as it keeps the store alive. *started*
        is when the caller was called (perf_counter), from which ``stall_ms`` counts. Raises
        ReentryError inside another call of this thread, ClosedError after :meth:`close`.
        """
        from mldb.state.checkpointing import PendingCheckpoint

        pending = PendingCheckpoint(job.name, job.epoch, self._turn, self._store)
        with self._entry.hold():
            if self.closed:
                raise ClosedError(
                    f"the store {self._store} was closed; checkpoint {job.name!r} was not stored"
                )
            buffer = self._free_buffer()
            queued = _Queued(buffer.copy_of(job), buffer, pending, write)
            pending.stall_ms = (time.perf_counter() - started) * 1e3
            self._queue.append(queued)  # the one step: from here on it is pending
        self._start()
        return pending

    def _free_buffer(self) -> CopyBuffer:
        while True:
            waiting = [queued for queued in self._queue[:] if not queued.pending.done]
            used = {id(queued.buffer) for queued in waiting}
            for buffer in self._buffers:
                if id(buffer) not in used:
                    return buffer
            self._await(waiting[0])

    def _await(self, queued: _Queued) -> None:
        while not queued.pending.wait(_LOOK_SECONDS):
            self._start()  # it may have been queued by a call that Ctrl-C ended right there

    def _next(self) -> _Queued | None:
        return next((queued for queued in self._queue[:] if not queued.pending.done), None)

    # --- writing ----------------------------------------------------------------------------------

    def _start(self) -> None:
        """See that somebody writes what is queued: a thread, or this one where none can start.

        Who writes already looks into the queue once more after giving up its turn.
        """
        _active[id(self)] = self
        if self._turn.is_inside() or self._turn.holder is not None:
            return
        if is_exiting():
            self._work_here()
            return
        self._thread = thread = threading.Thread(target=self._run, name=_THREAD_NAME, daemon=False)
        try:
            thread.start()
        except RuntimeError:  # the machine has no thread left
            self._work_here()

    def _work_here(self) -> None:
        """Write what is queued in the caller's thread, who is the one to be told of Ctrl-C."""
        self._work()
        for queued in self._queue[:]:
            pending = queued.pending
            if pending.is_unseen and not isinstance(pending.failure(), Exception):
                self._forget(queued)
                pending.mark_seen()
                raise pending.failure()

    def _run(self) -> None:
        if self._exit_timeout is not None:
            arguments = (threading.current_thread(), self._exit_timeout)
            watcher = threading.Thread(
                target=self._watch, args=arguments, name="mldb-exit", daemon=True
            )
            with suppress(RuntimeError):
                watcher.start()
        self._work()

    def _work(self) -> None:
        """Write what is queued, unless somebody else does."""
        while True:
            if self._next() is None:
                _active.pop(id(self), None)
                if self._next() is None:
                    return
            _active[id(self)] = self
            guard = self._turn.try_hold()
            if guard is None:
                return
            with guard:
                while (queued := self._next()) is not None:
                    queued.run()
                    if queued.pending.succeeded:
                        self._forget(queued)

    def _forget(self, queued: _Queued) -> None:
        with suppress(ValueError):  # another thread was here first
            self._queue.remove(queued)

    # --- asking -----------------------------------------------------------------------------------

    def busy(self) -> bool:
        """Whether anything is queued or unseen."""
        return bool(self._queue)

    def is_writing(self) -> bool:
        """Whether a checkpoint is on its way."""
        return self._next() is not None

    def names(self) -> set[str]:
        """The names of the checkpoints that are on their way."""
        return {queued.pending.name for queued in self._queue[:]}

    def is_inside(self) -> bool:
        """Whether this call is made by who writes: that one must not wait for itself."""
        return self._turn.is_inside()

    def drain(self) -> None:
        """Wait for everything queued, then raise the first error that nobody has seen yet.

        Ctrl-C ends the wait, and nothing else. Raises ReentryError where the wait would not end.
        """
        for queued in self._queue[:]:
            self._await(queued)
        self.raise_failed()

    def raise_failed(self) -> None:
        """Raise the error of a finished checkpoint that nobody has seen yet; does not wait.

        Those of others are notes to it.
        """
        done = [queued for queued in self._queue[:] if queued.pending.done]
        failed = [queued.pending for queued in done if queued.pending.is_unseen]
        for queued in done:
            self._forget(queued)
        if not failed:
            return
        error = failed[0].failure()
        for other in failed[1:]:
            error.add_note(f"{other.what} was not stored either: {other.failure()}")
        for pending in failed:
            pending.mark_seen()
        raise error

    def close(self) -> None:
        """Write what is queued; raises like :meth:`drain`. Who comes later gets ClosedError.

        Ended by Ctrl-C, or called inside another call, it leaves all as before.
        """
        with self._entry.hold():
            self.closed = True
        try:
            self.drain()
        finally:
            if self.busy():
                self.closed = False
            else:
                self._join()

    def _join(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None and thread.ident not in (None, threading.get_ident()):
            thread.join()

    # --- the end of the process -------------------------------------------------------------------

    def finish(self) -> list[str]:
        """Wait until all is written, or exit_timeout is over; return what is not, in words."""
        limit = self._exit_timeout
        deadline = None if limit is None else time.monotonic() + limit
        for queued in self._queue[:]:
            while not queued.pending.wait(_LOOK_SECONDS):
                self._start()
                if deadline is not None and time.monotonic() > deadline:
                    return self._late()
        return []

    def _late(self) -> list[str]:
        return [
            f"{queued.pending.what} was not stored within {self._exit_timeout} s of the end of the "
            "program (exit_timeout)"
            for queued in self._queue[:]
            if not queued.pending.done
        ]

    def _watch(self, worker: threading.Thread, limit: float) -> None:
        """End the process when it waits for nothing but *worker*, and has done so for too long."""
        since: float | None = None
        while worker.is_alive():
            worker.join(_LOOK_SECONDS)
            if not is_exiting():
                since = None
                continue
            now = time.monotonic()
            since = now if since is None else since
            late = self._late()
            if now - since >= limit and late:
                lost.end_process(late + lost.unseen())


def is_exiting() -> bool:
    """Whether the program is over, and nothing runs on but what writes its last checkpoints."""
    return not threading.main_thread().is_alive() and not any(
        thread.is_alive() and not thread.daemon and thread.name != _THREAD_NAME
        for thread in threading.enumerate()
    )


def finish_all() -> list[str]:
    """Wait for all background checkpoints of this process; what was lost so far, in words.

    For who is about to end the process. Waits no longer than each ``exit_timeout``.
    """
    late = [line for background in list(_active.values()) for line in background.finish()]
    return late + lost.unseen()


def _end() -> None:
    """At the end of the program, behind all threads: what was lost is told, and is no success."""
    lines = finish_all()
    if lines:
        lost.end_process(lines)


atexit.register(_end)
