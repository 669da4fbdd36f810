"""The database: the composition root that ties the log, the projections and the verbs together."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np  # noqa: F401 - first of all: deeper in the stack its import costs more

from mldb.closing import Closing
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.address import Lsn
from mldb.options import Durability, Mode, Options, Verify
from mldb.tensors.metadata import metadata_columns
from mldb.write.checkpoint_verbs import CheckpointVerbs
from mldb.write.compacting import CompactionVerbs
from mldb.write.metric_verbs import MetricVerbs
from mldb.write.safe_points import heard, safe_point
from mldb.write.timeline import TimelineVerbs
from mldb.write.verbs import WriteVerbs

if TYPE_CHECKING:
    from mldb.history.as_of import AsOf
    from mldb.lake.consolidation.watch import PolicyWatch
    from mldb.lake.host import Host
    from mldb.lake.lake import Lake
    from mldb.log.recovery import Recovery
    from mldb.log.verify import VerifyReport
    from mldb.sphere.geometry import Geometry
    from mldb.write.ops import Operations

DEFAULT_PATH = "ml_storage"


class MLDatabase(
    CheckpointVerbs,
    WriteVerbs,
    MetricVerbs,
    TimelineVerbs,
    CompactionVerbs,
    Closing,
    MutableMapping[str, Any],
):
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
            chosen = Options(mode=mode, durability=durability, verify=verify, **options)
        except TypeError as error:
            if isinstance(error, InvalidTypeError):
                raise
            raise InvalidTypeError(f"{error}; the options are the fields of mldb.Options") from None
        root = _store_path(path, create=mode == "rw")
        super().__init__(OsFileSystem(root), chosen, metadata_columns)

    @classmethod
    def on(cls, fs: FileSystem, **options: Any) -> Self:
        """Open the store in any FileSystem: one in memory, or one that injects faults."""
        database = cls.__new__(cls)
        super(MLDatabase, database).__init__(fs, Options(**options), metadata_columns)
        return database

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
    def ops(self) -> Operations:
        """Operations on stored tensors that need not fit in memory: ``db.ops.matrix_multiply``."""
        from mldb.write.ops import Operations

        return Operations(self._scope, self.create_tensor)

    def lake(
        self, name: str = "default", *, dim: int | None = None, geometry: Geometry | None = None
    ) -> Lake:
        """Return the splat lake *name*; it comes to exist with its first rows.

        *dim* (640) and *geometry* ("sphere", or "euclid") of an existing lake are as stored. Raises
        InvalidValueError when they are given and differ.
        """
        from mldb.lake.lake import Lake

        self._guard()
        return Lake(self._lake_host(), name, dim=dim, geometry=geometry)

    def lakes(self, *, as_of: AsOf = None) -> list[str]:
        """Return the names of the splat lakes.

        Cost: O(lakes).
        """
        from mldb.lake import projection as splats

        return splats.names(self._scope(as_of))

    def _lake_host(self) -> Host:
        from mldb.lake.host import Host

        return Host(
            path=self.path,
            reopen=type(self),
            scope=self._scope,
            at=self.at,
            commit=self._commit,
            open_pending=self._log.pending_segment,
            settle=self._settle_background,
            buffers=self._buffers,
            note_rows=self._watched().note_rows,
            known=self._known_lakes(),
        )

    def _watched(self) -> PolicyWatch:
        """What has an eye on the policies of lakes; it does not keep this handle alive."""
        watch = self._policy_watch
        if watch is None:
            from mldb.lake.consolidation.watch import PolicyWatch

            handle = weakref.ref(self)
            compaction = weakref.ref(self._compaction)

            def host() -> Host | None:
                own = handle()
                return None if own is None else own._lake_host()

            def look_for(name: str, is_due: Callable[[], bool]) -> None:
                own = compaction()
                if own is not None:
                    own.look_for(name, is_due)

            watch = self._policy_watch = PolicyWatch(host, look_for)
        return watch

    @property
    def recovery(self) -> Recovery:
        """What opening had to repair: ``.clean`` tells whether nothing had to be.

        It holds the dropped bytes and transactions, and where they were saved.
        """
        return self._log.recovery

    @property
    def last_commit(self) -> Lsn:
        """The newest commit; after an interrupted call it tells whether that call was stored."""
        return self.lsn

    # --- the whole store --------------------------------------------------------------------------

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the store as it is now to the new folder *path*, under a new store id.

        Writers go on meanwhile. Sealed segments are hard-linked on the same file system, copied
        otherwise. Raises InvalidValueError when *path* is not empty, StorageFullError,
        StorageIOError.

        Cost: O(segments) and O(bytes of the active one); O(bytes) to another file system.
        """
        self._guard()
        if self._log.options.mode == "rw":
            self._settle_background()
            self._metrics.flush()
        target = OsFileSystem(_store_path(path, create=True))
        if target.list(""):
            raise InvalidValueError(
                f"{target.root} is not empty; a backup needs a new folder. Nothing was changed."
            )
        from mldb.log.backup import backup

        backup(self._log, target, metadata_columns)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """Read and check every byte of the store; changes nothing.

        The report has ``.ok`` and ``.problems``; damage is reported, not raised. *progress* is
        called with (bytes checked, bytes in all) after each segment.

        Cost: O(bytes).
        """
        self._guard()
        from mldb.log.verify import verify

        return verify(self._log, progress)

    def stats(self) -> dict[str, Any]:
        """Return figures of the store and of this handle.

        Every tuned or adaptive default is among them with its value and its counters.
        ``reclaimable`` are the bytes of sealed segments that :meth:`compact` would give back,
        about; None when the retention cannot be met. ``reclaimable_parts`` are what of it is
        ``dropped`` by the retention, and what is saved where cold versions are ``encoded``. That is
        told from a sample: how many bytes were looked at (``marks``), how many of them are cold,
        what share encoding saves of some of these. Both are found anew when a segment is gone, the
        retention was changed, the segments grew by a sixteenth, or an hour has passed.
        ``compaction`` tells of the worker in the background: ``running``, ``paused``, ``pid``, how
        far it is, ``expected_bytes`` that a pass would give back as it found, ``returned_bytes``,
        ``last_reports``, ``last_error``, and why none starts here. ``reads`` tells how many
        versions were noted as read.

        Cost: O(segments); what would come back is found anew in O(versions), as said above.
        """
        from mldb.write.packs import PACK_BELOW

        self._guard()
        reclaimable = self._reclaimable()
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
            "counts": source.counts.stats(),
            "reads": source.reads.stats(),
            "deduplication": self._duplicates.stats(),
            "lakes": self._known_lakes().stats(),
            "policies": self._watched().stats(),
            "metrics": self._metrics.stats(),
            "pack_below_bytes": PACK_BELOW,
            "spill_bytes": self.options.spill_bytes,
            "reclaimable": reclaimable.pop("bytes"),
            "reclaimable_parts": reclaimable,
            "compaction": self._compaction.stats(),
        }

    def sync(self) -> None:
        """Make everything committed before durable; with ``durability="os"``, call it now and then.

        Raises StorageIOError when the disk refuses: what is known to be durable stays so, and the
        handle takes no more writes.

        Cost: O(bytes not synced yet); nothing where all are.
        """
        self._guard()
        self._settle_background()
        self._metrics.flush()
        self._log.sync()
        self._metrics.raise_failed()

    def close(self) -> None:
        """Finish background checkpoints, record a durable mark and close.

        Closing twice is harmless. Raises the error of a background checkpoint that nobody has seen,
        and StoreMovedError when this handle stored something and its folder stands elsewhere now;
        the store is closed all the same. Ctrl-C while it waits for them leaves it open. In the main
        thread, what :meth:`save_on_signal` has waiting runs first.

        Cost: O(bytes not synced yet), and a hint of O(versions in the active segment) where it is
        due.
        """
        if self._closed:
            return
        if self._is_forked():
            self._closed = True
            return
        try:
            safe_point()
        finally:
            self._close()

    def _close(self) -> None:
        try:
            self._background.close()
        finally:
            if self._background.closed:
                self._closed = True
                try:
                    self._close_log()
                finally:
                    if heard:
                        from mldb.write.preemption import cancel_all

                        cancel_all(self)

    def __repr__(self) -> str:
        """One line: the path and whether it is open."""
        closed = " closed" if self._closed else ""
        return f"<MLDatabase {self.path!r} mode={self.options.mode}{closed}>"

    def _repr_html_(self) -> str:
        """The form of notebooks: the store, its head, and the first tensors. Reads none of them."""
        from mldb.history.shown import moment_html
        from mldb.html import html_of

        return html_of(
            self, lambda: moment_html(self._scope(), self.path, {"mode": self.options.mode})
        )

    def __eq__(self, other: object) -> bool:
        """A handle equals itself only; comparing contents would read both stores."""
        return self is other

    def __hash__(self) -> int:
        """By identity."""
        return id(self)

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
    """Return the absolute folder of a store, made when asked.

    Raises InvalidTypeError, InvalidNameError, StorageIOError.
    """
    try:
        text = os.fspath(path)
    except TypeError as error:
        raise InvalidTypeError(f"{path!r} is no path: {error}") from None
    if not isinstance(text, str):
        raise InvalidTypeError(f"{path!r} is a bytes path; give a str or Path")
    return OsFileSystem.prepare_root(text, create=create)
