"""The writer: commits batches, seals segments, installs manifests, all under the commit lock.

Lock order: commit lock, then ``LogState.mutex``. ``_sync_mutex`` comes before both and is never
taken while either is held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from mldb.errors import (
    ClosedError,
    LimitError,
    MldbError,
    ReadOnlyError,
    StorageFullError,
    StorageIOError,
)
from mldb.log import format as fmt
from mldb.log.active import chain_start
from mldb.log.batch import OVERLAP_BYTES, Place, place_all, write_batch, write_small
from mldb.log.frame import Record, encode_file_header
from mldb.log.index.address import CommitRow
from mldb.log.index.columns import MetadataOf
from mldb.log.index.footer import describe
from mldb.log.lock import CommitLock
from mldb.log.manifest import Mark, SegmentInfo, manifest_name
from mldb.log.pending import PendingSegment
from mldb.log.recovery import Recovery, refuse_corruption, save_tail
from mldb.log.sealing import Sealer
from mldb.log.state import LogState
from mldb.log.view import View

Durability = Literal["commit", "os"]

LSN_ROOM: Final = fmt.LSN_MAX - (1 << 24)  # behind it no batch is begun

# Whatever an fsync fails with, the pages it was about may be gone: a full disk is no exception.
_FAILED_SYNC = (StorageIOError, StorageFullError, ReadOnlyError)

Decide = Callable[[View], tuple[int, CommitRow]]
"""Called under the commit lock with the newest head; returns (epoch, parent), or raises to stop."""


@dataclass(frozen=True, slots=True)
class WriterOptions:
    """Settings of a writer. Sizes in bytes."""

    durability: Durability = "commit"
    segment_bytes: int = fmt.SEGMENT_BYTES
    segment_entries: int = fmt.SEGMENT_ENTRIES


class Writer:
    """The writing half of a handle. Any thread; calls queue at the commit lock.

    After a failed fsync every call raises ClosedError.
    """

    def __init__(
        self,
        state: LogState,
        lock: CommitLock,
        options: WriterOptions,
        metadata_of: MetadataOf | None,
    ) -> None:
        self.options = options
        self.recovery = Recovery()
        self.commits = 0  # guarded by the commit lock
        self.state = state
        self.lock = lock
        self._sealer = Sealer(state, metadata_of)
        self._sync_mutex = threading.Lock()
        self._durable = 0  # highest commit known durable; guarded by _sync_mutex or the commit lock
        self.failed: MldbError | None = None

    @property
    def durable_lsn(self) -> int:
        """The highest commit known to be durable."""
        return max(self._durable, self.state.active.cursor.durable)

    # --- committing -------------------------------------------------------------------------------

    def commit(
        self, records: Sequence[Record], decide: Decide, pending: PendingSegment | None = None
    ) -> CommitRow:
        """Store the records as one batch; return its commit.

        Raises whatever *decide* raises, and ClosedError, LimitError, LockedError, CorruptError,
        StorageFullError, StorageIOError; then nothing is stored. Only after a failed fsync that is
        not always certain, and the message says so.
        """
        try:
            with self.lock:
                try:
                    epoch, parent = decide(self.catch_up())
                    if pending is None:
                        row = self._append(records, epoch, parent)
                    else:
                        row = self._publish(pending, records, epoch, parent)
                except MldbError as error:
                    if not error.failed_sync:
                        raise
                    raise self._retire(error, publishing=pending is not None) from error
                finally:
                    self.state.writing = False
                self.commits += 1
        except BaseException:
            self.lock.recover()
            raise
        if self.options.durability == "commit":
            self.sync(row.lsn)
        return row

    def catch_up(self) -> View:
        """Follow the files, repair what a dead process left, and return the newest view.

        The commit lock is held. From here on this thread alone makes new views (``state.writing``),
        until the caller resets that.
        """
        if self.failed is not None:
            raise ClosedError(
                f"this handle is closed for writing since an fsync failed ({self.failed}). What "
                "is readable now is what is known to be stored; reopen the store to write again."
            )
        state = self.state
        with state.mutex:
            if not state.is_current():
                state.follow()
                self._settle()
            state.writing = True
            return state.view

    def _settle(self) -> None:
        """Leave the active segment ready to be appended to. Commit lock and mutex are held."""
        state = self.state
        active = state.active
        if active.cursor.index is not None:
            # Sealed by a process that died before it installed the manifest.
            frame = active.cursor.index
            self._sync_active()  # nor perhaps synced, and a manifest vouches for what it seals
            self._sealer.roll(describe(active, state.last_lsn(), frame.end, "", frame.offset))
        elif active.cursor.offset != active.seen:
            refuse_corruption(state)
            report = save_tail(state, active.seen)
            self._sync_active()
            self._sealer.close_at(state.last_lsn(), state.last_lsn())
            self.recovery = replace(report, distrusted=tuple(state.distrusted))

    def _append(self, records: Sequence[Record], epoch: int, parent: CommitRow) -> CommitRow:
        state = self.state
        payload = count = 0
        for record in records:
            payload += record.payload_length
            count += len(record.drafts)
        if self.is_full(payload, count):
            self.seal()
        active = state.active
        cursor = active.cursor
        self._bound(records, cursor.last_lsn)
        where = Place(
            active.segment.seed,
            active.segment.number,
            cursor.chain,
            max(cursor.durable, self._durable),
            max(cursor.last_lsn, state.manifest.lsn_floor) + 1,
            parent,
            epoch,
            state.fs.time_ns(),
        )
        if payload < OVERLAP_BYTES:
            written = write_small(active.file, records, cursor.offset, where)
        else:
            placed = place_all(records, cursor.offset)
            written = write_batch(active.file, placed, placed[-1].end, where)
        state.appended(*written)
        return written.row

    def _bound(self, records: Sequence[Record], last_lsn: int) -> None:
        if len(records) > fmt.FRAMES_MAX:
            raise LimitError(
                f"a transaction of {len(records)} records exceeds the limit of {fmt.FRAMES_MAX}. "
                "Nothing was stored; split it."
            )
        if last_lsn > LSN_ROOM:
            raise LimitError("the log has no LSNs left")

    def is_full(self, payload: int, count: int) -> bool:
        """Whether *payload* bytes and *count* entries no longer fit the active segment."""
        active, options = self.state.active, self.options
        offset = active.cursor.offset
        if offset == fmt.FILE_HEADER_SIZE:
            return False  # whatever its size, a batch fits an empty segment
        return (
            offset + payload > options.segment_bytes
            or active.count + count > options.segment_entries
        )

    def _publish(
        self, pending: PendingSegment, records: Sequence[Record], epoch: int, parent: CommitRow
    ) -> CommitRow:
        """Append the remaining records to a pending segment and make it the active one."""
        state = self.state
        if state.active.has_commits():
            info = self._write_footer()
        else:
            info = None
        number = state.active.segment.number + 1
        for record in records:
            pending.reserve(record)
        self._bound([item.record for item in pending.placed], state.active.cursor.last_lsn)
        first_lsn = max(state.active.cursor.last_lsn, state.manifest.lsn_floor) + 1
        clock = state.fs.time_ns()
        header = encode_file_header(
            fmt.FILE_SEGMENT, state.manifest.store_id, number, first_lsn, clock
        )
        pending.file.pwritev([header], 0)
        where = Place(
            fmt.file_seed(state.manifest.store_id, number),
            number,
            chain_start(state.manifest.store_id, number),
            first_lsn - 1,
            first_lsn,
            parent,
            epoch,
            clock,
        )
        row = write_batch(pending.file, pending.placed, pending.tail, where).row
        pending.file.sync()
        installing = state.next_number
        try:
            self._sealer.install_segment(info, number, pending.name, first_lsn - 1)
        except MldbError:
            # Once its manifest is there the commit is stored; the next look follows it.
            if state.named < installing:
                raise
        pending.discard()
        self._durable = row.lsn
        return row

    # --- sealing ----------------------------------------------------------------------------------

    def seal(self) -> None:
        """Close the active segment with a footer and start the next; the commit lock is held."""
        self._sealer.roll(self._write_footer())

    def _write_footer(self) -> SegmentInfo:
        info = self._sealer.append_footer(self.durable_lsn)
        self._sync_active()
        return info

    def _sync_active(self) -> None:
        """Sync the active segment; the commit lock is held."""
        try:
            self.state.active.file.sync()
        except _FAILED_SYNC as error:
            raise self._abandon(error) from error

    # --- failure ----------------------------------------------------------------------------------

    def _abandon(self, error: MldbError) -> StorageIOError:
        """Give the segment up behind its last durable commit, for every process.

        Called when an fsync failed, with the commit lock held. fsync is never retried: the kernel
        may have dropped the dirty pages and reports the failure once (Rebello et al., "Can
        Applications Recover from fsync Failures?", USENIX ATC 2020).
        """
        self.failed = error
        state = self.state
        known = max(self._durable, state.active.cursor.durable)
        number = state.active.segment.number
        try:
            with state.mutex:
                state.follow()
                if state.active.segment.number == number:
                    self._sealer.close_at(known, known)
            outcome = (
                f"The segment was closed behind commit {known}, the last one known to be durable; "
                "later commits are not stored."
            )
        except MldbError as second:
            outcome = (
                f"The last commit known to be durable is {known}; closing the segment behind it "
                f"failed too ({second}). Whether later commits are stored is not known."
            )
        return _closed_for_writing(error, outcome)

    def _retire(self, error: MldbError, *, publishing: bool) -> StorageIOError:
        """Write no more with this handle: an fsync failed, not of the active segment but beside it.

        The commit lock is held. *publishing*: the commit exists once its manifest has its name.
        """
        self.failed = error
        state = self.state
        if publishing and state.fs.exists(manifest_name(state.next_number)):
            return _closed_for_writing(error, "Whether this commit is stored is not known.")
        return _closed_for_writing(error, "Nothing was stored.")

    def sync(self, lsn: int) -> None:
        """Make every commit up to *lsn* durable. Threads that wait here share one fdatasync."""
        state = self.state
        if self._durable >= lsn:
            return
        with self._sync_mutex:
            if self._durable >= lsn:
                return
            view, file = state.view, state.active.file
            try:
                if view.number > state.named:
                    # Its writer may have died before the name was durable.
                    state.fs.sync_dir("")
                    state.named = view.number
                if lsn <= max((part.info.last_lsn for part in view.sealed), default=0):
                    self._durable = max(self._durable, lsn)
                    return
                file.sync()
            except _FAILED_SYNC as error:
                with self.lock:
                    raise self._abandon(error) from error
            self._durable = max(self._durable, view.commit.lsn)

    # --- closing ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Record a durable mark and a hint, when anything was committed since the last mark."""
        if self.failed is not None:
            return
        state = self.state
        with self.lock:
            try:
                self.catch_up()
                active, mark = state.active, state.manifest.mark
                if (active.segment.number, active.cursor.offset) == (mark.segment, mark.offset):
                    if active.hinted is None and active.has_commits():
                        # The hint was lost or distrusted: spare the next opening the scan.
                        self._sealer.write_hint(state.last_lsn())
                    return
                self._sync_active()
                self._durable = state.last_lsn()
                self._sealer.write_hint(self._durable)
                cursor = active.cursor
                number = active.segment.number
                mark = Mark(number, cursor.offset, cursor.last_lsn, cursor.chain)
                self._sealer.install(replace(state.manifest, mark=mark))
            finally:
                state.writing = False


def _closed_for_writing(error: MldbError, outcome: str) -> StorageIOError:
    return StorageIOError(
        f"{error} {outcome} This handle is closed for writing, reads go on. Check the disk, then "
        "reopen the store.",
        errno=getattr(error, "errno", None),
    )
