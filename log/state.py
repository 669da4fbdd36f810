"""What a process knows of the log: the published view, and how it follows the files.

A :class:`View` is immutable and answers every question about one head. Readers take the newest view
after two cheap checks (did the active segment grow, is there a newer manifest); a writer does the
same under the commit lock, where it may also repair (``mldb.log.recovery``).
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mldb.errors import CorruptError, MldbError, StorageIOError
from mldb.log import format as fmt
from mldb.log.address import EMPTY_COMMIT, CommitRow, Entry, Intervals
from mldb.log.checksum import digest128
from mldb.log.frame import (
    DamagedFrame,
    check_body,
    decode_commit,
    decode_file_header,
    decode_header,
)
from mldb.log.fs import File, FileSystem
from mldb.log.index import CommitField, IndexPart, MemoryIndex
from mldb.log.lineage import Jump, intervals_at
from mldb.log.manifest import Manifest, SegmentInfo, load_manifest, manifest_name, manifest_numbers
from mldb.log.mapped_index import MappedIndex
from mldb.log.scan import Batch, Cursor, refuse_unknown, scan
from mldb.log.segment import Segment, Verify, index_source, open_index, segment_name

HINTS = "hints"


def hint_name(number: int) -> str:
    """The hint of the active segment *number*."""
    return f"{HINTS}/{number:010d}.idx"


class SealedPart:
    """A sealed segment: its file and its mapped index, opened when first asked. Any thread."""

    def __init__(self, fs: FileSystem, info: SegmentInfo, verify: Verify) -> None:
        self.info = info
        self.segment = Segment(fs, info.number, info.origin, info.length)
        self._fs = fs
        self._verify = verify
        self._index: MappedIndex | None = None

    @property
    def index(self) -> MappedIndex:
        """The mapped index."""
        if self._index is None:
            info = self.info
            source = self.segment
            if info.index_file:
                source = index_source(
                    self._fs, info.index_file, info.origin, info.number, fmt.FILE_INDEX
                )
            self._index, _ = open_index(source, info.index_offset, self._verify)
        return self._index


@dataclass(frozen=True, slots=True)
class View:
    """One head of the log. Immutable; valid for ever, since what it maps is never changed.

    ``commit`` is the last commit in the log. ``sealed`` ascends, ``active`` descends. What the
    index parts learn later has higher LSNs and is ignored.
    """

    number: int
    commit: CommitRow
    jumps: tuple[Jump, ...]
    intervals: Intervals
    sealed: tuple[SealedPart, ...]
    active: tuple[IndexPart, ...]
    segments: dict[int, Segment]
    kept: tuple[int, ...] | None = None
    """The commits that retention left, ascending; None when nothing was ever pruned."""

    def newest(self, key: bytes, intervals: Intervals) -> Entry | None:
        """Return the newest version of *key* inside *intervals*, tombstones included."""
        for part in self.active:
            found = part.newest(key, intervals)
            if found is not None:
                return found
        if not intervals:
            return None
        high, low = intervals[-1][1], intervals[0][0]
        for sealed in reversed(self.sealed):
            if sealed.info.first_lsn > high or sealed.info.last_lsn < low:
                continue
            found = sealed.index.newest(key, intervals)
            if found is not None:
                return found
        return None

    def _parts(self) -> Iterator[IndexPart]:
        """All parts, oldest first."""
        for sealed in self.sealed:
            yield sealed.index
        yield from reversed(self.active)

    def versions(self, key: bytes) -> list[Entry]:
        """Return every version of *key* on every lineage up to this head, oldest first."""
        high = self.commit.lsn
        return [
            entry
            for part in self._parts()
            for entry in part.versions(key)
            if entry.commit_lsn <= high
        ]

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield the keys with this prefix in byte order, each once, whether visible or not."""
        last = None
        for key in heapq.merge(*[part.keys(prefix) for part in self._parts()]):
            if key != last:
                last = key
                yield key

    def live(self, prefix: bytes, intervals: Intervals) -> Iterator[tuple[bytes, Entry]]:
        """Yield (key, newest entry) of the keys that exist inside *intervals*."""
        for key in self.keys(prefix):
            entry = self.newest(key, intervals)
            if entry is not None and not entry.flags & fmt.ENTRY_TOMBSTONE:
                yield key, entry

    def commit_at(self, lsn: int) -> CommitRow | None:
        """Return commit *lsn* of any lineage."""
        if lsn == self.commit.lsn:
            return self.commit
        for part in self.active:
            row = part.commit_at(lsn)
            if row is not None:
                return row
        for sealed in self.sealed:
            if sealed.info.first_lsn <= lsn <= sealed.info.last_lsn:
                return sealed.index.commit_at(lsn)
        return None

    def commits(self, low: int, high: int) -> Iterator[tuple[int, CommitRow]]:
        """Yield (segment number, commit) with low <= lsn <= high, ascending, on every lineage."""
        for sealed in self.sealed:
            if sealed.info.last_lsn >= low and sealed.info.first_lsn <= high:
                for row in sealed.index.commits(low, high):
                    yield sealed.info.number, row
        number = max(self.segments)
        for part in reversed(self.active):
            for row in part.commits(low, min(high, self.commit.lsn)):
                yield number, row

    def last_commit(self, intervals: Intervals, field: CommitField, limit: int) -> CommitRow | None:
        """Return the last commit inside *intervals* with *field* <= *limit*."""
        for low, high in reversed(intervals):
            for part in self.active:
                row = part.last_commit(low, high, field, limit)
                if row is not None:
                    return row
            for sealed in reversed(self.sealed):
                if sealed.info.first_lsn > high or sealed.info.last_lsn < low:
                    continue
                row = sealed.index.last_commit(low, high, field, limit)
                if row is not None:
                    return row
        return None


