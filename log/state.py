"""What a process knows of the log: the published view, and how it follows the files.

A :class:`View` is immutable and answers every question about one head. Readers take the newest view
after two cheap checks (did the active segment grow, is there a newer manifest); a writer does the
same under the commit lock, where it may also repair (``mldb.log.recovery``).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence

from mldb.errors import CorruptError, StorageIOError
from mldb.log.active import HALF_DONE, Active, open_active
from mldb.log.fs.protocol import File, FileSystem
from mldb.log.index.address import EMPTY_COMMIT, CommitRow, Entry
from mldb.log.index.lineage import intervals_at
from mldb.log.index.pause import collection_paused
from mldb.log.lock import LOCK
from mldb.log.manifest import Manifest, load_manifest, manifest_name, manifest_numbers
from mldb.log.mappings import MappingBudget
from mldb.log.scan import Batch, refuse_unknown, scan
from mldb.log.segment import Verify, segment_name
from mldb.log.view import EMPTY_VIEW, SealedPart, View, make_view

_LISTINGS = 8


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
        max_mapped: int,
        announced: File | None = None,
    ) -> None:
        """Open what *manifest* names. *announced* is the lock file when it is open already."""
        self.fs = fs
        self.verify = verify
        self.writable = writable
        self.known = known
        self.mutex = threading.RLock()
        self.writing = False
        self.manifest = manifest
        self.mappings = MappingBudget(max_mapped)
        self.sealed: dict[int, SealedPart] = {}
        self.distrusted: list[str] = []
        self.active = self._open(manifest)
        self.view = EMPTY_VIEW
        self._load_sealed()
        self._announced = announced or open_announced(fs, writable=writable)
        self.named = 0  # the newest manifest whose name is known to be durable
        self.next_number = 0
        self._next_manifest = self._manifest_name = ""
        self._look_ahead()
        if writable:
            self.announce(manifest.number)  # a new or restored lock file is empty
        self.follow()

    def announce(self, number: int) -> None:
        """Let every process look for manifest *number*: called before it is installed."""
        if self._announced is not None and self._announced.size() < number:
            self._announced.pwritev([bytes(1)], number - 1)

    # --- opening ----------------------------------------------------------------------------------

    def _load_sealed(self) -> None:
        wanted = {info.number: info for info in self.manifest.segments}
        self.sealed = {
            number: self.sealed[number]
            if number in self.sealed and self.sealed[number].info == info
            else SealedPart(self.fs, info, self.verify, self.mappings)
            for number, info in wanted.items()
        }

    def _look_ahead(self) -> None:
        """Remember the number that the next manifest will have.

        A damaged newer one is stepped over; an intact one, installed since ours was read, waits.
        """
        self.next_number = self.manifest.number + 1
        while _is_damaged(self.fs, self.next_number):
            self.next_number += 1
        self._next_manifest = manifest_name(self.next_number)
        self._manifest_name = manifest_name(self.manifest.number)

    def _open(self, manifest: Manifest) -> Active:
        return open_active(
            self.fs,
            manifest,
            writable=self.writable,
            verify=self.verify,
            distrusted=self.distrusted,
        )

    # --- following --------------------------------------------------------------------------------

    def head(self) -> View:
        """Return the newest view, after looking whether anything was appended or installed."""
        if self.writing:
            return self.view
        active = self.active
        if active.file.size() == active.seen and not self.manifest_waits():
            return self.view
        with self.mutex:
            if not self.writing:
                self.follow()
            return self.view

    def manifest_waits(self) -> bool:
        """Whether a newer manifest may have appeared.

        Whoever installs number N makes the lock file N bytes long before that, so that equality
        proves in one cheap call that nothing is newer. Otherwise look: while this process slept,
        the next one may have come and gone; then this one is gone too.
        """
        if self._announced is not None and self._announced.size() == self.manifest.number:
            return False
        return self.fs.exists(self._next_manifest) or not self.fs.exists(self._manifest_name)

    def is_current(self) -> bool:
        """Whether the files certainly hold nothing unknown and no torn tail. ``mutex`` is held."""
        active, announced = self.active, self._announced
        seen = active.seen
        return (
            active.file.size() == seen
            and active.cursor.offset == seen
            and announced is not None
            and announced.size() == self.manifest.number
        )

    def follow(self) -> None:
        """Catch up with the files; ``mutex`` is held.

        Repairs nothing: an incomplete tail is left alone.
        """
        if self.active.seen == HALF_DONE:
            # Ctrl-C or an error came in the middle of a change: read it all from the files again.
            self._take(self.manifest, self._open(self.manifest))
        while self.manifest_waits():
            manifest = load_newest(self.fs, self.distrusted)
            if manifest.number <= self.manifest.number:
                # The newer one is damaged, or ours was deleted: what is known here is newer.
                self._look_ahead()
                break
            self._adopt(manifest)
        active = self.active
        size = active.file.size()
        if size != active.seen:
            active.seen = HALF_DONE
            self._scan(size)
            self.publish()
            active.seen = size

    def _adopt(self, manifest: Manifest) -> None:
        """Take over a newer manifest."""
        active = self.active
        if manifest.active != self.manifest.active:
            # The old file is not closed here: another thread may be syncing it. It closes when
            # collected.
            active = self._open(manifest)
            active.verify_after = max(active.verify_after, active.cursor.last_lsn)
            active.verify_until = 0
        self._take(manifest, active)

    def _take(self, manifest: Manifest, active: Active) -> None:
        self.active.seen = active.seen = HALF_DONE
        self.active = active
        self.manifest = manifest
        self._look_ahead()
        self._load_sealed()
        active.seen = -1

    def _scan(self, size: int) -> None:
        active = self.active
        cursor = active.cursor
        if cursor.offset >= size:
            return
        data = active.file.map(size)
        with collection_paused():
            self._scan_into(active, data)

    def _scan_into(self, active: Active, data: memoryview) -> None:
        cursor = active.cursor
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
        previous = active.memory.last_lsn or self.last_lsn()
        if row.parent != previous:
            active.jumps.append((row.lsn, row.parent))
        active.memory.add(row, entries)
        active.count += len(entries)
        active.segment.valid = active.cursor.offset

    def appended(
        self, row: CommitRow, entries: Sequence[tuple[bytes, Entry]], end: int, chain: bytes
    ) -> None:
        """Take in and publish the batch that this process has just appended up to *end*."""
        with self.mutex:
            active = self.active
            cursor = active.cursor
            number, head, jumps, intervals, *rest = self.view
            active.seen = HALF_DONE
            cursor.offset = end
            cursor.last_lsn = row.lsn
            cursor.chain = chain
            if row.parent == head.lsn and intervals:
                active.memory.add(row, entries)
                active.count += len(entries)
                active.segment.valid = end
                intervals = (*intervals[:-1], (intervals[-1][0], row.lsn))
                self.view = make_view((number, row, jumps, intervals, *rest))
            else:
                self.add(row, entries)
                self.publish()
            active.seen = end

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
            {},
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
        """Close the files. What is mapped stays so for as long as views, arrays or handles live."""
        with self.mutex:
            self.active.file.close()
            if self._announced is not None:
                self._announced.close()


def open_announced(fs: FileSystem, *, writable: bool) -> File | None:
    """Open the lock file, whose length is the number of the newest manifest announced."""
    return fs.open(LOCK, "rw" if writable else "r") if fs.exists(LOCK) else None


def load_newest(fs: FileSystem, distrusted: list[str], numbers: Sequence[int] = ()) -> Manifest:
    """Load the highest valid manifest; *numbers* are a listing just made, if there is one.

    Raises CorruptError when none is valid.
    """
    for _ in range(_LISTINGS):
        try:
            return _load_highest(fs, distrusted, numbers or manifest_numbers(fs))
        except StorageIOError as error:
            # Between the listing and the reading a writer may have replaced the manifests.
            if error.errno != errno.ENOENT:
                raise
            last, numbers = error, ()
    raise last


def _is_damaged(fs: FileSystem, number: int) -> bool:
    """Tell whether manifest *number* is there and unreadable."""
    if not fs.exists(manifest_name(number)):
        return False
    try:
        load_manifest(fs, number)
    except CorruptError:
        return True
    except StorageIOError as error:
        # It came and went; its successor waits.
        if error.errno != errno.ENOENT:
            raise
    return False


def _load_highest(fs: FileSystem, distrusted: list[str], numbers: Sequence[int]) -> Manifest:
    damage: CorruptError | None = None
    for number in reversed(numbers):
        try:
            manifest = load_manifest(fs, number)
        except CorruptError as error:
            distrusted.append(str(error))
            damage = damage or error
            continue
        if damage is not None and fs.exists(segment_name(manifest.active + 1)):
            # The damaged manifest may have published that segment; falling back would drop it.
            raise damage
        return manifest
    raise damage or CorruptError(
        "no manifest is left: this folder holds no usable store", file=manifest_name(1)
    )
