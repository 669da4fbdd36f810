"""A handle on one store: what every verb stands on. Guards, scopes, and the one way to commit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from mldb.compaction.background import BackgroundCompaction
from mldb.errors import ClosedError
from mldb.history import kinds
from mldb.history.as_of import AsOf, resolve_scope
from mldb.history.snapshot import StateSurface
from mldb.log import format as fmt
from mldb.log import native
from mldb.log.frame import Record
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.address import CommitRow
from mldb.log.log import Log
from mldb.log.view import View
from mldb.options import Options
from mldb.query.surface import QuerySurface
from mldb.state.background import Background
from mldb.tensors.border import MapBorder
from mldb.tensors.cache import ByteCache
from mldb.tensors.reads import GRAIN_NS
from mldb.tensors.scope import Scope, Source, make_scope, read_array, read_known
from mldb.write.buffers import BufferPool
from mldb.write.duplicates import Duplicates
from mldb.write.metric_log import MetricLog, Waiting
from mldb.write.metric_plans import PackedRows
from mldb.write.rules import EpochRule
from mldb.write.safe_points import is_forced

if TYPE_CHECKING:
    from mldb.lake.consolidation.watch import PolicyWatch
    from mldb.lake.states import LakeStates
    from mldb.log.index.columns import MetadataOf
    from mldb.log.pending import PendingSegment
    from mldb.query.queries import Queries
    from mldb.state.checkpointing import CheckpointJob
    from mldb.write.reclaimable import Reclaimable
    from mldb.write.references import References
    from mldb.write.staging import Staging

_NO_EXTRA: Mapping[str, object] = {}
_INTERRUPTED: Mapping[str, object] = {"interrupted": True}

# The id of this process, kept current over forks: asking the system costs every read 0.2 µs.
_process = [os.getpid()]


def _note_fork() -> None:
    _process[0] = os.getpid()


os.register_at_fork(after_in_child=_note_fork)


class Handle(StateSurface, QuerySurface):
    """The state of one open store. Any thread; refuses use after close and in a forked child."""

    def __init__(self, fs: FileSystem, options: Options, metadata_of: MetadataOf) -> None:
        self.options = options
        self.path = fs.root
        self._pid = _process[0]
        self._metadata_of = metadata_of
        self._closed = False
        self._log = Log(fs, options, known=kinds.KNOWN_KINDS, metadata_of=metadata_of)
        self._state = self._log.state
        border = MapBorder(fs, fixed=options.map_bytes, writable=options.mode == "rw")
        self._source = Source(
            self._log, border, ByteCache(options.cache_bytes, "the cache of decoded tensors")
        )
        self._buffers = BufferPool()
        self._duplicates = Duplicates(options.deduplicate, self._source.door, self._state.head)
        # Tensors of fewer bytes are stored as they come, one by one.
        least = 0 if options.compression is not None else self._duplicates.least
        self._plain_below = min(least, options.segment_bytes + 1, fmt.PAGE_ALIGN_FROM)
        self._lake_states: dict[str, Any] = {}  # one mldb.lake.states.LakeStates, when needed
        self._policy_watch: PolicyWatch | None = None  # made with the first lake
        self._made_queries: dict[str, Any] = {}  # one mldb.query.queries.Queries, when needed
        self._epochs = EpochRule()
        self._compaction = BackgroundCompaction(self._log)
        self._found_reclaimable: dict[str, Reclaimable] = {}  # one, when needed
        self._background = Background(
            options.pending_checkpoints, exit_timeout=options.exit_timeout, store=fs.root
        )
        self._metrics = MetricLog(self._log, self._epochs, self._background)

    def _is_forked(self) -> bool:
        """Whether this is a forked child of the process that opened the store."""
        return _process[0] != self._pid

    def _guard(self) -> None:
        """Refuse use after close and in a forked child."""
        if self._closed:
            raise ClosedError(
                f"the store {self.path} was closed; mldb.open({self.path!r}) opens it again"
            )
        if self._is_forked():
            raise ClosedError(
                f"opened in process {self._pid}, used in its forked child {_process[0]}: call "
                f"mldb.open({self.path!r}) in the child (in a DataLoader worker, in "
                "worker_init_fn or lazily)"
            )

    def _scope(self, as_of: AsOf = None) -> Scope:
        if self._closed or _process[0] != self._pid:
            self._guard()
        return self._scope_of(self._state.head(), as_of)

    def _scope_of(self, view: View, as_of: AsOf) -> Scope:
        if as_of is None:
            return make_scope((self._source, view, view.commit, view.intervals))
        found = view.epochs.get(as_of) if type(as_of) is int else None
        row, intervals = found or resolve_scope(view, as_of)
        return make_scope((self._source, view, row, intervals))

    def _read(self, name: str, as_of: AsOf = None) -> Any:
        if self._closed or _process[0] != self._pid:
            self._guard()
        source, view, twin = self._source, self._state.head(), native.twin
        if twin is not None:
            array = twin.read_as_of(source, view, as_of, name, GRAIN_NS)
            if array is not None:
                return array
        elif type(as_of) is int and type(name) is str:
            epochs, found = source.found
            known = found.get((name, as_of)) if epochs is view.epochs else None
            if known is not None:
                return read_known(source, view, known, name)
        scope = self._scope_of(view, as_of)
        entry = scope.tensor_entry(name)
        array = read_array(scope, entry, name)
        if twin is None and type(as_of) is int and type(name) is str:
            source.remember(scope, as_of, name, entry)
        return array

    def _known_lakes(self) -> LakeStates:
        """What this handle knows of its lakes; made when first needed."""
        known: LakeStates | None = self._lake_states.get("")
        if known is None:
            from mldb.lake.states import LakeStates

            made = LakeStates(self.options.lake_cache_bytes, saves=self.options.mode == "rw")
            known = self._lake_states.setdefault("", made)
        return known

    def _queries(self) -> Queries:
        """What answers the queries of this handle; made when first needed."""
        self._guard()
        made: Queries | None = self._made_queries.get("")
        if made is None:
            from mldb.query.queries import Queries  # it imports DuckDB's half of the package

            new = Queries(self._known_lakes, saves=self.options.mode == "rw")
            made = self._made_queries.setdefault("", new)
        return made

    def _close_log(self) -> None:
        """Save what is known of lakes where that is worth it, and close the log.

        What others hold of lakes stays readable.
        """
        self._compaction.close()
        self._source.reads.tell()
        for queries in self._made_queries.values():
            queries.close()
        try:
            self._metrics.close()
        finally:
            self._close_rest()

    def _close_rest(self) -> None:
        try:
            for known in self._lake_states.values():
                view = self._state.view
                known.close(make_scope((self._source, view, view.commit, view.intervals)))
        finally:
            self._log.close()

    def begin(self) -> Scope:
        """Return the newest head, behind our own checkpoints; a transaction begins on it."""
        self._settle_background()
        return self._scope()

    def new_staging(self, *, fix: bool, checkpoint: bool = False) -> Staging:
        """Return an empty staging area for one transaction, or for one checkpoint."""
        from mldb.write.staging import Staging

        if self._closed or _process[0] != self._pid:
            self._guard()
        self._log.sequencer  # noqa: B018 - raises ReadOnlyError before any work is done
        options, found = self.options, self._duplicates
        spill = options.spill_bytes
        # A pending segment is synced when it is published. Who waits for no disk has one only
        # where a batch fits no other segment.
        together = spill if options.durability == "commit" else max(spill, options.segment_bytes)
        return Staging(
            self._log.pending_segment,
            spill if fix else fmt.PAYLOAD_BYTES_MAX,
            fix=fix,
            together=together,
            compression=self.options.compression,
            buffers=self._buffers,
            duplicates=found,
            least=found.least_in_checkpoints if checkpoint else found.least,
        )

    def commit_staging(
        self, staging: Staging, epoch: int | None, validate: Callable[[View], None] | None = None
    ) -> CommitRow:
        """Commit what is staged as one batch."""
        self._settle_background()
        return self._commit_staging(staging, epoch, validate)

    def _commit_staging(
        self,
        staging: Staging,
        epoch: int | None,
        validate: Callable[[View], None] | None,
    ) -> CommitRow:
        records = self._records_of(staging)
        return self._commit_staged(staging, records, epoch, validate)

    def _records_of(self, staging: Staging) -> list[Record]:
        """Return what is staged with bytes, as far as it is not in a pending segment; called once.

        References are left to :meth:`_commit_staged`.
        """
        records = staging.records()
        if (
            staging.pending is None
            and sum(record.payload_length for record in records) > self.options.segment_bytes
        ):
            staging.open_pending()
        if staging.pending is None:
            return records
        # Outside the commit lock: other writers go on while the payloads are written.
        staging.pending.add(records)
        return []

    def _commit_staged(
        self,
        staging: Staging,
        records: list[Record],
        epoch: int | None,
        validate: Callable[[View], None] | None,
        *,
        interrupted: bool = False,
    ) -> CommitRow:
        """Commit records and the references of a staging area, and note what is new in it."""
        row = self._commit_referring(
            staging.references,
            records,
            epoch,
            validate,
            staging.pending,
            interrupted=interrupted,
        )
        looked_up = staging.looked_up()
        if looked_up:
            self._duplicates.note(looked_up, row.lsn)
        return row

    def _commit_referring(
        self,
        references: References,
        records: list[Record],
        epoch: int | None,
        validate: Callable[[View], None] | None = None,
        pending: PendingSegment | None = None,
        *,
        interrupted: bool = False,
    ) -> CommitRow:
        """Commit records and references; where the owner of one is gone, its bytes."""
        from mldb.write.references import OwnersGone

        while True:
            every = [*records, *references.records()]
            check = references.confirming(validate)
            try:
                return self._commit(every, epoch, check, pending, interrupted=interrupted)
            except OwnersGone:
                references.give_up(pending)

    def _commit(
        self,
        records: list[Record],
        epoch: int | None,
        validate: Callable[[View], None] | None = None,
        pending: PendingSegment | None = None,
        *,
        interrupted: bool = False,
    ) -> CommitRow:
        if self._closed or _process[0] != self._pid:
            self._guard()
        if self._metrics.waiting:
            self._metrics.flush_before()
        rule = self._epochs
        decide = rule.join if epoch is None and validate is None else rule.choice(epoch, validate)
        extra = _INTERRUPTED if interrupted or is_forced() else _NO_EXTRA
        row = self._log.sequencer.commit(records, decide, pending, extra)
        self._source.reads.tell_if_due()
        return row

    def _settle_background(self) -> None:
        """Wait for checkpoints that are still on their way: commits come in the order of calls.

        Raises ReentryError where they wait for an outer call of this thread.
        """
        background = self._background
        if background.busy() and not background.is_inside():
            self._guard()  # a forked child has no part in what its parent has on the way
            background.drain()

    def metric_rows(self, values: Mapping[str, Any], step: int | None) -> PackedRows:
        """Return the rows of metrics logged now. Raises errors that name the metric."""
        return self._metrics.plans.rows(values, step, self._log.fs.time_ns())

    def _settle_metrics(self) -> None:
        if self._metrics.waiting:
            self._metrics.flush()

    def _writer(self) -> Callable[[CheckpointJob], CommitRow]:
        """What writes a checkpoint behind: first the metrics that were logged before it."""
        last = self._metrics.waiting[-1:]
        return partial(self._write_behind, last[0]) if last else self._write_job

    def _write_behind(self, until: Waiting, job: CheckpointJob) -> CommitRow:
        self._metrics.flush_before(until)
        return self._write_job(job)

    def _write_job(self, job: CheckpointJob) -> CommitRow:
        from mldb.state.checkpointing import stage
        from mldb.state.planning import commit_planned

        staging = self.new_staging(fix=False, checkpoint=True)
        try:
            stage(job, staging)
            records = self._records_of(staging)

            def commit(more: list[Record], check: Callable[[View], None]) -> CommitRow:
                return self._commit_staged(
                    staging, records + more, job.epoch, check, interrupted=job.interrupted
                )

            row = commit_planned(job, self._log.head, commit)
        finally:
            staging.discard()
        self._compaction.look()
        return row
