"""Views: immutable heads of the log that answer every question about one moment."""

from __future__ import annotations

import heapq
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, NamedTuple

from mldb.log import format as fmt
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.address import EMPTY_COMMIT, CommitRow, Entry, Intervals
from mldb.log.index.lineage import Jump
from mldb.log.index.mapped import MappedIndex
from mldb.log.index.memory import CommitField, IndexPart
from mldb.log.index.opened import index_source, open_index
from mldb.log.manifest import Kept, SegmentInfo
from mldb.log.mappings import MappingBudget
from mldb.log.moved import MovedIndex
from mldb.log.segment import Segment, SegmentGoneError
from mldb.options import Verify

_KEYS_AT_ONCE: Final = 512


class SealedPart:
    """A sealed segment: its file and its mapped index, opened when first asked. Any thread.

    *head* leads to the newest view, where the versions of a segment lie whose file was replaced.
    """

    def __init__(
        self,
        fs: FileSystem,
        info: SegmentInfo,
        verify: Verify,
        budget: MappingBudget,
        head: Callable[[], View] | None = None,
    ) -> None:
        self.info = info
        self._head = head
        this = weakref.ref(self)  # a strong one would make a ring

        def note() -> None:
            part = this()
            if part is not None:
                budget.note(part)

        self.segment = Segment(fs, info.id, info.origin, info.length, on_map=note)
        self._fs = fs
        self._verify = verify
        self._index: MappedIndex | MovedIndex | None = None

    @property
    def index(self) -> MappedIndex | MovedIndex:
        """The mapped index, or where its file is gone what the newest view has of it."""
        index = self._index
        if index is None:
            try:
                index = self._open()
            except SegmentGoneError:
                head = self._head
                if head is None or self.info.id in head().segments:
                    raise  # the manifest still names the file, so it is lost
                index = MovedIndex(head, self.info.first_lsn, self.info.last_lsn)
            self._index = index
        return index

    def _open(self) -> MappedIndex:
        info = self.info
        source = self.segment
        if info.index_file:
            source = index_source(self._fs, info.index_file, info.origin, info.id, fmt.FILE_INDEX)
        return open_index(source, info.index_offset, self._verify)[0]

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield the keys with this prefix in order, holding no mapping from one to the next."""
        number, last = -1, b""
        while True:
            index = self.index
            if isinstance(index, MovedIndex):
                yield from (key for key in index.keys(prefix) if key > last)
                return
            keys, number = index.some_keys(prefix, number, _KEYS_AT_ONCE)
            del index  # and its mapping
            if not keys:
                return
            yield from keys
            last = keys[-1]

    def commits(self, low: int, high: int) -> Iterator[tuple[bytes, CommitRow]]:
        """Yield (segment id, commit) with low <= lsn <= high, ascending."""
        index = self.index
        if isinstance(index, MovedIndex):
            return index.placed(low, high)
        return ((self.info.id, row) for row in index.commits(low, high))

    def release(self) -> None:
        """Let the mapping go; the next question maps the segment again."""
        self._index = None
        self.segment.unmap()


class View(NamedTuple):
    """One head of the log. Immutable; valid for ever, since what it maps is never changed.

    ``commit`` is the last commit in the log, ``number`` that of the manifest; a commit changes the
    first two fields alone. ``sealed`` stands in log order, ``active`` the newest
    part first. What the index parts learn later has higher LSNs and is ignored.
    """

    commit: CommitRow
    intervals: Intervals
    number: int
    jumps: tuple[Jump, ...]
    sealed: tuple[SealedPart, ...]
    active: tuple[IndexPart, ...]
    active_id: bytes
    segments: Mapping[bytes, Segment]
    kept: Kept | None
    """The commits that retention left, as ranges; None when nothing was ever pruned."""
    epochs: dict[int, tuple[CommitRow, Intervals]]
    """What finished epochs resolved to: a cache shared by the views of one lineage."""

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

    def version_at(self, key: bytes, lsn: int) -> Entry | None:
        """Return the version of *key* that commit *lsn* stored, wherever it lies now."""
        return self.newest(key, ((lsn, lsn),))

    def versions(self, key: bytes) -> list[Entry]:
        """Return every version of *key* on every lineage up to this head, oldest first."""
        found: list[Entry] = []
        for sealed in self.sealed:
            found += sealed.index.versions(key)
        for part in reversed(self.active):
            found += part.versions(key)
        high = self.commit.lsn
        return [entry for entry in found if entry.commit_lsn <= high]

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield the keys with this prefix in byte order, each once, whether visible or not."""
        last = None
        found = [part.keys(prefix) for part in self.sealed]
        found += [part.keys(prefix) for part in self.active]
        for key in heapq.merge(*found):
            if key != last:
                last = key
                yield key

    def live(self, prefix: bytes, intervals: Intervals) -> Iterator[tuple[bytes, Entry]]:
        """Yield (key, newest entry) of the keys that exist inside *intervals*."""
        for key in self.keys(prefix):
            entry = self.newest(key, intervals)
            if entry is not None and not entry.flags & fmt.ENTRY_TOMBSTONE:
                yield key, entry

    def live_since(
        self, prefix: bytes, start: bytes, lsn: int, intervals: Intervals
    ) -> Iterator[tuple[bytes, Entry]]:
        """Yield (key, newest entry) of keys that exist, from *start* on, in order.

        Only parts that may hold commits above *lsn* are asked: for keys whose order is that of
        their commits, which are told anew without a look at those known before.
        """
        parts = [
            part.index.keys_from(prefix, start) for part in self.sealed if part.info.last_lsn > lsn
        ]
        parts += [part.keys_from(prefix, start) for part in self.active]
        last = b""
        for key in parts[0] if len(parts) == 1 else heapq.merge(*parts):
            if key == last:
                continue
            last = key
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

    def commits(self, low: int, high: int) -> Iterator[tuple[bytes, CommitRow]]:
        """Yield (segment id, commit) with low <= lsn <= high, ascending, on every lineage."""
        for sealed in self.sealed:
            if sealed.info.last_lsn >= low and sealed.info.first_lsn <= high:
                yield from sealed.commits(low, high)
        for part in reversed(self.active):
            for row in part.commits(low, min(high, self.commit.lsn)):
                yield self.active_id, row

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


make_view: Callable[[tuple[object, ...]], View] = partial(tuple.__new__, View)
"""Make a View of its fields in order, at half the cost of a call: once per commit."""

EMPTY_VIEW = View(EMPTY_COMMIT, (), 0, (), (), (), b"", {}, None, {})