@dataclass(slots=True)
class Active:
    """The segment that is appended to. Changed only while ``LogState.mutex`` is held."""

    segment: Segment
    file: File
    cursor: Cursor
    memory: MemoryIndex
    hinted: MappedIndex | None
    jumps: list[Jump]
    seen: int = -1
    """File length at the last look; a longer file has something new."""
    verify_after: int = 0
    verify_until: int = 0
    """Payloads of commits above ``verify_after`` that start before this offset are verified when scanned."""

    def parts(self) -> tuple[IndexPart, ...]:
        """Index parts, newest first."""
        return (self.memory,) if self.hinted is None else (self.memory, self.hinted)

    def entry_count(self) -> int:
        """Versions in this segment."""
        return sum(part.entry_count() for part in self.parts())

    def has_commits(self) -> bool:
        """Whether any batch is in this segment."""
        return any(part.last_lsn for part in self.parts())


class LogState:
    """Follows the files of one store. Any thread may call :meth:`head`.

    ``mutex`` guards everything but ``view``, which is replaced as a whole. ``writing`` is set by
    the writer of this process between its catch-up and its publication: meanwhile the view is the
    newest that exists, and the growing file must not be scanned.
    """

    def __init__(
        self,
        fs: FileSystem,
        manifest: Manifest,
        *,
        verify: Verify,
        writable: bool,
        known: frozenset[int],
    ) -> None:
        self.fs = fs
        self.verify = verify
        self.writable = writable
        self.known = known
        self.mutex = threading.RLock()
        self.writing = False
        self.manifest = manifest
        self.sealed: dict[int, SealedPart] = {}
        self.distrusted: list[str] = []
        self.active = self._open_active(manifest)
        self.view = EMPTY_VIEW
        self._load_sealed()
        self.next_number = 0
        self._next_manifest = ""
        self._look_ahead()
        self.follow()

    # --- opening ----------------------------------------------------------------------------------

    def _load_sealed(self) -> None:
        wanted = {info.number: info for info in self.manifest.segments}
        self.sealed = {
            number: self.sealed[number]
            if number in self.sealed and self.sealed[number].info == info
            else SealedPart(self.fs, info, self.verify)
            for number, info in wanted.items()
        }

    def _look_ahead(self) -> None:
        """Remember the name that the next manifest will have.

        A damaged newer one is stepped over.
        """
        self.next_number = max(manifest_numbers(self.fs), default=self.manifest.number) + 1
        self._next_manifest = manifest_name(self.next_number)

    def _open_active(self, manifest: Manifest) -> Active:
        number = manifest.active
        segment = Segment(self.fs, number, manifest.active_origin, fmt.FILE_HEADER_SIZE)
        file = self.fs.open(segment.name, "rw" if self.writable else "r")
        try:
            header = decode_file_header(file.pread(fmt.FILE_HEADER_SIZE, 0), segment.name)
        except DamagedFrame as error:
            file.close()
            raise CorruptError(
                f"the header of the active segment is damaged: {error}. Sealed segments are "
                "untouched; "
                "restore this file from a backup.",
                file=segment.name,
                offset=0,
            ) from None
        if (header.store_id, header.file_id) != (manifest.active_origin, number):
            file.close()
            raise CorruptError(
                f"this is segment {header.file_id} of store {header.store_id.hex()}, expected "
                f"segment {number} of "
                f"store {manifest.active_origin.hex()}: files were swapped. Nothing was changed.",
                file=segment.name,
                offset=0,
            )
        size = file.size()
        mark = manifest.mark
        if mark.segment == number and size < mark.offset:
            file.close()
            raise CorruptError(
                f"the active segment is {size} bytes long, but {mark.offset} bytes (up to commit "
                f"{mark.lsn}) were "
                "durable: it was cut. Restore it from a backup; nothing was changed.",
                file=segment.name,
                offset=size,
            )
        first = max(header.base_lsn - 1, 0)
        cursor = Cursor(fmt.FILE_HEADER_SIZE, first, chain_start(header.store_id, number))
        active = Active(segment, file, cursor, MemoryIndex(), None, [], verify_until=size)
        if mark.segment == number:
            cursor.durable = active.verify_after = mark.lsn
            self._try_hint(active, size)
        return active

    def _try_hint(self, active: Active, size: int) -> None:
        """Start from the hint of the last clean close.

        If it fits the log; otherwise distrust and ignore it.
        """
        name = hint_name(active.segment.number)
        if not self.fs.exists(name):
            return
        try:
            number, store_id = active.segment.number, active.segment.store_id
            index, fields = open_index(
                index_source(self.fs, name, store_id, number, fmt.FILE_HINT),
                fmt.FILE_HEADER_SIZE,
                self.verify,
            )
            end, lsn, chain, durable = (fields[key] for key in ("end", "lsn", "chain", "durable"))
            jumps = fields["jumps"]
            if not (
                isinstance(end, int)
                and isinstance(lsn, int)
                and isinstance(durable, int)
                and end <= size
            ):
                raise CorruptError("the hint describes more than the log holds", file=name)
            row = index.commit_at(lsn)
            if row is None or self._commit_digest(active, row, end) != chain:
                raise CorruptError("the hint describes another log", file=name)
            active.jumps = [(int(jump), int(target)) for jump, target in jumps]  # type: ignore[attr-defined]
        except (MldbError, DamagedFrame, KeyError, TypeError, ValueError) as error:
            self.distrusted.append(f"{name}: {error}")
            active.jumps = []
            return
        active.hinted = index
        active.cursor = Cursor(end, lsn, bytes(chain), max(durable, active.cursor.durable))  # type: ignore[arg-type]
        active.segment.valid = end

    def _commit_digest(self, active: Active, row: CommitRow, end: int) -> bytes:
        data = active.file.pread(end - row.end, row.end)
        frame = decode_header(data, row.end, active.segment.seed, end, row.end)
        if frame.end != end or frame.header.lsn != row.lsn:
            raise DamagedFrame("no such commit here")
        return decode_commit(check_body(data, frame, row.end)).digest

    # --- following --------------------------------------------------------------------------------

    def head(self) -> View:
        """Return the newest view, after looking whether anything was appended or installed."""
        if self.writing:
            return self.view
        active = self.active
        if active.file.size() == active.seen and not self.fs.exists(self._next_manifest):
            return self.view
        with self.mutex:
            if not self.writing:
                self.follow()
            return self.view

    def manifest_waits(self) -> bool:
        """Whether a newer manifest has appeared."""
        return self.fs.exists(self._next_manifest)

    def follow(self) -> None:
        """Catch up with the files.

        ``mutex`` is held. Does not repair: an incomplete tail is left alone.
        """
        while self.manifest_waits():
            self._adopt(load_newest(self.fs, self.distrusted))
        active = self.active
        size = active.file.size()
        if size != active.seen:
            self._scan(size)
            active.seen = size
            self.publish()

    def _adopt(self, manifest: Manifest) -> None:
        """Take over a newer manifest."""
        if manifest.active != self.manifest.active:
            # The old file is not closed here: another thread may be syncing it. It closes when
            # collected.
            self.active = self._open_active(manifest)
            self.active.verify_after = max(self.active.verify_after, self.active.cursor.last_lsn)
            self.active.verify_until = 0
        self.manifest = manifest
        self._look_ahead()
        self._load_sealed()
        self.active.seen = -1

    def _scan(self, size: int) -> None:
        active = self.active
        cursor = active.cursor
        if cursor.offset >= size:
            return
        data = active.file.map(size)
        verify_after = active.verify_after if cursor.offset < active.verify_until else None
        for batch in scan(
            data, cursor, active.segment.seed, active.segment.number, verify_after=verify_after
        ):
            self.apply(batch)

    def apply(self, batch: Batch) -> None:
        """Add a scanned batch to the index."""
        refuse_unknown(batch, self.known, self.active.segment.name)
        self.add(batch.row, batch.entries)

    def add(self, row: CommitRow, entries: Sequence[tuple[bytes, Entry]]) -> None:
        """Add one commit to the active index; the cursor already stands behind it."""
        active = self.active
        if row.parent != self.last_lsn():
            active.jumps.append((row.lsn, row.parent))
        active.memory.add(row, entries)
        active.segment.valid = active.cursor.offset

    def last_lsn(self) -> int:
        """LSN of the last commit in the log, 0 when there is none."""
        for part in self.active.parts():
            if part.last_lsn:
                return part.last_lsn
        return max((info.last_lsn for info in self.manifest.segments), default=0)

    def publish(self) -> None:
        """Make the newest view visible."""
        active = self.active
        row = self._last_row()
        jumps = (*self.manifest.jumps, *active.jumps)
        self.view = View(
            self.manifest.number,
            row,
            jumps,
            intervals_at(jumps, row.lsn),
            tuple(self.sealed[info.number] for info in self.manifest.segments),
            active.parts(),
            {
                **{number: part.segment for number, part in self.sealed.items()},
                active.segment.number: active.segment,
            },
            self.manifest.kept,
        )

    def advance(self, row: CommitRow) -> None:
        """Publish the view after one more commit of the usual kind.

        Cheaper than :meth:`publish`.
        """
        view = self.view
        if row.parent != view.commit.lsn or not view.intervals:
            self.publish()
            return
        intervals = (*view.intervals[:-1], (view.intervals[-1][0], row.lsn))
        self.view = View(
            view.number,
            row,
            view.jumps,
            intervals,
            view.sealed,
            view.active,
            view.segments,
            view.kept,
        )

    def _last_row(self) -> CommitRow:
        """The head: the last commit in the log."""
        for part in self.active.parts():
            if part.last_lsn:
                row = part.commit_at(part.last_lsn)
                assert row is not None
                return row
        for info in reversed(self.manifest.segments):
            if info.last_lsn:
                row = self.sealed[info.number].index.commit_at(info.last_lsn)
                if row is None:
                    raise CorruptError(
                        f"commit {info.last_lsn} is missing in its index",
                        file=segment_name(info.number),
                    )
                return row
        return EMPTY_COMMIT

    def close(self) -> None:
        """Close the active file; views stay valid."""
        with self.mutex:
            self.active.file.close()


EMPTY_VIEW = View(0, EMPTY_COMMIT, (), (), (), (), {})


def chain_start(store_id: bytes, number: int) -> bytes:
    """The digest that the first batch of a segment continues from."""
    return digest128(store_id + number.to_bytes(8, "little"))


def load_newest(fs: FileSystem, distrusted: list[str]) -> Manifest:
    """Load the highest valid manifest. Raises CorruptError when none is valid."""
    numbers = manifest_numbers(fs)
    first_error: MldbError | None = None
    for number in reversed(numbers):
        try:
            manifest = load_manifest(fs, number)
        except (CorruptError, StorageIOError) as error:
            if isinstance(error, CorruptError):
                distrusted.append(str(error))
            elif fs.exists(manifest_name(number)):
                raise
            # Otherwise it was replaced by a newer one between the listing and the reading.
            first_error = first_error or error
            continue
        if first_error is not None and fs.exists(segment_name(manifest.active + 1)):
            # The damaged manifest may have published that segment; falling back would drop it in
            # silence.
            raise first_error
        return manifest
    if first_error is None:
        first_error = CorruptError(
            "no manifest is left: this folder holds no usable store", file=manifest_name(1)
        )
    raise first_error
