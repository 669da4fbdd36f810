"""The log of one store: open or create it, take heads, commit, close. The face of ``mldb.log``.

Everything above talks to this class. It hands out immutable views and raw entries; what they mean
is decided in ``mldb.tensors.codec`` and ``mldb.history.events``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mldb.errors import (
    ClosedError,
    CorruptError,
    FormatVersionError,
    LockedError,
    ReadOnlyError,
    StorageFullError,
)
from mldb.log import format as fmt
from mldb.log.active import HINTS, chain_start
from mldb.log.frame import Frame, Record, encode_file_header
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.address import CommitRow, Entry
from mldb.log.index.columns import MetadataOf
from mldb.log.lock import CommitLock
from mldb.log.manifest import (
    PENDING,
    Manifest,
    Mark,
    install_manifest,
    manifest_numbers,
    newest_announced,
)
from mldb.log.pending import PendingSegment, sweep_pending
from mldb.log.readers import READERS, Registration, live_readers
from mldb.log.recovery import LOST, Recovery, refuse_corruption, refuse_lost_manifest
from mldb.log.segment import SEGMENTS, Segment, Verify, segment_name
from mldb.log.sequencer import Decide, Writer, WriterOptions
from mldb.log.state import LogState, load_newest, open_announced
from mldb.log.view import View

FOLDERS = (SEGMENTS, PENDING, READERS, HINTS, LOST)
_OWN_NAMES = frozenset({*FOLDERS, "LOCK", "GATE"})


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How to open a log. ``known`` are the event kinds that the caller understands.

    ``lock_timeout`` is in seconds, ``max_mapped`` the number of segments mapped at once.
    """

    mode: Literal["r", "rw"] = "rw"
    verify: Verify = "first"
    writer: WriterOptions = field(default_factory=WriterOptions)
    lock_timeout: float = 30.0
    known: frozenset[int] = frozenset()
    max_mapped: int = 256


