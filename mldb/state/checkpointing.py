"""Taking model checkpoints: a state taken apart, staged, and what its taker gets.

With ``wait=False`` it is written behind the training loop: see :mod:`mldb.state.background`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from operator import itemgetter
from queue import Empty, SimpleQueue
from typing import Any, Final

import numpy as np

from mldb import keys
from mldb.deferred import dataclass
from mldb.errors import ClosedError, InvalidTypeError
from mldb.history.checkpoints import Checkpoint
from mldb.log import native
from mldb.log.index.address import CommitRow, Lsn, to_time
from mldb.log.ownership import OwnedLock, held_by_me
from mldb.names import check_name
from mldb.state import lost
from mldb.state.tree import flatten
from mldb.tensors.codec import Prepared, pack_metadata, prepare_named, unpack_metadata
from mldb.write.staging import Staging

_NBYTES: Final = itemgetter(Prepared._fields.index("nbytes"))
_LOOK_SECONDS: Final = 0.05  # who waits looks again after this long


class Naming:
    """What a checkpoint is called: as its taker said, or after its epoch and step, and unique.

    A name that was not given may change until the commit: see ``mldb.state.planning``.
    """

    __slots__ = ("base", "is_given", "name")

    def __init__(self, given: str | None, epoch: int, step: int | None) -> None:
        """Raises InvalidTypeError and InvalidNameError."""
        self.is_given = given is not None
        if given is None:
            given = f"epoch-{epoch}" if step is None else f"epoch-{epoch}-step-{step}"
        check_name(given)
        self.base = self.name = given


@dataclass(frozen=True, slots=True)
class CheckpointJob:
    """A state ready to be written: names with bytes, aliases, skeleton, and what to call it."""

    naming: Naming
    epoch: int
    step: int | None
    metrics: dict[str, Any]
    skeleton: bytes
    tensors: dict[str, Prepared]
    aliases: dict[str, str]
    interrupted: bool = False
    """Taken in a signal handler, in the middle of a step: see ``save_on_signal``."""
    prune: bool = False
    """Deletes at the head what earlier checkpoints stored and this one does not have."""

    @property
    def name(self) -> str:
        """What it is called, as far as known; final once it is stored."""
        return self.naming.name

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(map(_NBYTES, self.tensors.values()))


def make_job(
    state: Any,
    *,
    epoch: int,
    step: int | None,
    name: str | None,
    metrics: dict[str, Any] | None,
    interrupted: bool = False,
    prune: bool = False,
) -> CheckpointJob:
    """Take *state* apart without copying it, so it must stay unchanged until it is written.

    Raises InvalidTypeError, InvalidValueError, InvalidNameError and LimitError.
    """
    if step is not None and (isinstance(step, bool) or not isinstance(step, int | np.integer)):
        raise InvalidTypeError(f"step is a {type(step).__name__}, not an int")
    if not isinstance(prune, bool):
        raise InvalidTypeError(f"prune is a {type(prune).__name__}, not a bool")
    naming = Naming(name, epoch, step)
    ready: dict[str, Prepared] = {}
    flat = flatten(state, ready=ready)
    tensors = ready
    if len(ready) < len(flat.tensors):
        tensors = {
            key: ready.get(key) or prepare_named(key, value) for key, value in flat.tensors.items()
        }
    step = None if step is None else int(step)
    # Through bytes and back: nested values of the caller's may change before they are written.
    fixed = unpack_metadata(pack_metadata({} if metrics is None else metrics, "metrics"))
    return CheckpointJob(
        naming, epoch, step, fixed, flat.skeleton, tensors, flat.aliases, interrupted, prune
    )


def stage(job: CheckpointJob, staging: Staging) -> None:
    """Stage the tensors; the checkpoint itself is planned when it is committed."""
    aliases: dict[str, list[bytes]] = {}
    for alias, holder in job.aliases.items():
        aliases.setdefault(holder, []).append(check_name(alias))
    prepared, count = list(job.tensors.values()), len(job.tensors)
    found = _keys_of(job.tensors)
    held = [number for number, name in enumerate(job.tensors) if name in aliases] if aliases else []
    stops = iter([*held, count])
    number, stop = 0, next(stops)
    ahead = staging.look_ahead(found, prepared)
    try:
        while number < count:
            if number > stop:
                stop = next(stops)
            number = staging.put_run(found, prepared, number, stop)
            if number < count:
                name = found[number][len(keys.TENSORS) :]
                others = aliases.get(name.decode(), ())
                staging.put_tensor(name, prepared[number], tuple(others), ahead.result(number))
                number += 1
    finally:
        ahead.close()


def _keys_of(names: Iterable[str]) -> list[bytes]:
    twin = native.twin
    found: list[bytes] | None = None if twin is None else twin.tensor_keys(names)
    return [keys.TENSORS + check_name(name) for name in names] if found is None else found


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
        job.interrupted,
    )


class PendingCheckpoint:
    """A checkpoint on its way to the log. Any thread; not in a forked child.

    ``stall_ms`` is how long the call that made it took: the wait for a free buffer and the copy.
    ``name`` is what it will be called; where none was given and another checkpoint, of another
    thread or process, is stored under it first, it becomes the next free one.
    """

    def __init__(self, name: str, epoch: int, turn: OwnedLock, store: str) -> None:
        self.name = name
        self.epoch = epoch
        self.stall_ms = 0.0
        self._store = store
        self._turn = turn  # held by who writes
        self._number = next(lost.numbers)
        self._pid = os.getpid()
        self._done = False
        self._seen = False
        self._checkpoint: Checkpoint | None = None
        self._error: BaseException | None = None
        self._waiters: deque[SimpleQueue[None]] = deque()

    @property
    def done(self) -> bool:
        """Whether it is stored, or has failed."""
        return self._done

    @property
    def succeeded(self) -> bool:
        """Whether it is stored."""
        return self._done and self._error is None

    @property
    def error(self) -> BaseException | None:
        """What the write raised, once done."""
        if self._error is not None:
            lost.mark_seen(self._number)
        return self._error

    @property
    def what(self) -> str:
        """What it is, for messages."""
        return f"checkpoint {self.name!r} (epoch {self.epoch}) of {self._store or 'a store'}"

    def result(self, timeout: float | None = None) -> Checkpoint:
        """Wait until the checkpoint is stored and return it.

        Raises what the write raised, and TimeoutError after *timeout* seconds; the write goes on
        then. Raises ReentryError in a signal handler or finalizer that the write waits for.
        """
        if not self.wait(timeout):
            raise TimeoutError(
                f"checkpoint {self.name!r} is not stored after {timeout} s; it goes on behind"
            )
        if self._error is not None:
            self.mark_seen()
            raise self._error
        assert self._checkpoint is not None
        return self._checkpoint

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is done, at most *timeout* seconds; return whether it is.

        Raises ReentryError where that would never be: the write is this thread's own, or waits for
        a lock that an outer call of this thread holds. Raises ClosedError in a forked child.
        """
        if self._done:
            return True
        if os.getpid() != self._pid:
            raise ClosedError(f"{self.what} is written by process {self._pid}, not by its child")
        deadline = None if timeout is None else time.monotonic() + timeout
        waiter: SimpleQueue[None] = SimpleQueue()
        self._waiters.append(waiter)
        try:
            while not self.done:
                left = _LOOK_SECONDS
                if deadline is not None:
                    left = min(left, deadline - time.monotonic())
                    if left <= 0:
                        return False
                self._refuse_to_wait_for_ourselves()
                with suppress(Empty):
                    waiter.get(timeout=left)
            return True
        finally:
            with suppress(ValueError):  # it was woken
                self._waiters.remove(waiter)

    def _refuse_to_wait_for_ourselves(self) -> None:
        holder = self._turn.holder
        if holder is None:
            return
        if self._turn.is_inside():
            raise self._turn.reentry()
        lock = held_by_me(holder[0])
        if lock is not None:
            raise lock.reentry()

    @property
    def is_unseen(self) -> bool:
        """Whether it failed, and the error has been raised to nobody."""
        return self._error is not None and not self._seen

    def failure(self) -> BaseException:
        """The error of a failed one, for who is about to raise it."""
        assert self._error is not None
        return self._error

    def mark_seen(self) -> None:
        """The error is about to be raised."""
        self._seen = True
        lost.mark_seen(self._number)

    def finish(self, checkpoint: Checkpoint | None, error: BaseException | None) -> None:
        """Called by who writes, once."""
        if error is not None:
            kind = type(error).__name__
            lost.note(self._number, f"{self.what} was not stored: {kind}: {error}")
        if checkpoint is not None:
            self.name = checkpoint.name
        self._checkpoint, self._error = checkpoint, error
        self._done = True
        while self._waiters:
            with suppress(IndexError):  # it gave up just now
                self._waiters.popleft().put(None)

    def __repr__(self) -> str:
        """One line: name, epoch and whether it is done."""
        state = "failed" if self._error is not None else "stored" if self._done else "on its way"
        return f"<PendingCheckpoint {self.name!r} epoch={self.epoch} {state}>"
