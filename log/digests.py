"""Finding versions by the digest of their bytes: what a new tensor may share with old ones.

Parts of the directory answer by their columns (FORMAT.md section 6). Of a sealed segment in no part
a table of its digests is made when first asked. What this handle stores it notes as it goes, and
what the active segment held before is noted at the first question. What other processes store is
found once it is sealed. So some versions may be missed, and none that is named is another one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import islice, repeat
from typing import TYPE_CHECKING, Final

import numpy as np

from mldb.log.directory.part import Part
from mldb.log.index.address import Entry
from mldb.log.sealed import SealedPart
from mldb.log.view import View

if TYPE_CHECKING:
    from mldb.log.index.mapped import MappedIndex

NOTED_MAX: Final = 1 << 14
"""Versions of this handle that are found before they are sealed, the newest: some 3 MiB."""
TABLES_MAX: Final = 32
"""Segments in no part that are asked, the newest; few stay without one (Directory.DUE)."""
EACH_MAX: Final = 4
"""So many of the versions with one digest are named, of each part."""


class DigestTable:
    """The digests of one index, sorted: some 12 bytes for each version with bytes. Immutable."""

    __slots__ = ("_rows", "_sorted")

    def __init__(self, index: MappedIndex) -> None:
        """Read the columns, and hold nothing of the mapping. Raises CorruptError."""
        rows = index.rows_with_bytes()
        digests = index.digests(rows)
        order = np.argsort(digests, kind="stable")
        self._sorted = digests[order].data
        self._rows = rows[order].astype(np.uint32)

    def find(self, index: MappedIndex, digest: bytes) -> Iterator[tuple[bytes, Entry]]:
        """Yield (key, version) of those with this digest, in the index that the table is of."""
        digests, wanted = self._sorted, int.from_bytes(digest[:8], "little")
        place = bisect_left(digests, wanted)  # numpy's takes as long for one as for hundreds
        while place < len(digests) and digests[place] == wanted:
            key, entry = index.version(int(self._rows[place]))
            if entry.digest == digest:
                yield key, entry
            place += 1


class Digests:
    """The versions of one store by their digests. Any thread.

    ``_noted`` maps digests to the key and commit of a version, the newest last; ``_tables`` ids of
    segments to their tables. Both may lack what another thread adds meanwhile, which costs a second
    look, or a find.
    """

    def __init__(self) -> None:
        self._noted: dict[bytes, tuple[bytes, int]] = {}
        self._tables: dict[bytes, DigestTable] = {}
        self._hint: tuple[MappedIndex, DigestTable] | None = None
        self._began = False

    def note(self, stored: Mapping[bytes, bytes], lsn: int) -> None:
        """Remember digests and keys of what commit *lsn* of this handle stored with bytes."""
        noted = self._noted
        noted.update(zip(stored, zip(stored.values(), repeat(lsn)), strict=True))
        if len(noted) > NOTED_MAX:
            self._noted = dict(list(noted.items())[-NOTED_MAX // 2 :])

    def find(self, view: View, digest: bytes) -> Iterator[tuple[bytes, Entry]]:
        """Yield (key, version) of versions that *view* has and whose digest this is; few of each.

        They may be references. Raises CorruptError where an index is damaged.
        """
        if not self._began:
            self._begin(view)
        noted = self._noted.get(digest)
        if noted is not None:
            entry = view.version_at(*noted)
            if entry is not None:
                yield noted[0], entry
        for index, table in self._tables_of(view):
            yield from islice(table.find(index, digest), EACH_MAX)
        for unit in view.units.newest_first:
            if isinstance(unit, Part):
                yield from unit.with_digest(digest, EACH_MAX)

    def _begin(self, view: View) -> None:
        """Note what the active segment holds at the first question."""
        from mldb.log.index.mapped import MappedIndex

        self._began = True
        for part in view.active:
            if isinstance(part, MappedIndex):
                self._hint = part, DigestTable(part)
                continue
            for key, versions in part.dump()[0].items():
                for entry in versions:
                    if entry.length and entry.digest:
                        self._noted.setdefault(entry.digest, (key, entry.commit_lsn))

    def _tables_of(self, view: View) -> Iterator[tuple[MappedIndex, DigestTable]]:
        """Yield the indexes that are in no part, with their tables."""
        from mldb.log.index.mapped import MappedIndex

        hint = self._hint
        if hint is not None:
            if any(part is hint[0] for part in view.active):
                yield hint
            else:
                self._hint = None  # the segment is sealed, or has another hint
        if len(self._tables) > 2 * TABLES_MAX:
            self._tables = {}
        tables, left = self._tables, TABLES_MAX
        for unit in view.units.newest_first:
            if not isinstance(unit, SealedPart) or not left:
                continue
            left -= 1
            index = unit.index
            if not isinstance(index, MappedIndex):
                continue  # its file was replaced: its versions lie elsewhere
            table = tables.get(unit.info.id)
            if table is None:
                table = tables[unit.info.id] = DigestTable(index)
            yield index, table
