"""The database: the composition root that ties the log, the projections and the verbs together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, NoReturn, TypeVar, overload

import numpy.typing as npt

from mldb import events, keys
from mldb.border import MapBorder
from mldb.cache import DecodedCache
from mldb.checkpointing import (
    Background,
    CheckpointJob,
    PendingCheckpoint,
    checkpoint_of,
    make_job,
    stage,
)
from mldb.codec import pack_metadata, prepare, unpack_metadata
from mldb.commit import EpochRule, check_epoch
from mldb.errors import (
    ClosedError,
    ConflictError,
    InvalidTypeError,
    InvalidValueError,
    MissingError,
)
from mldb.events import Event, events_of
from mldb.log import format as fmt
from mldb.log.address import EMPTY_COMMIT, CommitRow, Lsn
from mldb.log.backup import backup
from mldb.log.frame import Record
from mldb.log.log import Log, LogOptions
from mldb.log.os_fs import OsFileSystem
from mldb.log.pending import PendingSegment
from mldb.log.recovery import Recovery
from mldb.log.verify import VerifyReport, verify
from mldb.log.view import View
from mldb.log.writer import WriterOptions
from mldb.names import check_name
from mldb.options import Durability, Mode, Options, Verify
from mldb.projections import tags
from mldb.projections.checkpoints import Checkpoint
from mldb.reading import Scope, Source
from mldb.resolve import AsOf, resolve, snapshot_intervals
from mldb.snapshot import Snapshot, StateSurface
from mldb.staging import PACK_BELOW, Staging, metadata_draft, tensor_record
from mldb.tensors import TensorWriter
from mldb.transaction import Transaction

T = TypeVar("T")

DEFAULT_PATH = "ml_storage"


class MLDatabase(StateSurface, MutableMapping[str, Any]):
    """One open store. A context manager and a mapping from tensor names to arrays.

    Any thread may use it. A forked child may not: it opens its own. Arrays and views taken from it
    live as long as they are held, also after :meth:`close`. Made by :func:`mldb.open` or directly.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = DEFAULT_PATH,
        *,
        mode: Mode = "rw",
        durability: Durability = "commit",
        verify: Verify = "first",
        **options: Any,
    ) -> None:
        """Open the store at *path*, creating it when ``mode="rw"`` and nothing is there.

        *options* are the further fields of :class:`mldb.Options`. Raises FormatVersionError when
        the folder holds something else or a newer store, CorruptError, LockedError, StorageIOError,
        ReadOnlyError.
        """
        try:
            self.options = Options(mode=mode, durability=durability, verify=verify, **options)
        except TypeError as error:
            if isinstance(error, InvalidTypeError):
                raise
            raise InvalidTypeError(f"{error}; the options are the fields of mldb.Options") from None
        chosen = self.options
        self.path = _store_path(path, create=mode == "rw")
        self._pid = os.getpid()
        self._closed = False
        fs = OsFileSystem(self.path)
        writer = WriterOptions(durability, chosen.segment_bytes, chosen.segment_entries)
        self._log = Log(
            fs,
            LogOptions(mode, verify, writer, chosen.lock_timeout, events.KNOWN_KINDS),
            _metadata_columns,
        )
        border = MapBorder(fs, fixed=chosen.map_bytes, writable=mode == "rw")
        self._source = Source(self._log, border, DecodedCache(chosen.cache_bytes))
        self._epochs = EpochRule()
        self._background = Background(self._write_job, chosen.pending_checkpoints)

    # --- what is seen -----------------------------------------------------------------------------

    def _guard(self) -> None:
        """Refuse use after close and in a forked child."""
        if self._closed:
            raise ClosedError(
                f"the store {self.path} was closed; mldb.open({self.path!r}) opens it again"
            )
        if os.getpid() != self._pid:
            raise ClosedError(
                f"opened in process {self._pid}, used in its forked child {os.getpid()}: call "
                f"mldb.open({self.path!r}) in the child (in a DataLoader worker, in "
                "worker_init_fn or lazily)"
            )

    def _scope(self, as_of: AsOf = None) -> Scope:
        self._guard()
        view = self._log.head()
        if as_of is None:
            return Scope(self._source, view, view.commit, view.intervals)
        row = resolve(view, view.intervals, as_of)
        return Scope(self._source, view, row, snapshot_intervals(view, row))

    @property
    def epoch(self) -> int:
        """The epoch of the head; 0 before the first commit."""
        return self._scope().commit.epoch

    @property
    def lsn(self) -> Lsn:
        """The LSN of the head; 0 before the first commit."""
        return Lsn(self._scope().commit.lsn)

    @property
    def storage(self) -> MLDatabase:
        """The database itself, under the name that the original documents use."""
        return self

    @property
    def recovery(self) -> Recovery:
        """What opening had to repair.

        ``.clean``, dropped bytes and transactions, where they were saved.
        """
        return self._log.recovery

    @property
    def last_commit(self) -> Lsn:
        """The newest commit; after an interrupted call it tells whether that call was stored."""
        return self.lsn

    @overload
    def at(self, as_of: AsOf = None) -> Snapshot: ...
    @overload
    def at(self, *, epoch: int) -> Snapshot: ...
    @overload
    def at(self, *, lsn: int) -> Snapshot: ...
    @overload
    def at(self, *, time: datetime) -> Snapshot: ...
    @overload
    def at(self, *, tag: str) -> Snapshot: ...

    def at(
        self,
        as_of: AsOf = None,
        *,
        epoch: int | None = None,
        lsn: int | None = None,
        time: datetime | None = None,
        tag: str | None = None,
    ) -> Snapshot:
        """Return the snapshot at *as_of*, or at exactly one of epoch, lsn, time or tag; a context manager.

        Raises MissingError, VersionGoneError, InvalidTypeError, InvalidValueError.
        """
        asked: list[AsOf] = [item for item in (as_of, epoch, time, tag) if item is not None]
        if lsn is not None:
            asked.append(Lsn(lsn))
        if len(asked) > 1:
            raise InvalidValueError("at() takes one of as_of, epoch, lsn, time, tag")
        return Snapshot(self._scope(asked[0] if asked else None), self._guard)

    def tags(self) -> dict[str, Lsn]:
        """Return the tags and the commits that they name."""
        return tags.tags(self._scope().view)

    def pins(self) -> list[Lsn]:
        """Return the pinned commits, ascending."""
        return tags.pins(self._scope().view)

    def events(self, start: AsOf = None, stop: AsOf = None) -> Iterator[Event]:
        """Yield the events from commit *start* to commit *stop* (both included), in log order, on every lineage.

        ``Rewound`` events say where the lineage jumps. The range is fixed at the call. Raises
        CorruptError.
        """
        scope = self._scope()
        low = 1 if start is None else resolve(scope.view, scope.intervals, start).lsn
        high = scope.commit.lsn if stop is None else resolve(scope.view, scope.intervals, stop).lsn
        return self._events(scope.view, max(low, 1), high)

    def _events(self, view: View, low: int, high: int) -> Iterator[Event]:
        for row, frames in self._log.batches(view, low, high):
            yield from events_of(row, frames, "segments")

    def follow(
        self, start: AsOf = None, *, poll_seconds: float = 0.05, timeout: float | None = None
    ) -> Iterator[Event]:
        """Yield events as they are committed, by this process or another; after *start*, or from now on.

        Waits for more until *timeout* seconds pass without any (None: for ever, until the store is
        closed).
        """
        seen = self._scope(start).commit.lsn
        return self._follow(seen, poll_seconds, timeout)

    def _follow(self, seen: int, poll_seconds: float, timeout: float | None) -> Iterator[Event]:
        last = time.monotonic()
        while True:
            view = self._scope().view
            if view.commit.lsn > seen:
                yield from self._events(view, seen + 1, view.commit.lsn)
                seen = view.commit.lsn
                last = time.monotonic()
            elif timeout is not None and time.monotonic() - last > timeout:
                return
            else:
                time.sleep(poll_seconds)

    # --- committing -------------------------------------------------------------------------------

    def begin(self) -> Scope:
        """Return the newest head, on which a transaction begins."""
        return self._scope()

    def new_staging(self, *, fix: bool) -> Staging:
        """Return an empty staging area for one transaction."""
        self._guard()
        self._log.writer  # noqa: B018 - raises ReadOnlyError before any work is done
        spill = self.options.spill_bytes if fix else fmt.PAYLOAD_BYTES_MAX
        return Staging(
            self._log.pending_segment, spill, fix=fix, compression=self.options.compression
        )

    def commit_staging(
        self, staging: Staging, epoch: int | None, validate: Callable[[View], None] | None = None
    ) -> CommitRow:
        """Commit what is staged as one batch."""
        self._settle_background()
        return self._commit_staging(staging, epoch, validate)

    def _commit_staging(
        self, staging: Staging, epoch: int | None, validate: Callable[[View], None] | None
    ) -> CommitRow:
        records = staging.records()
        if (
            staging.pending is None
            and sum(record.payload_length for record in records) > self.options.segment_bytes
        ):
            staging.open_pending()
        if staging.pending is not None:
            # Outside the commit lock: other writers go on while the payloads are written.
            staging.pending.add(records)
            records = []
        return self._commit(records, epoch, validate, staging.pending)

    def _commit(
        self,
        records: list[Record],
        epoch: int | None,
        validate: Callable[[View], None] | None = None,
        pending: PendingSegment | None = None,
    ) -> CommitRow:
        self._guard()
        epoch = check_epoch(epoch)
        rule = self._epochs

        def decide(view: View) -> tuple[int, CommitRow]:
            if validate is not None:
                validate(view)
            return rule.choose(view, epoch), view.commit

        return self._log.commit(records, decide, pending)

    def _settle_background(self) -> None:
        """Commits come in the order of the calls.

        So wait for checkpoints that are still on their way.
        """
        background = self._background
        if background.busy() and threading.current_thread() is not background.thread:
            background.drain()

    def transaction(self, epoch: int | None = None) -> Transaction:
        """Return a transaction: ``with db.transaction() as txn``; all or nothing.

        *epoch* labels the commit; None takes the head's epoch. Raises EpochOrderError,
        ConflictError, LockedError, StorageFullError at the end of the block; then nothing is
        stored.
        """
        self._guard()
        return Transaction(self, check_epoch(epoch))

    def transact(
        self, fn: Callable[[Transaction], T], *, retries: int = 10, epoch: int | None = None
    ) -> T:
        """Run ``fn(txn)`` in a transaction.

        Again up to *retries* times on ConflictError; return its result.
        """
        for attempt in range(retries + 1):
            try:
                with self.transaction(epoch) as txn:
                    result = fn(txn)
                return result
            except ConflictError:
                if attempt == retries:
                    raise
                # Spread the retries of competing writers; the pid makes processes differ.
                time.sleep(
                    0.0005 * (1 + (os.getpid() + threading.get_ident()) % 7) * min(attempt + 1, 8)
                )
        raise AssertionError("unreachable")

    # --- tensors ----------------------------------------------------------------------------------

    def store_tensor(
        self,
        name: str,
        data: Any,
        metadata: dict[str, Any] | None = None,
        *,
        epoch: int | None = None,
    ) -> Lsn:
        """Store a new version of tensor *name*; return the LSN of its commit.

        *data*: NumPy array or scalar, torch tensor (any device), SciPy or torch sparse, ml_dtypes
        array, list of numbers; dtype, byte order, shape and layout are kept. *metadata*: a dict of
        plain values; None leaves it as it is, {} clears it. Raises InvalidNameError,
        InvalidTypeError, LimitError, EpochOrderError, StorageFullError, LockedError, ReadOnlyError,
        ClosedError; then nothing is stored.
        """
        self._settle_background()
        key = check_name(name)
        prepared = prepare(data)
        packed = None if metadata is None else pack_metadata(metadata)
        if prepared.nbytes > self.options.segment_bytes or self.options.compression is not None:
            return self._store_staged(key, prepared, packed, epoch)
        record = tensor_record(keys.TENSORS + key, prepared)
        if packed is not None:
            record.drafts.append(metadata_draft(keys.METADATA + key, packed))
        return Lsn(self._commit([record], epoch).lsn)

    def _store_staged(
        self, key: bytes, prepared: Any, packed: bytes | None, epoch: int | None
    ) -> Lsn:
        staging = self.new_staging(fix=False)
        try:
            staging.put_tensor(key, prepared)
            if packed is not None:
                staging.mark(events.METADATA_SET, keys.METADATA + key, packed)
            return Lsn(self.commit_staging(staging, epoch).lsn)
        finally:
            staging.discard()

    def __setitem__(self, name: str, data: Any) -> None:
        """``db[name] = data`` is :meth:`store_tensor`."""
        self.store_tensor(name, data)

    def create_tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        metadata: dict[str, Any] | None = None,
        *,
        epoch: int | None = None,
    ) -> TensorWriter:
        """Return a writer for a tensor that may be larger than RAM: ``with ... as w: w[a:b] = rows``.

        Committed when the block ends. Raises LimitError, InvalidTypeError, ReadOnlyError.
        """
        self._guard()
        self._log.writer  # noqa: B018 - raises ReadOnlyError before any work is done
        epoch = check_epoch(epoch)

        def publish(pending: PendingSegment) -> Lsn:
            self._settle_background()
            return Lsn(self._commit([], epoch, None, pending).lsn)

        return TensorWriter(
            name,
            tuple(shape),
            dtype,
            metadata=None if metadata is None else pack_metadata(metadata),
            open_pending=self._log.pending_segment,
            publish=publish,
        )

    def delete_tensor(self, name: str, *, epoch: int | None = None) -> Lsn:
        """End *name* and its metadata from here on.

        Earlier versions stay readable. Raises TensorNotFoundError.
        """
        return self._transact(lambda txn: txn.delete_tensor(name), epoch)

    def __delitem__(self, name: str) -> None:
        """``del db[name]`` is :meth:`delete_tensor`."""
        self.delete_tensor(name)

    def set_metadata(self, name: str, metadata: dict[str, Any], *, epoch: int | None = None) -> Lsn:
        """Replace the metadata of an existing tensor.

        Raises TensorNotFoundError, InvalidTypeError, LimitError.
        """
        return self._transact(lambda txn: txn.set_metadata(name, metadata), epoch)

    def store_model_layer(
        self, layer_id: str, weights: Any, biases: Any, *, epoch: int | None = None
    ) -> Lsn:
        """Store ``{layer}_weights`` and ``{layer}_biases`` with metadata type, layer and position, and the relationship
        ``layer_params`` between them, in one transaction.
        """
        return self._transact(lambda txn: txn.store_model_layer(layer_id, weights, biases), epoch)

    def _transact(self, fn: Callable[[Transaction], None], epoch: int | None) -> Lsn:
        def run(txn: Transaction) -> Transaction:
            fn(txn)
            return txn

        done = self.transact(run, epoch=epoch)
        assert done.lsn is not None
        return done.lsn

    # --- relationships ----------------------------------------------------------------------------

    def create_relationship(
        self,
        source: str,
        target: str,
        kind: str,
        metadata: dict[str, Any] | None = None,
        *,
        epoch: int | None = None,
    ) -> Lsn:
        """Relate two names, tensors or not; an existing relationship gets the new metadata."""
        return self._transact(
            lambda txn: txn.create_relationship(source, target, kind, metadata), epoch
        )

    def delete_relationship(
        self, source: str, target: str, kind: str, *, epoch: int | None = None
    ) -> Lsn:
        """End a relationship from here on. Raises MissingError."""
        return self._transact(lambda txn: txn.delete_relationship(source, target, kind), epoch)

    # --- checkpoints ------------------------------------------------------------------------------

    @overload
    def checkpoint(
        self,
        state: Any,
        *,
        epoch: int,
        step: int | None = None,
        name: str | None = None,
        metrics: dict[str, Any] | None = None,
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
        wait: bool = True,
    ) -> Checkpoint | PendingCheckpoint:
        """Store a model state as one atomic commit: a module, an optimizer, or a nested tree of state.

        ``{"model": m, "optimizer": o, "scheduler": s, "rng": ..., "cursor": ...}`` keeps its types
        and comes back bit-exactly with :meth:`load`. Tensors are also readable by name
        (``db["model/layer.weight"]``); those of a bare model by its keys. With ``wait=False`` the
        value is fixed at the call and written behind; the result has ``.done``, ``.result()``,
        ``.stall_ms``, and a failure is raised at the next write and at close.
        """
        started = time.perf_counter()
        self._guard()
        self._log.writer  # noqa: B018 - raises ReadOnlyError before any work is done
        checked = check_epoch(epoch)
        if checked is None:
            raise InvalidTypeError("a checkpoint needs an epoch")
        background = self._background
        background.raise_failed()
        job = make_job(state, epoch=checked, step=step, name=name, metrics=metrics)
        pack_metadata(job.metrics)
        if not wait:
            self._epochs.check(self._log.head(), checked)
            return background.submit(job, started)
        self._settle_background()
        done = self._write_job(job)
        return checkpoint_of(job, done, (time.perf_counter() - started) * 1e3)

    def _write_job(self, job: CheckpointJob) -> CommitRow:
        staging = self.new_staging(fix=False)
        try:
            stage(job, staging)
            return self._commit_staging(staging, job.epoch, None)
        finally:
            staging.discard()

    # --- history ----------------------------------------------------------------------------------

    def tag(self, name: str, as_of: AsOf = None) -> Lsn:
        """Name a commit (the head by default).

        Return the LSN that the tag points at. An existing tag moves.
        """
        key = check_name(name)
        target = self._existing(as_of)
        self._mark(events.TAG_SET, keys.TAGS + key, events.pack_plain([int(target)]))
        return target

    def untag(self, name: str) -> None:
        """Remove a tag. Raises MissingError."""
        key = check_name(name)
        if name not in self.tags():
            raise MissingError(
                f"there is no tag {name[:80]!r}; db.tags() lists them. Nothing was stored."
            )
        self._mark(events.TAG_DELETED, keys.TAGS + key, None)

    def pin(self, as_of: AsOf) -> Lsn:
        """Keep a commit readable whatever retention says; return its LSN."""
        target = self._existing(as_of)
        self._mark(events.PIN_SET, keys.pin_key(target), b"")
        return target

    def unpin(self, as_of: AsOf) -> None:
        """Take a pin back. Raises MissingError."""
        target = self._existing(as_of)
        if target not in self.pins():
            raise MissingError(
                f"commit {target} is not pinned; db.pins() lists the pins. Nothing was stored."
            )
        self._mark(events.PIN_CLEARED, keys.pin_key(target), None)

    def _existing(self, as_of: AsOf) -> Lsn:
        row = self._scope(as_of).commit
        if row == EMPTY_COMMIT:
            raise MissingError("there is no commit yet at that point; store something first")
        return Lsn(row.lsn)

    def _mark(self, kind: int, key: bytes, attr: bytes | None) -> CommitRow:
        self._settle_background()
        record = (
            events.tombstones(kind, [key]) if attr is None else events.marks(kind, [(key, attr)])
        )
        return self._commit([record], None)

    def rewind(self, as_of: AsOf) -> Lsn:
        """Make the state at *as_of* the head state; return the LSN of the rewind. Later commits build on it.

        Nothing is lost: the commits that are left behind stay readable by LSN, and tags, pins and
        retention are not rewound. The head's epoch becomes that of *as_of*. Raises MissingError,
        VersionGoneError.
        """
        self._guard()
        self._settle_background()
        rule = self._epochs

        def decide(view: View) -> tuple[int, CommitRow]:
            target = resolve(view, view.intervals, as_of)
            record.extra = [target.lsn]
            rule.highest = target.epoch
            return target.epoch, target

        record = Record(events.REWOUND, [], extra=[0])
        return Lsn(self._log.commit([record], decide).lsn)

    # --- the whole store --------------------------------------------------------------------------

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the store, as of now, to the new folder *path*, under a new store id, while writers run.

        Sealed segments are hard-linked on the same file system, copied otherwise. Raises
        InvalidValueError when *path* is not empty, StorageFullError, StorageIOError.
        """
        self._guard()
        if self._log.options.mode == "rw":
            self._settle_background()
        target = OsFileSystem(_store_path(path, create=True))
        if target.list(""):
            raise InvalidValueError(
                f"{target.root} is not empty; a backup needs a new folder. Nothing was changed."
            )
        backup(self._log, target, _metadata_columns)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """Read and check every byte of the store; changes nothing. ``report.ok``, ``report.problems``.

        *progress* is called with (bytes checked, bytes in all) after each segment.
        """
        self._guard()
        return verify(self._log, progress)

    def stats(self) -> dict[str, Any]:
        """Return figures of the store and of this handle.

        Every tuned default with its value and counters.
        """
        self._guard()
        source, border, cache = self._source, self._source.border, self._source.cache
        return {
            **self._log.stats(),
            "map_border": {
                "bytes": border.value,
                "origin": border.origin,
                "measured_ms": border.measured_ms,
                "mapped_reads": source.mapped_reads,
                "copied_reads": source.copied_reads,
            },
            "cache": {
                "limit_bytes": cache.limit_bytes,
                "used_bytes": cache.used_bytes,
                "hits": cache.hits,
                "misses": cache.misses,
            },
            "pack_below_bytes": PACK_BELOW,
            "spill_bytes": self.options.spill_bytes,
        }

    def sync(self) -> None:
        """Make everything committed before durable.

        With ``durability="os"`` the call to make now and then.
        """
        self._guard()
        self._settle_background()
        self._log.sync()

    def close(self) -> None:
        """Finish background checkpoints, record a durable mark and close. Closing twice is harmless.

        Raises the error of a background checkpoint that nobody has seen; the store is closed all
        the same.
        """
        if self._closed:
            return
        if os.getpid() != self._pid:
            self._closed = True
            return
        try:
            self._background.close()
        finally:
            self._closed = True
            self._log.close()

    def __enter__(self) -> MLDatabase:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """One line: the path and whether it is open."""
        return f"<MLDatabase {self.path!r} mode={self.options.mode}{' closed' if self._closed else ''}>"

    def __reduce__(self) -> NoReturn:
        """A live handle does not travel between processes."""
        raise InvalidTypeError(
            f"an open store is not pickled; send its path ({self.path!r}) and call "
            "mldb.open(path) where it is used"
        )


def open(
    path: str | os.PathLike[str] = DEFAULT_PATH,
    *,
    mode: Mode = "rw",
    durability: Durability = "commit",
    verify: Verify = "first",
    **options: Any,
) -> MLDatabase:
    """Open the store at *path*; the same as ``MLDatabase(path, ...)``."""
    return MLDatabase(path, mode=mode, durability=durability, verify=verify, **options)


def _store_path(path: str | os.PathLike[str], *, create: bool) -> str:
    """Return the absolute, resolved folder of a store, made when asked. Raises StorageIOError."""
    try:
        resolved = os.path.realpath(os.fspath(path))
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(f"{path!r} is no path: {error}") from None
    if not isinstance(resolved, str):
        raise InvalidTypeError(f"{path!r} is a bytes path; give a str or Path")
    OsFileSystem.prepare_root(resolved, create=create)
    return resolved


def _metadata_columns(key: bytes, attr: bytes) -> dict[str, Any] | None:
    """Metadata fields get columns of their own in sealed segments, for queries."""
    return unpack_metadata(attr) if key[:1] == keys.METADATA else None
