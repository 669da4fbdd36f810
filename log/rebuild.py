"""Build a new store out of commits that were made before: what replay and repair write with.

The one place where a commit is stored under an LSN, an epoch, a time and an id that are given. It
works on a folder that is no store yet: segments stand there complete and synced, one after another,
and the manifest that makes them a store comes last (:meth:`StoreBuilder.publish`). Until then
nobody can open the folder, and nobody was told of an LSN of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from mldb.errors import CorruptError, UsageError
from mldb.log import format as fmt
from mldb.log.active import Active, chain_start
from mldb.log.batch import encode_batch
from mldb.log.birth import FOLDERS, publish_first
from mldb.log.file_header import encode_file_header
from mldb.log.frame import Record, hash_record
from mldb.log.fs.protocol import Buffer, File, FileSystem
from mldb.log.grown import Grown
from mldb.log.index.address import EMPTY_COMMIT, CommitRow, Entry
from mldb.log.index.columns import MetadataOf
from mldb.log.index.footer import describe, index_frame
from mldb.log.index.lineage import Jump, Jumps
from mldb.log.index.memory import MemoryIndex
from mldb.log.index.pause import collection_paused
from mldb.log.manifest import Kept, SegmentInfo
from mldb.log.scan import Cursor, refuse_unknown
from mldb.log.scan_run import BatchRun, scan_runs
from mldb.log.segment import SEGMENTS, Segment, segment_name

WRITE_STEP: Final = 8 << 20
_NO_EXTRA: Mapping[str, object] = {}


class BuiltSegment(NamedTuple):
    """A segment that stands complete in the new folder, and the jumps of its commits."""

    info: SegmentInfo
    jumps: tuple[Jump, ...]


class StoreBuilder:
    """Writes a store that nobody else has yet. One thread; one builder for each folder.

    What :meth:`append`, :meth:`carry` and :meth:`copy` are given must ascend by LSN. Payloads are
    kept until they are written, at the latest when their segment is full.
    """

    def __init__(
        self,
        fs: FileSystem,
        origin: bytes,
        metadata_of: MetadataOf | None,
        *,
        segment_bytes: int = fmt.SEGMENT_BYTES,
        segment_entries: int = fmt.SEGMENT_ENTRIES,
        known: frozenset[int] | None = None,
        done: Callable[[BuiltSegment], None] = lambda built: None,
    ) -> None:
        """Begin in the folder *fs*, for commits of the store with the id *origin*.

        *done* is told each segment once it is durable. *known* are the event kinds that may be
        carried; None is all.
        """
        self._fs = fs
        self._origin = origin
        self._metadata_of = metadata_of
        self._segment_bytes = segment_bytes
        self._segment_entries = segment_entries
        self._known = known
        self._done = done
        self._open: Active | None = None
        self._waiting: list[Buffer] = []
        self._waiting_bytes = 0
        self.segments: list[SegmentInfo] = []
        self.jumps: list[Jump] = []
        self.last_lsn = 0
        self.commits = 0
        for folder in FOLDERS:
            fs.mkdir(folder)

    # --- one commit after another -----------------------------------------------------------------

    def append(
        self, row: CommitRow, records: Sequence[Record], extra: Mapping[str, object] = _NO_EXTRA
    ) -> None:
        """Store *records* as the commit that *row* says: its LSN, parent, epoch, time, clock, id.

        The records may be fewer than the commit had. Raises LimitError, StorageFullError,
        StorageIOError; UsageError for LSNs that do not ascend.
        """
        first = row.lsn - len(records)
        if first <= self.last_lsn or not 0 <= row.parent <= self.last_lsn:
            raise UsageError(f"commit {row.lsn} does not follow commit {self.last_lsn}")
        payload = count = 0
        for record in records:
            payload += record.payload_length
            count += len(record.drafts)
            hash_record(record)
        active = self._room(first, payload, count)
        cursor, segment = active.cursor, active.segment
        parent = EMPTY_COMMIT._replace(lsn=row.parent, time=row.time)
        start = (
            *(segment.seed, segment.id, cursor.chain, cursor.offset, first, self._base(active)),
            *(parent, row.epoch, row.clock),
        )
        extents, made, entries, end, chain = encode_batch(records, start, extra, row.id)
        for _, buffers in extents:
            self._waiting += buffers
        self._waiting_bytes += end - cursor.offset
        cursor.offset, cursor.chain = end, chain
        self._note(active, made, entries)
        if self._waiting_bytes >= WRITE_STEP:
            self._write(active)

    def _base(self, active: Active) -> int:
        """What was durable before a batch: the segments before its own."""
        return self.segments[-1].last_lsn if self.segments else 0

    def _room(self, first: int, payload: int, count: int) -> Active:
        active = self._open
        if (
            active is not None
            and active.memory.last_lsn
            and (
                active.cursor.offset + payload > self._segment_bytes
                or active.count + count > self._segment_entries
            )
        ):
            self.close_segment()
            active = None
        return active or self._begin(os.urandom(16), self._origin, first)

    def _begin(self, segment_id: bytes, origin: bytes, first: int, header: bytes = b"") -> Active:
        name = segment_name(segment_id)
        self._fs.unlink(name)  # left by a build that was interrupted
        file = self._fs.open(name, "create")
        header = header or encode_file_header(
            fmt.FILE_SEGMENT,
            origin,
            self._fs.time_ns(),
            segment_id=segment_id,
            base_lsn=first,
            published=1,
        )
        self._waiting, self._waiting_bytes = [header], len(header)
        segment = Segment(self._fs, segment_id, origin, fmt.FILE_HEADER_SIZE, grows=True)
        cursor = Cursor(fmt.FILE_HEADER_SIZE, self.last_lsn, chain_start(origin, segment_id))
        self._open = Active(segment, file, cursor, MemoryIndex(), None, [])
        return self._open

    def _note(self, active: Active, row: CommitRow, entries: Sequence[tuple[bytes, Entry]]) -> None:
        if row.parent != self.last_lsn:
            active.jumps.append((row.lsn, row.parent))
        active.memory.add(row, entries)
        active.count += len(entries)
        active.cursor.last_lsn = self.last_lsn = row.lsn
        self.commits += 1

    def _write(self, active: Active) -> None:
        if self._waiting:
            active.file.pwritev(self._waiting, self._end_on_disk(active))
            self._waiting, self._waiting_bytes = [], 0

    def _end_on_disk(self, active: Active) -> int:
        return max(active.cursor.offset, fmt.FILE_HEADER_SIZE) - self._waiting_bytes

    def close_segment(self) -> None:
        """Finish the segment that is being written with its footer, and sync it."""
        active = self._open
        if active is None:
            return
        self._write(active)
        last, offset = active.cursor.last_lsn, active.cursor.offset
        footer = index_frame(active, last, last, offset, self._metadata_of)
        length = offset + active.file.pwritev(footer, offset)
        active.file.sync()
        active.file.close()
        self._open = None
        self._finish(describe(active, last, length, "", offset), tuple(active.jumps))

    def _finish(self, info: SegmentInfo, jumps: tuple[Jump, ...]) -> None:
        self._fs.sync_dir(SEGMENTS)
        self.segments.append(info)
        self.jumps += jumps
        self._done(BuiltSegment(info, jumps))

    # --- whole segments ---------------------------------------------------------------------------

    def carry(self, segment: Segment, data: memoryview, until: int) -> None:
        """Write the batches of a segment up to commit *until* again: byte for byte, a new footer.

        *data* is its file up to the end of its batches or beyond. Every frame and block of what is
        carried is checked. Raises CorruptError, FormatVersionError.
        """
        self.close_segment()
        header = bytes(data[: fmt.FILE_HEADER_SIZE])
        segment.check_file_header(header)
        active = self._begin(segment.id, segment.store_id, self.last_lsn + 1, header)
        cursor = active.cursor
        with collection_paused():
            for found in scan_runs(
                data, cursor, segment.seed, segment.id, verify_after=0, until=until
            ):
                if isinstance(found, BatchRun):
                    if self._known is not None:
                        found.refuse_unknown(self._known, segment.name)
                    self._take(active, found.taken_apart())
                else:
                    if self._known is not None:
                        refuse_unknown(found, self._known, segment.name)
                    self._take(active, [(found.row, found.entries)])
        if self.last_lsn < until:
            raise CorruptError(
                f"commit {self.last_lsn} is the last that can be read here, commit {until} was "
                f"expected: {cursor.problem or 'the segment ends'}. Nothing of the source was "
                "changed; mldb repair salvages what is readable.",
                file=segment.name,
                offset=cursor.problem_offset or cursor.offset,
            )
        _copy(active.file, data, fmt.FILE_HEADER_SIZE, cursor.offset)
        active.file.pwritev([header], 0)
        self._waiting, self._waiting_bytes = [], 0
        self.close_segment()

    def _take(
        self, active: Active, found: Iterable[tuple[CommitRow, list[tuple[bytes, Entry]]]]
    ) -> None:
        """Note commits that were scanned as part of the segment that is being written."""
        add, jumps, last = active.memory.add, active.jumps, self.last_lsn
        for row, entries in found:
            if row.parent != last:
                jumps.append((row.lsn, row.parent))
            add(row, entries)
            active.count += len(entries)
            last = row.lsn
            self.commits += 1
        self.last_lsn = last

    def copy(
        self, info: SegmentInfo, data: memoryview, jumps: Sequence[Jump], commits: int
    ) -> None:
        """Write a segment as it is, footer and all; the caller has checked *data*, its whole file.

        For compacted segments, which hold no batches.
        """
        self.close_segment()
        name = segment_name(info.id)
        self._fs.unlink(name)
        file = self._fs.open(name, "create")
        try:
            _copy(file, data, 0, len(data))
            file.sync()
        finally:
            file.close()
        self.last_lsn = info.last_lsn
        self.commits += commits
        self._finish(info, tuple(jumps))

    def adopt(self, built: BuiltSegment) -> None:
        """Take over a segment that an earlier builder finished here. Raises CorruptError."""
        name = segment_name(built.info.id)
        file = self._fs.open(name, "r")
        try:
            size = file.size()
        finally:
            file.close()
        if size != built.info.length:
            raise CorruptError(
                f"the segment is {size} bytes long, {built.info.length} were written: delete the "
                "unfinished target and begin anew.",
                file=name,
                offset=size,
            )
        self.segments.append(built.info)
        self.jumps += built.jumps
        self.last_lsn = built.info.last_lsn

    def close(self) -> None:
        """Let go of a segment that is not finished; it is no part of anything. Harmless again."""
        active, self._open = self._open, None
        if active is not None:
            active.file.close()

    # --- the end ----------------------------------------------------------------------------------

    def publish(self, kept: Kept | None, origins: Sequence[bytes]) -> None:
        """Make the folder a store, with a store id of its own; nothing can be added afterwards.

        *kept* are the commits that retention left, *origins* the ids of stores that segments are
        of, besides that of this builder.
        """
        self.close_segment()
        floor = self.last_lsn
        every = tuple(dict.fromkeys((self._origin, *origins)))
        publish_first(
            self._fs, Grown(self.segments), floor, floor + 1, Jumps.of(self.jumps), kept, every
        )


def _copy(file: File, data: memoryview, low: int, high: int) -> None:
    for start in range(low, high, WRITE_STEP):
        file.pwritev([data[start : min(start + WRITE_STEP, high)]], start)
