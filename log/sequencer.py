"""The sequencer: the one object of a handle that decides the order of commits.

It appends batches under the commit lock, on the newest head: *append this batch; decide(head) gives
parent and epoch, or refuses*. One encoder makes the bytes, one call takes in what was written. When
a commit is durable is the matter of ``mldb.log.syncing``.

Lock order: the lock of ``Syncing``, then the commit lock, then ``LogState.mutex``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from mldb.deferred import replace
from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.log.active import Active, chain_start
from mldb.log.aside import OVERLAP_BYTES, Promptly, at_once
from mldb.log.batch import (
    BatchStart,
    EncodedBatch,
    check_batch,
    encode_batch,
    write_ahead,
    write_batch,
)
from mldb.log.file_header import encode_file_header
from mldb.log.frame import Record, hash_record
from mldb.log.index.address import CommitRow
from mldb.log.index.columns import MetadataOf
from mldb.log.index.footer import describe
from mldb.log.lock import CommitLock
from mldb.log.manifest import Mark, SegmentInfo, refuse_to_write
from mldb.log.readers import Registration
from mldb.log.recovery import Recovery, refuse_corruption, save_tail
from mldb.log.saving import HintSaver
from mldb.log.sealing import Sealer, ceiling_of
from mldb.log.state import LogState
from mldb.log.syncing import Syncing
from mldb.log.view import View
from mldb.options import Options

if TYPE_CHECKING:
    from mldb.log.pending import PendingSegment

Decide = Callable[[View], tuple[int, CommitRow]]
"""Called under the commit lock with the newest head; returns (epoch, parent), or raises to stop.