class Log:
    """One open log. Any thread; refuse use in a forked child is the caller's duty.

    Views and memoryviews handed out live as long as they are held, also after :meth:`close`.
    """

    def __init__(
        self, fs: FileSystem, options: LogOptions, metadata_of: MetadataOf | None = None
    ) -> None:
        """Open the store in *fs*, creating it in an empty folder when ``mode="rw"``.

        Raises FormatVersionError, CorruptError, LockedError, StorageIOError, ReadOnlyError.
        """
        self.fs = fs
        self.options = options
        self.closed = False
        self._swept = False  # a race costs one more listing
        self._lock: CommitLock | None = None
        self._writer: Writer | None = None
        writable = options.mode == "rw"
        distrusted: list[str] = []
        announced = open_announced(fs, writable=writable)
        manifest = None if announced is None else newest_announced(fs, announced.size())
        if manifest is None:
            numbers = manifest_numbers(fs)
            if not numbers:
                self._create(writable)
            manifest = load_newest(fs, distrusted, numbers)
        if writable:
            _restore_folders(fs)
            self._lock = CommitLock(fs, options.lock_timeout)
            if announced is None:
                self._lock.make_file()
        self._state = LogState(
            fs,
            manifest,
            verify=options.verify,
            writable=writable,
            known=options.known,
            max_mapped=options.max_mapped,
            announced=announced,
        )
        self._state.distrusted[:0] = distrusted
        self.registration = Registration(fs, manifest.store_id)
        try:
            if self._lock is not None:
                self._writer = Writer(self._state, self._lock, options.writer, metadata_of)
            self._settle()
        except BaseException:
            self._state.close()
            if self._lock is not None:
                self._lock.close()
            raise

    # --- opening ----------------------------------------------------------------------------------

    def _create(self, writable: bool) -> None:
        fs = self.fs
        names = fs.list("")
        foreign = [name for name in names if name not in _OWN_NAMES]
        if foreign or not writable:
            shown = ", ".join(map(repr, foreign[:5])) or "nothing"
            raise FormatVersionError(
                f"{fs.root} is not an mldb store: it has no manifest and holds {shown}. Nothing "
                "was changed. Check the path, or give an empty or new folder with mode='rw' to "
                "create a store."
            )
        for folder in FOLDERS:
            fs.mkdir(folder)
        lock = CommitLock(fs, self.options.lock_timeout)
        try:
            with lock:
                if not manifest_numbers(fs):
                    self._give_birth()
        finally:
            lock.close()

    def _give_birth(self) -> None:
        """Make segment 1 and manifest 1; a store exists once its first manifest does."""
        fs = self.fs
        for name in fs.list(SEGMENTS):
            path = f"{SEGMENTS}/{name}"
            file = fs.open(path, "r")
            size = file.size()
            file.close()
            if size > fmt.FILE_HEADER_SIZE:
                raise CorruptError(
                    "segments are here but no manifest: manifests were deleted. Nothing was "
                    "changed; restore the MANIFEST files from a backup.",
                    file=path,
                )
            fs.unlink(path)  # left by a creation that died before its manifest
        store_id, created = os.urandom(16), fs.time_ns()
        name = segment_name(1)
        file = fs.open(name, "create")
        try:
            file.pwritev([encode_file_header(fmt.FILE_SEGMENT, store_id, 1, 1, created)], 0)
            file.sync()
        finally:
            file.close()
        fs.sync_dir(SEGMENTS)
        fs.sync_dir("")  # the folders themselves, before a manifest relies on them
        mark = Mark(1, fmt.FILE_HEADER_SIZE, 0, chain_start(store_id, 1))
        install_manifest(fs, Manifest(1, store_id, created, (), 1, store_id, mark, 0, ()))

    def _settle(self) -> None:
        """Decide what the bytes behind the last batch are; repair them if this handle may write."""
        state = self._state
        refuse_lost_manifest(state)
        active = state.active
        tail = active.cursor.offset != active.seen
        if self._writer is None or self._lock is None:
            refuse_corruption(state)
            return
        if tail or active.cursor.index is not None:
            with self._lock:
                try:
                    self._writer.catch_up()
                finally:
                    state.writing = False
        else:
            refuse_corruption(state)
        if state.distrusted and self._writer.recovery.clean:
            self._writer.recovery = Recovery(distrusted=tuple(state.distrusted))

    def _sweep(self) -> None:
        """Remove what dead processes left in ``pending/``, once per handle.

        Done before the first spill and at the close of a handle that wrote, not at every opening: a
        listing costs more than the rest of it. Skipped while another process holds the lock.
        """
        if self._swept or self._lock is None:
            return
        self._swept = True
        if not self.fs.list(PENDING):
            return
        try:
            with self._lock:
                live = frozenset(reader.name for reader in live_readers(self.fs))
                sweep_pending(self.fs, live)
        except LockedError:
            return

    # --- reading ----------------------------------------------------------------------------------

    @property
    def store_id(self) -> bytes:
        """The identity of this store."""
        return self._state.manifest.store_id

    @property
    def recovery(self) -> Recovery:
        """What the last repair of this handle did."""
        return (
            self._writer.recovery
            if self._writer is not None
            else Recovery(distrusted=tuple(self._state.distrusted))
        )

    @property
    def state(self) -> LogState:
        """The state, for the parts of ``mldb.log`` that work on a whole store."""
        return self._state

    def head(self) -> View:
        """Return the newest view."""
        return self._state.head()

    def payload(
        self, view: View, entry: Entry, low: int, high: int, key: str | None = None
    ) -> memoryview:
        """Return the stored bytes low..high of a version, as a view of its mapped segment.

        They are verified as ``options.verify`` says; *key* is named in errors. Raises CorruptError.
        """
        return view.segments[entry.segment].payload(entry, low, high, self.options.verify, key)

    def touch_rows(
        self,
        view: View,
        entry: Entry,
        place: int,
        row_bytes: int,
        rows: npt.NDArray[np.int64],
        key: str | None = None,
    ) -> None:
        """Verify what holds *rows* of a column of a version.

        *place* is the column's first byte in the version. Raises CorruptError.
        """
        segment = view.segments[entry.segment]
        segment.touch_rows(entry, place, row_bytes, rows, self.options.verify, key)

    def private(self, view: View, entry: Entry, key: str | None = None) -> memoryview:
        """Return a private writable view of a version's stored bytes."""
        return view.segments[entry.segment].private(entry, self.options.verify, key)

    def batch_frames(self, segment: Segment, row: CommitRow) -> list[tuple[Frame, bytes]]:
        """Return the checked frames of one commit with their bodies."""
        frames: list[tuple[Frame, bytes]] = []
        offset = row.start
        while offset < row.end:
            frame, body = segment.frame(offset)
            frames.append((frame, body))
            offset = frame.end
        return frames

    def batches(
        self, view: View, low: int, high: int
    ) -> Iterator[tuple[CommitRow, list[tuple[Frame, bytes]]]]:
        """Yield every commit with low <= LSN <= high and its frames, in log order, all lineages."""
        for number, row in view.commits(low, high):
            yield row, self.batch_frames(view.segments[number], row)

    # --- writing ----------------------------------------------------------------------------------

    @property
    def writer(self) -> Writer:
        """The writer. Raises ReadOnlyError on a read-only handle."""
        if self._writer is None:
            raise self._read_only()
        return self._writer

    def _read_only(self) -> ReadOnlyError:
        return ReadOnlyError(
            f"{self.fs.root} is open with mode='r'. Nothing was stored; open it with mode='rw' to "
            "write."
        )

    def commit(
        self, records: Sequence[Record], decide: Decide, pending: PendingSegment | None = None
    ) -> CommitRow:
        """Store records as one batch; see Writer.commit."""
        return self.writer.commit(records, decide, pending)

    def pending_segment(self) -> PendingSegment:
        """Start a pending segment for a large batch."""
        if self._writer is None:
            raise self._read_only()
        self._sweep()
        return PendingSegment(self.fs, self.registration.ensure())

    def stats(self) -> dict[str, Any]:
        """Return figures of the log: its size, its parts, what this handle did."""
        view = self.head()
        state, active = self._state, self._state.active
        segments = list(view.segments.values())
        return {
            "store_id": self.store_id.hex(),
            "epoch": view.commit.epoch,
            "lsn": view.commit.lsn,
            "manifest": view.number,
            "segments": len(segments),
            "bytes": sum(info.length for info in state.manifest.segments) + active.cursor.offset,
            "active_bytes": active.cursor.offset,
            "active_versions": active.count,
            "versions": active.count + sum(part.index.entry_count() for part in view.sealed),
            "mapped_bytes": sum(segment.mapped_bytes for segment in segments),
            "max_mapped": state.mappings.limit,
            "mappings_released": state.mappings.released,
            "mapped_segments": sum(segment.mapped_bytes > 0 for segment in segments),
            "durable_lsn": self._writer.durable_lsn
            if self._writer is not None
            else active.cursor.durable,
            "commits": self._writer.commits if self._writer is not None else 0,
            "free_bytes": self.fs.free_bytes(),
            "distrusted": list(state.distrusted),
            "readers": len(live_readers(self.fs, self.registration.name))
            if self._writer is not None
            else 0,
        }

    def sync(self) -> None:
        """Make every commit so far durable, those of other processes too."""
        self.writer.sync(self.head().commit.lsn)

    def close(self) -> None:
        """Close the handle; a writing one records a durable mark. Closing twice is harmless."""
        if self.closed:
            return
        self.closed = True
        try:
            if self._writer is not None:
                self._writer.close()
                if self._writer.commits:
                    self._sweep()
        except (LockedError, ClosedError, StorageFullError):
            pass  # the next opening scans instead of starting from the mark
        finally:
            self.registration.close()
            self._state.close()
            if self._lock is not None:
                self._lock.close()


def _restore_folders(fs: FileSystem) -> None:
    """Make the folders that a copy of the store lost, since many tools skip empty ones."""
    for folder in FOLDERS:
        if not fs.exists(folder):
            fs.mkdir(folder)
