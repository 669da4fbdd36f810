"""Segments that no manifest names: left by a process that died, or by a manifest that was deleted.

A segment gets its name before the manifest that publishes it. So a process that dies in between
leaves one behind with at most one batch in it, of which nobody was told. More can only have been
written under a manifest that is gone. A compacted segment is a copy of others, which go when its
manifest is durable.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from mldb.deferred import dataclass
from mldb.errors import CorruptError, StorageIOError
from mldb.log import format as fmt
from mldb.log.active import chain_start
from mldb.log.file_header import header_of
from mldb.log.fs.protocol import FileSystem
from mldb.log.manifest import Manifest
from mldb.log.scan import Cursor, scan
from mldb.log.segment import SEGMENTS, segment_name

_SUFFIX: Final = ".seg"


@dataclass(frozen=True, slots=True)
class Orphan:
    """A segment file that the manifest does not name, and the manifest that was to publish it.

    ``published`` is 0 when the header does not say. ``kind`` is that of the file, 0 when its
    header is damaged. ``size`` is in bytes.
    """

    name: str
    id: bytes
    store_id: bytes
    published: int
    size: int
    kind: int = fmt.FILE_SEGMENT

    @property
    def is_empty(self) -> bool:
        """Whether it is a file header and nothing else."""
        return self.size <= fmt.FILE_HEADER_SIZE


def orphans(fs: FileSystem, manifest: Manifest) -> Iterator[Orphan]:
    """Yield the segment files that *manifest* does not name; lists the folder.

    Those of version 1 have a number: one behind the active one's was to be published next.
    """
    known = {segment_name(info.id) for info in manifest.segments}
    known.add(segment_name(manifest.active))
    active = manifest.active
    for base in fs.list(SEGMENTS):
        name = f"{SEGMENTS}/{base}"
        if name in known or not base.endswith(_SUFFIX):
            continue
        try:
            header, size = header_of(fs, name), _size(fs, name)
        except StorageIOError:  # gone meanwhile
            continue
        if header is None:
            yield Orphan(name, fmt.NO_ID, manifest.store_id, 0, size, 0)
            continue
        published = header.published
        if header.version == fmt.FIRST_VERSION and len(active) != len(fmt.NO_ID):
            ahead = header.file_id - int.from_bytes(active, "little")
            published = manifest.number + 1 if ahead > 0 else 0
        yield Orphan(name, header.segment_id, header.store_id, published, size, header.kind)


def _size(fs: FileSystem, name: str) -> int:
    file = fs.open(name, "r")
    try:
        return file.size()
    finally:
        file.close()


def is_needed(fs: FileSystem, manifest: Manifest, orphan: Orphan) -> bool:
    """Whether a compacted segment is all that is left of what it replaced.

    It is whole before its manifest comes, and what it replaces goes after that: where all of what
    *manifest* names is there, the other one is a copy.
    """
    names = [segment_name(info.id) for info in manifest.segments]
    return orphan.kind == fmt.FILE_COMPACTED and not all(map(fs.exists, names))


def in_use(fs: FileSystem, orphan: Orphan) -> bool:
    """Whether a segment holds two batches or a footer, as only a published one can."""
    file = fs.open(orphan.name, "r")
    try:
        data = file.map(file.size())
    finally:
        file.close()
    cursor = Cursor(fmt.FILE_HEADER_SIZE, 0, chain_start(orphan.store_id, orphan.id))
    seed = fmt.file_seed(orphan.store_id, orphan.id)
    batches = len(list(islice(scan(data, cursor, seed, orphan.id), 2)))
    return batches == 2 or cursor.index is not None


def refuse_lost_manifest(fs: FileSystem, manifest: Manifest) -> None:
    """Raise CorruptError when a segment is in use that only a newer manifest can have published."""
    for orphan in orphans(fs, manifest):
        if orphan.published <= manifest.number:
            continue
        compacted = orphan.kind == fmt.FILE_COMPACTED
        if is_needed(fs, manifest, orphan) if compacted else in_use(fs, orphan):
            raise CorruptError(
                f"segment {fmt.id_text(orphan.id)} holds commits, but no manifest names it: the "
                "newest manifest was deleted. Nothing was changed and everything is still there; "
                "restore the MANIFEST files from a backup.",
                file=orphan.name,
                offset=0,
            )


def published_by(fs: FileSystem, manifest: Manifest, number: int) -> bool:
    """Whether a segment that *manifest* does not name, but *number* or a later one, holds bytes.

    Then manifest *number*, which is damaged, must not be stepped over: commits would be dropped.
    """
    found = (orphan for orphan in orphans(fs, manifest) if orphan.published >= number)
    return any(
        is_needed(fs, manifest, orphan)
        if orphan.kind == fmt.FILE_COMPACTED
        else not orphan.is_empty
        for orphan in found
    )
