"""The store that is replayed: opened read-only, and held while it is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from mldb import keys
from mldb.closing import Closing
from mldb.errors import MissingError
from mldb.history import kinds
from mldb.history.as_of import AsOf, resolve
from mldb.log import format as fmt
from mldb.log.batches import StoredBatch
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.address import CommitRow, Entry
from mldb.log.index.lineage import Jump
from mldb.log.log import Log
from mldb.log.manifest import Kept
from mldb.log.segment import Segment
from mldb.log.view import View
from mldb.options import Options
from mldb.tensors.border import MapBorder
from mldb.tensors.cache import ByteCache
from mldb.tensors.scope import Scope, Source, make_scope

_CACHE_BYTES: Final = 64 << 20


def store_folder(path: str | os.PathLike[str], *, create: bool = False) -> OsFileSystem:
    """Return the files of the store at *path*. Raises StorageIOError, InvalidNameError."""
    return OsFileSystem(OsFileSystem.prepare_root(os.fspath(path), create=create))


class ReplaySource(Closing):
    """A store that is read from its first commit on. One thread; what it hands out lives on.

    It registers the first commit, so that compaction in another process prunes nothing meanwhile.
    """

    def __init__(self, fs: FileSystem) -> None:
        """Open it read-only. Raises what opening a store raises."""
        options = Options(mode="r", note_reads=False)
        self.fs = fs
        self._segment: Segment | None = None  # the one asked for last
        self.log = Log(fs, options, known=kinds.KNOWN_KINDS)
        try:
            self._hold, self.view = self.log.hold(1)
        except BaseException:
            self.log.close()
            raise
        cache = ByteCache(_CACHE_BYTES, "the cache of a replay")
        border = MapBorder(fs, fixed=fmt.PAGE_ALIGN_FROM, writable=False)
        self.bytes = Source(self.log, border, cache)

    def find(self, as_of: AsOf) -> CommitRow:
        """Return the commit that *as_of* means. Raises what ``resolve`` raises, MissingError."""
        view = self.view
        row = resolve(view, view.intervals, as_of)
        if row.lsn == 0 and view.commit.lsn:
            raise MissingError(
                f"there is no commit at {as_of!r}: the first one of {self.fs.root} is later. "
                "Nothing was written."
            )
        return row

    def newest(self) -> View:
        """Take and return the newest view: others may have compacted since."""
        self.view = self.log.head()
        return self.view

    def kept(self, until: int) -> Kept | None:
        """The commits up to *until* that retention left, as the newest manifest has them."""
        kept = self.view.kept
        if kept is None:
            return None
        return tuple((low, min(high, until)) for low, high in kept if low <= until)

    def jumps(self, low: int, high: int) -> list[Jump]:
        """The jumps of the commits low..high."""
        return [jump for jump in self.view.jumps.up_to(high) if jump[0] >= low]

    def batches(self, low: int, high: int) -> Iterator[StoredBatch]:
        """Yield the commits low..high with their frames."""
        return self.log.batches(self.view, low, high)

    def scope_at(self, row: CommitRow) -> Scope:
        """What commit *row* shows, pruned or not."""
        view = self.view
        return make_scope((self.bytes, view, row, view.jumps.intervals_at(row.lsn)))

    def segment_of(self, name: str) -> Segment:
        """The segment of a file that a batch names."""
        known = self._segment
        if known is None or known.name != name:
            views = (self.view, self.log.head())
            found = (each for view in views for each in [*view.segments.values()])
            known = self._segment = next(each for each in found if each.name == name)
        return known

    def decoded(self, key: bytes, entry: Entry, nbytes: int) -> memoryview:
        """Return the decoded bytes of a version, verified. Raises CorruptError."""
        return self.bytes.door.version(self.view, key, entry, nbytes, keys.shown(key))

    def close(self) -> None:
        """Give the store free."""
        self._hold.release()
        self.log.close()
