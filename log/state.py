"""What a process knows of the log: the published view, and how it follows the files.

A :class:`View` is immutable and answers every question about one head. Readers take the newest view
after two cheap checks (did the active segment grow, is there a newer manifest); the sequencer does
the same under the commit lock, where it may also repair (``mldb.log.recovery``).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from mldb.errors import ClosedError, CorruptError, StoreMovedError
from mldb.log import format as fmt
from mldb.log import native
from mldb.log.active import HALF_DONE, Active, open_active
from mldb.log.directory.directory import Directory
from mldb.log.directory.part import Files
from mldb.log.directory.units import Units
from mldb.log.fs.protocol import File, FileSystem
from mldb.log.index.address import EMPTY_COMMIT, CommitRow, Entry
from mldb.log.index.pause import collection_paused
from mldb.log.lock import LOCK
from mldb.log.manifest import Manifest, manifest_name, manifest_numbers
from mldb.log.mappings import MappingBudget
from mldb.log.newest import is_damaged, load_newest, open_announced
from mldb.log.ownership import Key, OwnedLock
from mldb.log.parts import SealedParts
from mldb.log.scan import Batch, refuse_unknown, scan
from mldb.log.sealed import SealedPart
from mldb.log.segment import SegmentGoneError, segment_name
from mldb.log.view import EMPTY_VIEW, View, view_after
from mldb.options import Verify

if TYPE_CHECKING:
    from mldb.log.batch import BatchFields


class LogState:
    """Follows the files of one store. Any thread may call :meth:`head`, also inside other calls.

    ``mutex`` guards everything but ``view``, which is replaced as a whole. ``writing`` is the key
    of the commit lock while its owner makes the new views: meanwhile the view is the newest that
    exists, and the growing file must not be scanned. A call inside another of the same thread that
    holds either gets the view published last.
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
        lock_slot: Mapping[int, Key] | None = None,
    ) -> None:
        """Open what *manifest* names. *announced* is the lock file when it is open already.

        *lock_slot* is where the commit lock of this handle says who holds it.
        """
        self.fs = fs
        self.verify = verify
        self.writable = writable
        self.known = known
        self.mutex = OwnedLock("what this process knows of the log")
        self.writing: Key | None = None
        self._lock_slot = {} if lock_slot is None else lock_slot
        self.manifest = manifest
        self.mappings = MappingBudget(max_mapped)
        fs.relieve = self.mappings.release_all
        self.directory = Directory(Files(fs, manifest.store_id, verify, self.mappings))
        self.directory.on_loss = partial(_find_units_again, weakref.ref(self))
        self.distrusted: list[str] = []
        self.active = self._open(manifest)
        self.jumps = manifest.jumps.after(self.active.jumps)  # of all segments
        self.view = EMPTY_VIEW
        this = weakref.ref(self)  # a strong one would make a ring
        self._newest = lambda: _head_of(this())
        newest, mappings = self._newest, self.mappings  # not self, for the same reason
        self.parts = SealedParts(lambda info: SealedPart(fs, info, verify, mappings, newest))
        self.parts.follow(manifest.segments, self.active.segment)
        self.units = Units(self.parts.sealed, self.directory.units)
        self._lock_identity = fs.identity(LOCK) or (0, 0)
        self._lock_path = fs.looked_at(LOCK)
        self._lock_seen = (0, 0, 0)  # what a look at LOCK finds while the manifest is the newest
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

    @property
    def announced_number(self) -> int:
        """The newest manifest that was announced; 0 when the lock file is lost."""
        return 0 if self._announced is None else self._announced.size()

    def check_identity(self) -> int:
        """Raise StoreMovedError unless the store's path still leads to the folder opened.

        Returns the number of the newest manifest that was announced.
        """
        return self._refuse_moved(self.fs.look(LOCK))

    def _refuse_moved(self, found: tuple[int, int, int] | None) -> int:
        if found is None or found[:2] != self._lock_identity:
            raise self._moved("another folder stands there, or none")
        return found[2]

    def _moved(self, what: str) -> StoreMovedError:
        return StoreMovedError(
            f"{self.fs.root} is no longer the store that was opened: {what}. Nothing was stored, "
            "and what stands there now was not touched. What this handle has read stays readable; "
            "close it, look where the folder went, and open the store there."
        )

    # --- opening ----------------------------------------------------------------------------------

    def _look_ahead(self) -> None:
        """Remember the number that the next manifest will have.

        A damaged newer one is stepped over; an intact one, installed since ours was read, waits.
        """
        self.next_number = self.manifest.number + 1
        while is_damaged(self.fs, self.next_number):
            self.next_number += 1
        self._next_manifest = manifest_name(self.next_number)
        self._manifest_name = manifest_name(self.manifest.number)
        self._lock_seen = (*self._lock_identity, self.manifest.number)

    def _open(self, manifest: Manifest) -> Active:
        known = self.distrusted
        return open_active(
            self.fs, manifest, writable=self.writable, verify=self.verify, distrusted=known
        )

    # --- following --------------------------------------------------------------------------------

    def head(self) -> View:
        """Return the newest view, after looking whether anything was appended or installed."""
        if self.writing is not None and self.is_writing():
            return self.view
        active, announced, number = self.active, self._announced, self.manifest.number
        if (twin := native.twin) and twin.are_as_long(active.file, active.seen, announced, number):
            return self.view
        if active.file.size() == active.seen and (
            (announced is not None and announced.size() == number) or not self.manifest_waits()
        ):
            return self.view
        guard = self.mutex.hold_unless_inside()
        if guard is None:
            return self.view
        with guard:
            if not self.is_writing():
                self.follow()
            return self.view

    def is_writing(self) -> bool:
        """Whether the owner of the commit lock, and nobody else, makes new views now."""
        key = self.writing
        return key is not None and self._lock_slot.get(0) is key

    def begin_writing(self, key: Key) -> None:
        """Become the one source of new views, as the owner of the commit lock with this key.

        It ends with :meth:`end_writing`, or with the ownership.
        """
        self.writing = key
        if self.mutex.slot:  # a reader is following: it did not see the line above, so wait
            with self.mutex.hold():
                pass

    def end_writing(self) -> None:
        """Let readers follow the files again."""
        self.writing = None

    def manifest_waits(self) -> bool:
        """Whether a newer manifest may have appeared.

        Whoever installs number N makes the lock file N bytes long before that, so that equality
        proves in one cheap call that nothing is newer. Otherwise the newest one is N, or the one
        before while N is being made. A damaged one may stand there, too: then the next one is
        looked for by name. Without a lock file the folder is listed.
        """
        announced = 0 if self._announced is None else self._announced.size()
        if announced == self.manifest.number:
            return False
        if not announced:
            return manifest_numbers(self.fs.list(""))[-1:] > [self.manifest.number]
        for number in (announced, announced - 1):
            if number >= self.next_number and self.fs.exists(manifest_name(number)):
                return True
        return self.fs.exists(self._next_manifest) or not self.fs.exists(self._manifest_name)

    def is_current(self) -> bool:
        """Whether the files certainly hold nothing unknown and no torn tail.

        Raises StoreMovedError. The commit lock is held.
        """
        active, twin, path = self.active, native.twin, self._lock_path
        offset, seen = active.cursor.offset, self._lock_seen
        if path and twin is not None and twin.is_unchanged(path, seen, active.file, offset):
            return offset == active.seen
        return self.check_identity() == seen[2] and offset == active.seen == active.file.size()

    def follow(self) -> None:
        """Catch up with the files; ``mutex`` is held, or the commit lock by who writes.

        Repairs nothing: an incomplete tail is left alone.
        """
        if self.active.seen == HALF_DONE:
            # Ctrl-C or an error came in the middle of a change: read it all from the files again.
            try:
                self._take(self.manifest, self._open(self.manifest))
            except SegmentGoneError:
                if not self.manifest_waits():
                    raise
        while self.manifest_waits():
            manifest = load_newest(self.fs, self.distrusted, known=self.manifest)
            if manifest.number <= self.manifest.number:
                # The newer one is damaged, or ours was deleted: what is known here is newer.
                self._look_ahead()
                break
            try:
                self.adopt(manifest)
            except SegmentGoneError:
                # Its active segment was sealed and compacted since it was read: there is a newer.
                if load_newest(self.fs, [], known=manifest).number <= manifest.number:
                    raise
        active = self.active
        size = active.file.size()
        if size != active.seen:
            active.seen = HALF_DONE
            self._scan(size)
            self.publish()
            active.seen = size

    def adopt(self, manifest: Manifest) -> None:
        """Take over a newer manifest of the same history. Raises StoreMovedError for another."""
        mine = self.manifest
        if manifest.store_id != mine.store_id:
            raise self._moved(f"it holds store {manifest.store_id.hex()}")
        follows = manifest.number == mine.number + 1 and manifest.predecessor and mine.digest
        if follows and manifest.predecessor != mine.digest:
            raise self._moved(f"its {manifest_name(manifest.number)} continues another history")
        active = self.active
        if manifest.active != mine.active:
            # The old file closes when it is collected: another thread may be syncing it.
            active = self._open(manifest)
            active.verify_after = max(active.verify_after, active.cursor.last_lsn)
            active.verify_until = 0
        self._take(manifest, active)

    def _take(self, manifest: Manifest, active: Active) -> None:
        self.active.seen = active.seen = HALF_DONE
        self.active.segment.grows = active is self.active
        active.stop_lsn = 0
        self.active = active
        self.manifest = manifest
        self.jumps = manifest.jumps.after(active.jumps)
        self._look_ahead()
        self.parts.follow(manifest.segments, active.segment)
        self.units = Units(self.parts.sealed, self.directory.units)
        active.seen = -1

    def _scan(self, size: int) -> None:
        active = self.active
        cursor = active.cursor
        if cursor.offset >= size:
            return
        data = active.file.map(size)
        verify_after = active.verify_after if cursor.offset < active.verify_until else None
        with collection_paused():
            for batch in scan(
                data, cursor, active.segment.seed, active.id, verify_after=verify_after
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
            self.jumps = self.jumps.then(row.lsn, row.parent)
        active.memory.add(row, entries)
        active.count += len(entries)
        active.segment.valid = active.cursor.offset

    def appended(self, batch: BatchFields) -> None:
        """Take in and publish the batch that this process has just written.

        The one place where cursor, index in memory, view and counters move, and they move together:
        an interrupt in between leaves HALF_DONE, and all of it is read from the file again.
        """
        _, row, entries, end, chain = batch
        active, view, twin = self.active, self.view, native.twin
        cursor = active.cursor
        active.seen = HALF_DONE
        cursor.offset = end
        cursor.last_lsn = row[0]
        cursor.chain = chain
        if row[1] == view[0][0] and view[1]:
            active.memory.add(row, entries)
            active.count += len(entries)
            active.segment.valid = end
            self.view = (twin and twin.following_view(view, row)) or view_after(view, row)
        else:
            self.add(row, entries)
            self.publish()
        active.seen = end

    def last_lsn(self) -> int:
        """LSN of the last commit in the log, 0 when there is none."""
        for part in self.active.parts():
            if part.last_lsn:
                return part.last_lsn
        return self.parts.last_lsn

    def publish(self) -> None:
        """Make the newest view visible."""
        active, manifest = self.active, self.manifest
        row = self._last_row()
        self.view = View(
            row,
            self.jumps.intervals_at(row.lsn),
            manifest.number,
            self.jumps,
            self.parts.sealed,
            active.parts(),
            active.id,
            self.parts.segments,
            manifest.kept,
            {},
            self.units,
        )

    def _last_row(self) -> CommitRow:
        """The head: the last commit in the log."""
        for part in self.active.parts():
            if part.last_lsn:
                row = part.commit_at(part.last_lsn)
                assert row is not None
                return row
        for sealed in reversed(self.parts.sealed):
            info = sealed.info
            if info.last_lsn:
                row = sealed.index.commit_at(info.last_lsn)
                if row is None:
                    raise CorruptError(
                        f"commit {info.last_lsn} is missing in its index",
                        file=segment_name(info.id),
                    )
                return row
        return EMPTY_COMMIT

    @property
    def is_version_1(self) -> bool:
        """Whether the active segment is of format version 1, so that the next commit seals it."""
        return len(self.active.id) != len(fmt.NO_ID)

    def close(self) -> None:
        """Close the files. What is mapped stays so for as long as views, arrays or handles live."""
        self.active.file.close()
        if self._announced is not None:
            self._announced.close()
        self.fs.relieve = None


def _find_units_again(state: weakref.ref[LogState]) -> None:
    """Let the next lookup see what the directory has; for what the state owns."""
    found = state()
    if found is not None:
        found.units.refresh()


def _head_of(state: LogState | None) -> View:
    """The newest view of a state, for what the state owns."""
    if state is None:
        raise ClosedError("the store was closed, and a segment that is asked for was replaced.")
    return state.head()