It may be called again when the head moved, so it has no effects of its own.
"""

_NO_EXTRA: Final[Mapping[str, object]] = {}


class Sequencer:
    """The writing half of a handle. Any thread; calls queue at the commit lock.

    A call inside another of the same thread raises ReentryError. After a failed fsync, and after
    :meth:`close`, every call raises ClosedError.
    """

    def __init__(
        self,
        state: LogState,
        lock: CommitLock,
        registration: Registration,
        options: Options,
        metadata_of: MetadataOf | None,
        *,
        began: bool = False,
    ) -> None:
        self.options = options
        self.recovery = Recovery()
        self.commits = 0  # guarded by the commit lock
        self.state = state
        self.lock = lock
        self._registration = registration
        self._sealer = Sealer(state, metadata_of, registration.ensure)
        self.syncing = Syncing(state, lock, registration, self._sealer)
        self.saver = HintSaver(state, lock, self.syncing, registration.ensure, metadata_of)
        self.promptly: Promptly = at_once  # makes the calls that change the outline
        self._changed = False  # a seal was asked for: a clean close has a mark to record
        self._began = began  # LSNs below the floor cannot have been given out; the commit lock

    # --- committing -------------------------------------------------------------------------------

    def commit(
        self,
        records: Sequence[Record],
        decide: Decide,
        pending: PendingSegment | None = None,
        extra: Mapping[str, object] = _NO_EXTRA,
    ) -> CommitRow:
        """Store the records as one batch, durably where the options say so; return its commit.

        Raises whatever *decide* raises, and ReentryError, ClosedError, LimitError, LockedError,
        CorruptError, StoreMovedError, StorageFullError, StorageIOError; then nothing is stored.
        Only after a failed fsync that is not always certain, and the message says so.
        """
        if self.options.durability != "commit":
            row = self.append(records, decide, pending, extra)[0]
            if self.saver.saving is not None:
                self._save(records)
            return row
        # What may fail or be refused comes first, while nothing is stored.
        self.syncing.refuse_nested()
        self._registration.ensure()
        row, active = self.append(records, decide, pending, extra)
        self.syncing.make_durable(row.lsn, active)
        if self.saver.saving is not None:
            self._save(records)
        return row

    def _save(self, records: Sequence[Record]) -> None:
        """Go on with the hint that is being saved, as far as these records are worth."""
        self.saver.advance(sum(len(record.drafts) for record in records))

    def append(
        self,
        records: Sequence[Record],
        decide: Decide,
        pending: PendingSegment | None = None,
        extra: Mapping[str, object] = _NO_EXTRA,
    ) -> tuple[CommitRow, Active]:
        """Append the records as one batch, not yet durable. Raises as :meth:`commit` does.

        Returns the commit and the segment that it is in.
        """
        payload = count = 0
        for record in records:
            payload += record.payload_length
            count += len(record.drafts)
            if record.checks is None and record.payload_length < OVERLAP_BYTES:
                hash_record(record)
        state, syncing = self.state, self.syncing
        guard = self.lock.hold()
        try:
            state.begin_writing(guard.key)
            if syncing.has_ended or syncing.doubts:
                syncing.refuse_ended()
            if not state.is_current():
                self._follow()
            epoch, parent = decide(state.view)
            if pending is not None:
                return self._publish(pending, records, epoch, parent, extra)
            active = state.active
            cursor = active.cursor
            lsn = cursor.last_lsn + 1
            if (
                lsn + len(records) >= active.stop_lsn
                or cursor.offset + payload > active.stop_offset
                or active.count + count > active.stop_count
            ):
                lsn = self._make_room(len(records), payload, count)
                active = state.active
                cursor = active.cursor
            segment, durable = active.segment, syncing.durable
            if durable < cursor.durable:  # noqa: PLR1730 - max() costs three times as much
                durable = cursor.durable
            at, clock = cursor.offset, state.fs.time_ns()
            seed, own, chain = segment.seed, segment.id, cursor.chain
            start = (seed, own, chain, at, lsn, durable, parent, epoch, clock)
            if payload >= OVERLAP_BYTES:
                check_batch(len(records), lsn, epoch)
                write_ahead(active.file, records, at)
            batch = encode_batch(records, start, extra)
            write_batch(active.file, batch)
            state.appended(batch)
            self.commits += 1
            return batch[1], active
        except MldbError as error:
            if not syncing.note(error):
                raise
            raise syncing.retire(error, publishing=pending is not None) from error
        finally:
            state.writing = None
            guard.free()

    def catch_up(self) -> View:
        """Follow the files, repair what a dead process left, and return the newest view.

        The commit lock is held, and its owner is the one who writes.
        """
        syncing, state = self.syncing, self.state
        if syncing.has_ended or syncing.doubts:
            syncing.refuse_ended()
        if not state.is_current():
            self._follow()
        return state.view

    def _follow(self) -> None:
        state = self.state
        state.follow()
        refuse_to_write(state.fs, state.manifest)
        if state.announced_number != state.manifest.number:
            self._sealer.clear_orphans()
        self._settle()

    def _settle(self) -> None:
        """Leave the active segment ready to be appended to."""
        state = self.state
        active = state.active
        if active.cursor.index is not None:
            # Sealed by a process that died before it installed the manifest.
            frame = active.cursor.index
            # Nor perhaps synced, and a manifest vouches for what it seals.
            self.syncing.sync_active()
            self._sealer.roll(describe(active, state.last_lsn(), frame.end, "", frame.offset))
        elif active.cursor.offset != active.seen:
            self.recovery = save_tail(state, refuse_corruption(state), self.recovery)
            self.syncing.sync_active()
            self._sealer.close_at(state.last_lsn(), state.last_lsn())
            self._began = True

    def _make_room(self, records: int, payload: int, count: int) -> int:
        """Make room for a batch: LSNs below the ceiling, a segment that it fits in.

        Returns the LSN of its first record.
        """
        state, options = self.state, self.options
        refuse_to_write(state.fs, state.manifest)
        first_lsn = self._first_lsn(records)
        if self._is_full(payload, count) or state.is_version_1:
            self.seal()
        active, manifest = state.active, state.manifest
        if active.cursor.last_lsn >= manifest.lsn_floor:
            active.stop_offset = options.segment_bytes
            active.stop_count = self.saver.look(options.segment_entries)
            active.stop_lsn = manifest.lsn_ceiling - 1
        return first_lsn

    def _first_lsn(self, count: int) -> int:
        """The LSN of the next record, when *count* more and a commit stay below the ceiling.

        The first commit of a handle starts at the ceiling, as nobody knows what was given out below
        it and lost with a power failure; a clean close has set it right behind the last LSN.
        """
        state = self.state
        manifest = state.manifest
        last = max(state.active.cursor.last_lsn, manifest.lsn_floor)
        ceiling = ceiling_of(state)
        if self._began and last + count + 1 < ceiling:
            return last + 1
        if not self._began:
            last = max(last, ceiling - 1)
        check_batch(count, last + 1, 0)  # so the step has room for it
        top = last + 1 + fmt.LSN_CEILING_STEP
        self._sealer.install(replace(manifest, lsn_floor=last, lsn_ceiling=top))
        self._began = True
        return last + 1

    def _is_full(self, payload: int, count: int) -> bool:
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
        self,
        pending: PendingSegment,
        records: Sequence[Record],
        epoch: int,
        parent: CommitRow,
        extra: Mapping[str, object],
    ) -> tuple[CommitRow, Active]:
        """Append the remaining records to a pending segment and make it the active one."""
        state = self.state
        refuse_to_write(state.fs, state.manifest)
        for record in records:
            pending.reserve(record)
        first_lsn = self._first_lsn(len(pending.placed))
        info = self._write_footer() if state.active.has_commits() else None
        store_id, number = state.manifest.store_id, state.next_number
        clock = state.fs.time_ns()
        start = BatchStart(
            fmt.file_seed(store_id, pending.id),
            pending.id,
            chain_start(store_id, pending.id),
            fmt.FILE_HEADER_SIZE,
            first_lsn,
            first_lsn - 1,
            parent,
            epoch,
            clock,
        )
        batch = EncodedBatch(*encode_batch(pending.records, start, extra))
        header = encode_file_header(
            fmt.FILE_SEGMENT,
            store_id,
            clock,
            segment_id=pending.id,
            base_lsn=first_lsn,
            published=number,
        )
        pending.file.pwritev([header], 0)
        write_batch(pending.file, batch)
        pending.file.sync()
        mark = Mark(pending.id, batch.end, batch.row.lsn, batch.chain)
        try:
            self._sealer.install_segment(info, pending.name, mark, first_lsn - 1)
        except MldbError:
            # Once its manifest is there the commit is stored; the next look follows it.
            if state.named < number:
                raise
        pending.discard()
        self.syncing.durable = batch.row.lsn
        self.commits += 1
        return batch.row, state.active

    # --- sealing ----------------------------------------------------------------------------------

    def seal(self) -> None:
        """Close the active segment with a footer and start the next; the commit lock is held."""
        self._sealer.roll(self._write_footer() if self.state.active.has_commits() else None)

    def seal_now(self) -> None:
        """Seal before the segment is full, for who wants to compact it; the commit lock is held."""
        refuse_to_write(self.state.fs, self.state.manifest)
        self._first_lsn(0)
        self._changed = True
        self.seal()

    @property
    def sealer(self) -> Sealer:
        """What does the file work, for who holds the commit lock."""
        return self._sealer

    def _write_footer(self) -> SegmentInfo:
        info = self._sealer.append_footer(self.syncing.durable_lsn)
        self.syncing.sync_active()
        return info

    # --- closing ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Record a durable mark and a hint, when this handle committed anything.

        Waits for who is inside; whoever comes later gets ClosedError. Raises LockedError,
        StorageFullError, StorageIOError; the handle is closed all the same.
        """
        syncing = self.syncing
        self.saver.close()
        with syncing.hold():
            try:
                if not syncing.has_ended:
                    self._close_cleanly()
            finally:
                syncing.close()

    def _close_cleanly(self) -> None:
        state = self.state
        with self.lock.hold() as guard:
            state.begin_writing(guard.key)
            try:
                if not (self.commits or self._changed):
                    self._restore_hint()
                    return
                self.catch_up()
                refuse_to_write(state.fs, state.manifest)
                self.syncing.sync_active()
                last = state.last_lsn()
                self.syncing.durable = last
                if not self._sealer.hint_will_do(self.commits):
                    self._sealer.write_hint(last)
                cursor, manifest = state.active.cursor, state.manifest
                mark = Mark(state.active.id, cursor.offset, cursor.last_lsn, cursor.chain)
                # Nobody was given an LSN above: the next session may go on right behind it.
                ceiling = max(cursor.last_lsn, manifest.lsn_floor) + 1
                if mark != manifest.mark or ceiling != manifest.lsn_ceiling:
                    self._sealer.install(replace(manifest, mark=mark, lsn_ceiling=ceiling))
            finally:
                self.syncing.close()
                state.end_writing()

    def _restore_hint(self) -> None:
        """Write a hint that was lost or distrusted anew: it spares the next opening the scan."""
        state = self.state
        active, mark = state.active, state.manifest.mark
        is_marked = (active.id, active.cursor.offset) == (mark.segment, mark.offset)
        is_lost = is_marked and active.hinted is None and active.has_commits()
        if is_lost and state.is_current() and not state.is_version_1:
            self._sealer.write_hint(state.last_lsn())
