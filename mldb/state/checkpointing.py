"""Taking model checkpoints: at once, or fixed at the call and written behind.

``wait=False`` copies the state into a reused buffer (one memcpy, over two threads) and returns. One
background thread per handle hashes, writes and syncs, all in calls that run without the GIL. The
queue is bounded; an error surfaces at the next write, at ``result()`` and at ``close()``.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final

import numpy as np

from mldb.errors import InvalidTypeError
from mldb.history.checkpoints import Checkpoint
from mldb.history.kinds.checkpoints import CheckpointInfo, checkpoint_taken
from mldb.log.index.address import CommitRow, Lsn, to_time
from mldb.names import check_name
from mldb.state.tree import flatten
from mldb.tensors.codec import Prepared, pack_metadata, prepare, unpack_metadata
from mldb.write.staging import Staging

_ALIGN: Final = 64
_SPLIT_BYTES: Final = 32 << 20  # from here a second thread speeds the copy up


@dataclass(frozen=True, slots=True)
class CheckpointJob:
    """A state ready to be written: names with bytes, aliases, skeleton, and what to call it."""

    name: str
    epoch: int
    step: int | None
    metrics: dict[str, Any]
    skeleton: bytes
    tensors: dict[str, Prepared]
    aliases: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(item.nbytes for item in self.tensors.values())


def make_job(
    state: Any, *, epoch: int, step: int | None, name: str | None, metrics: dict[str, Any] | None
) -> CheckpointJob:
    """Take *state* apart without copying it, so it must stay unchanged until it is written.

    Raises InvalidTypeError, InvalidValueError, InvalidNameError and LimitError.
    """
    if step is not None and (isinstance(step, bool) or not isinstance(step, int | np.integer)):
        raise InvalidTypeError(f"step is a {type(step).__name__}, not an int")
    if name is None:
        name = f"epoch-{epoch}" if step is None else f"epoch-{epoch}-step-{step}"
    check_name(name)
    flat = flatten(state)
    tensors = {key: prepare(tensor) for key, tensor in flat.tensors.items()}
    step = None if step is None else int(step)
    # Through bytes and back: nested values of the caller's may change before they are written.
    fixed = unpack_metadata(pack_metadata(metrics or {}))
    return CheckpointJob(name, epoch, step, fixed, flat.skeleton, tensors, flat.aliases)


def stage(job: CheckpointJob, staging: Staging) -> None:
    """Stage the tensors and the checkpoint itself."""
    aliases: dict[str, list[bytes]] = {}
    for alias, holder in job.aliases.items():
        aliases.setdefault(holder, []).append(check_name(alias))
    for name, prepared in job.tensors.items():
        staging.put_tensor(check_name(name), prepared, tuple(aliases.get(name, ())))
    count = len(job.tensors) + len(job.aliases)
    info = CheckpointInfo(job.name, job.step, job.metrics, count, job.nbytes)
    staging.add_record(checkpoint_taken(info, job.skeleton))


def checkpoint_of(job: CheckpointJob, row: CommitRow, stall_ms: float) -> Checkpoint:
    """Describe a committed checkpoint."""
    count = len(job.tensors) + len(job.aliases)
    return Checkpoint(
        job.name,
        Lsn(row.lsn),
        row.epoch,
        job.step,
        to_time(row.time),
        job.metrics,
        count,
        job.nbytes,
        stall_ms,
    )


class PendingCheckpoint:
    """A checkpoint on its way to the log. Any thread.

    ``stall_ms`` is how long the call that made it took: the wait for a free buffer and the copy.
    """

    def __init__(self, name: str, epoch: int) -> None:
        self.name = name
        self.epoch = epoch
        self.stall_ms = 0.0
        self._finished = threading.Event()
        self._checkpoint: Checkpoint | None = None
        self._error: BaseException | None = None
        self.delivered = False
        """Whether the error, if any, has been raised to someone."""

    @property
    def done(self) -> bool:
        """Whether it is stored, or has failed."""
        return self._finished.is_set()

    def result(self, timeout: float | None = None) -> Checkpoint:
        """Wait until the checkpoint is stored and return it.

        Raises what the write raised, and TimeoutError after *timeout* seconds; the write goes on
        then.
        """
        if not self._finished.wait(timeout):
            raise TimeoutError(
                f"checkpoint {self.name!r} is not stored after {timeout} s; it goes on behind"
            )
        if self._error is not None:
            self.delivered = True
            raise self._error
        assert self._checkpoint is not None
        return self._checkpoint

    @property
    def error(self) -> BaseException | None:
        """What the write raised, once done."""
        return self._error

    def finish(self, checkpoint: Checkpoint | None, error: BaseException | None) -> None:
        """Called by the background thread once."""
        self._checkpoint = checkpoint
        self._error = error
        self._finished.set()

    def __repr__(self) -> str:
        """One line: name, epoch and whether it is done."""
        state = "failed" if self._error is not None else "stored" if self.done else "on its way"
        return f"<PendingCheckpoint {self.name!r} epoch={self.epoch} {state}>"


class _Buffer:
    """A reused copy target. Owned by one job at a time."""

    def __init__(self) -> None:
        self.data = np.empty(0, dtype=np.uint8)

    def copy_of(self, job: CheckpointJob) -> CheckpointJob:
        """Return *job* with its bytes copied here; waits until the copy is complete.

        What ``prepare`` had to copy already, as from a device into page-locked memory, nobody else
        can change: it is not copied again.
        """
        shared = {name: item for name, item in job.tensors.items() if not item.owned}
        sizes = [-(-item.nbytes // _ALIGN) * _ALIGN for item in shared.values()]
        if self.data.nbytes < sum(sizes):
            self.data = np.empty(sum(sizes), dtype=np.uint8)
        starts = accumulate(sizes, initial=0)
        parts = [
            (self.data[start : start + item.nbytes], item)
            for start, item in zip(starts, shared.values(), strict=False)
        ]
        _copy_all(parts, sum(sizes))
        copied = {
            name: item._replace(buffers=(target.data,), owned=True)
            for name, (target, item) in zip(shared, parts, strict=True)
        }
        return replace(job, tensors={**job.tensors, **copied})


_Part = tuple[np.ndarray[Any, np.dtype[np.uint8]], Prepared]


def _copy_all(parts: list[_Part], total: int) -> None:
    if total < _SPLIT_BYTES:
        _copy(parts)
        return
    half = 0
    split = 0
    while half < total // 2:
        half += parts[split][1].nbytes
        split += 1
    from concurrent.futures import ThreadPoolExecutor  # costs every import of mldb 5 ms

    with ThreadPoolExecutor(max_workers=1) as pool:
        other = pool.submit(_copy, parts[split:])
        _copy(parts[:split])
        other.result()


def _copy(parts: list[_Part]) -> None:
    for target, prepared in parts:
        place = 0
        for buffer in prepared.buffers:
            source = np.frombuffer(buffer, dtype=np.uint8)
            np.copyto(target[place : place + source.nbytes], source)
            place += source.nbytes


Write = Callable[[CheckpointJob], CommitRow]
_Queued = tuple[CheckpointJob, _Buffer, PendingCheckpoint, Write]


class Background:
    """Writes checkpoints behind the training loop, in the order given.

    Any thread may call any method. ``_free`` holds the idle buffers and so bounds the queue;
    ``_lock`` guards ``_pending``.
    """

    def __init__(self, depth: int) -> None:
        self._free: queue.SimpleQueue[_Buffer] = queue.SimpleQueue()
        for _ in range(depth):
            self._free.put(_Buffer())
        self._jobs: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pending: list[PendingCheckpoint] = []
        self._thread: threading.Thread | None = None

    def submit(self, job: CheckpointJob, started: float, write: Write) -> PendingCheckpoint:
        """Fix the value of *job* and queue it for *write*; waits while every buffer is in use.

        *write* is held until the job is done and no longer, as it keeps the store alive. *started*
        is when the caller was called (perf_counter), from which ``stall_ms`` counts.
        """
        pending = PendingCheckpoint(job.name, job.epoch)
        buffer = self._free.get()
        try:
            fixed = buffer.copy_of(job)
        except BaseException:
            self._free.put(buffer)
            raise
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="mldb-checkpoints", daemon=True
                )
                self._thread.start()
            self._pending.append(pending)
        pending.stall_ms = (time.perf_counter() - started) * 1e3
        self._jobs.put((fixed, buffer, pending, write))
        return pending

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, buffer, pending, write = item
            try:
                row = write(job)
                pending.finish(checkpoint_of(job, row, pending.stall_ms), None)
            except BaseException as error:  # noqa: BLE001 - it is handed to the training thread
                pending.finish(None, error)
            finally:
                del job, item, write
                self._free.put(buffer)

    @property
    def thread(self) -> threading.Thread | None:
        """The background thread, once started."""
        return self._thread

    def drain(self) -> None:
        """Wait for everything queued, then raise the first error that nobody has seen yet."""
        with self._lock:
            pending, self._pending = self._pending, []
        failed: BaseException | None = None
        for item in pending:
            item._finished.wait()
            if item.error is not None and not item.delivered:
                item.delivered = True
                failed = failed or item.error
        if failed is not None:
            raise failed

    def raise_failed(self) -> None:
        """Raise the error of a finished checkpoint that nobody has seen yet; does not wait."""
        with self._lock:
            finished = [item for item in self._pending if item.done]
            self._pending = [item for item in self._pending if not item.done]
        for item in finished:
            if item.error is not None and not item.delivered:
                item.delivered = True
                raise item.error

    def busy(self) -> bool:
        """Whether anything is queued or unseen."""
        return bool(self._pending)

    def close(self) -> None:
        """Write what is queued and end the thread; raises like :meth:`drain`."""
        try:
            self.drain()
        finally:
            if self._thread is not None:
                self._jobs.put(None)
                self._thread.join()
                self._thread = None
