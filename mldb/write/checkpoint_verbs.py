"""Taking checkpoints, and saving when a signal comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, overload

from mldb.errors import InvalidTypeError
from mldb.write.handle import Handle
from mldb.write.rules import check_epoch
from mldb.write.safe_points import is_forced, require_main_thread, safe_point

if TYPE_CHECKING:
    from mldb.history.checkpoints import Checkpoint
    from mldb.log.frame import Record
    from mldb.log.index.address import CommitRow
    from mldb.log.pending import PendingSegment
    from mldb.log.view import View
    from mldb.state.checkpointing import CheckpointJob, PendingCheckpoint
    from mldb.write.preemption import SavedOnSignal, Then
    from mldb.write.shared_checkpoint import SharedCheckpoint


class CheckpointVerbs(Handle):
    """The checkpoints of a database. Any thread; what has to do with signals in the main one."""

    @overload
    def checkpoint(
        self,
        state: Any,
        *,
        epoch: int,
        step: int | None = None,
        name: str | None = None,
        metrics: dict[str, Any] | None = None,
        prune: bool = False,
        wait: Literal[True] = True,
    ) -> Checkpoint: ...
    @overload
    def checkpoint(
        self,
        state: Any,
        *,
        epoch: int,
        step: int | None = None,
        name: str | None = None,
        metrics: dict[str, Any] | None = None,
        prune: bool = False,
        wait: Literal[False],
    ) -> PendingCheckpoint: ...

    def checkpoint(
        self,
        state: Any,
        *,
        epoch: int,
        step: int | None = None,
        name: str | None = None,
        metrics: dict[str, Any] | None = None,
        prune: bool = False,
        wait: bool = True,
    ) -> Checkpoint | PendingCheckpoint:
        """Store a model state as one atomic commit: a module, an optimizer, or a tree of such.

        ``{"model": m, "optimizer": o, "scheduler": s, "rng": ..., "cursor": ...}`` keeps its types
        and comes back bit-exactly with :meth:`load`. Tensors are also readable by name
        (``db["model/layer.weight"]``); those of a bare model by its keys. With ``wait=False`` the
        value is fixed at the call and written behind; the result has ``.done``, ``.result()``,
        ``.stall_ms``, and a failure is raised at the next write and at close.

        Without a *name* it is called ``epoch-3`` or ``epoch-3-step-70``; while the lineage has a
        checkpoint of that name, ``epoch-3~2``, ``epoch-3~3`` and so on. A *name* that is given goes
        to the newest checkpoint it was given to.

        *metrics* are plain values that belong to the checkpoint. They are no points of curves:
        what ``db.metrics`` is to have goes through :meth:`log`.

        What it leaves behind: a tensor of an earlier checkpoint that this one does not have stays
        readable at the head as it was stored (``db[name]``); :meth:`load` and :meth:`state_dict`
        take those of the newest checkpoint alone. With ``prune=True`` the same commit deletes it at
        the head: every tensor that a checkpoint of any name stored last, and that this one does not
        have. What other calls stored last stays, and so does all that was, for ``as_of``.

        Cost: O(bytes of the state): a hash of each tensor, a write of those that changed. The call
        with ``wait=False`` takes a copy; ``prune=True`` adds O(tensors).
        """
        from mldb.state.checkpointing import checkpoint_of, make_job
        from mldb.state.planning import free_name

        started = time.perf_counter()
        self._guard()
        self._log.sequencer  # noqa: B018 - raises ReadOnlyError before any work is done
        checked = check_epoch(epoch)
        if checked is None:
            raise InvalidTypeError("a checkpoint needs an epoch")
        background = self._background
        background.raise_failed()
        job = make_job(
            state,
            epoch=checked,
            step=step,
            name=name,
            metrics=metrics,
            interrupted=is_forced(),
            prune=prune,
        )
        taken: Checkpoint | PendingCheckpoint
        if wait:
            self._settle_background()
            done = self._write_job(job)
            taken = checkpoint_of(job, done, (time.perf_counter() - started) * 1e3)
        else:
            head = self._log.head()
            self._epochs.check(head, checked)
            if name is None:
                job.naming.name = free_name(head, job.naming.base, background.names())
            taken = background.submit(job, started, self._writer())
        safe_point()
        return taken

    def shared_checkpoint(
        self,
        *,
        epoch: int | None = None,
        step: int | None = None,
        name: str | None = None,
        metrics: dict[str, Any] | None = None,
    ) -> SharedCheckpoint:
        """Begin a checkpoint that several processes write side by side, and this one commits.

        For the ranks of a job on one machine: each writes its parts of the tensors into one file,
        without a lock; see :class:`mldb.write.shared_checkpoint.SharedCheckpoint`. *epoch* None is
        that of the head at the commit; the rest is as in :meth:`checkpoint`. Raises what that
        raises, EpochOrderError at once where it is seen at once.

        Cost: O(1); its commit O(tensors), and O(bytes) of those that several wrote parts of.
        """
        from mldb.state.checkpointing import Naming
        from mldb.tensors.codec import pack_metadata, unpack_metadata
        from mldb.write.shared_checkpoint import SharedCheckpoint

        self._guard()
        checked = check_epoch(epoch)
        if checked is not None:
            self._epochs.check(self._log.head(), checked)
        Naming(name, checked or 0, step)
        spill, segment = self.options.spill_bytes, self.options.segment_bytes
        return SharedCheckpoint(
            self._log.pending_segment(),
            self._write_shared,
            lambda: self._log.head().commit.epoch,
            epoch=checked,
            step=step,
            name=name,
            metrics=unpack_metadata(pack_metadata(metrics or {}, "metrics")),
            appended_up_to=min(spill, segment) if self.options.durability == "commit" else segment,
        )

    def _write_shared(
        self, job: CheckpointJob, records: list[Record], pending: PendingSegment | None
    ) -> CommitRow:
        from mldb.state.planning import commit_planned

        self._guard()
        self._settle_background()

        def commit(more: list[Record], check: Callable[[View], None]) -> CommitRow:
            return self._commit(records + more, job.epoch, check, pending)

        row = commit_planned(job, self._log.head, commit)
        self._compaction.look()
        return row

    def save_on_signal(
        self,
        signum: int,
        fn: Callable[[], object],
        *,
        grace: float = 20.0,
        then: Then = "default",
    ) -> SavedOnSignal:
        """Call ``fn()`` when *signum* comes (SIGTERM of a preemption, say), where storing is safe.

        It runs once in the main thread, however often the signal comes, at the next safe point: the
        end of a :meth:`checkpoint`, a loader's next batch, :meth:`safe_point`, :meth:`close`, the
        end of the program. When none comes within *grace* seconds it runs between any two steps of
        the program that lie in no call of mldb, and the checkpoints that it takes are marked
        ``interrupted``. Then the handler that was there before runs; a default action (to end the
        process) is carried out, after background checkpoints are stored, unless
        ``then="continue"``. What *fn* raises comes out of the safe point instead.

        A forked child is not part of it. A second call for the same signal replaces the first; the
        functions of several databases run in the order of their calls. The result has ``cancel()``
        and is a context manager; closing the database cancels as well. Raises UsageError outside
        the main thread, InvalidTypeError, InvalidValueError.
        """
        self._guard()
        from mldb.write.preemption import save_on_signal

        return save_on_signal(self, signum, fn, grace, then)

    def safe_point(self) -> None:
        """Run what :meth:`save_on_signal` has waiting, if anything; call it between two steps.

        Costs next to nothing. Raises what the function raises, and UsageError outside the main
        thread.
        """
        self._guard()
        require_main_thread("safe_point")
        safe_point()
