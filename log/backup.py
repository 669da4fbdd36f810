"""Copy a store while writers run: link its sealed segments, seal what the active one holds."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from mldb.errors import StorageIOError
from mldb.log.birth import FOLDERS, publish_first
from mldb.log.fs.protocol import Buffer, FileSystem
from mldb.log.index.columns import MetadataOf
from mldb.log.index.footer import describe, index_frame
from mldb.log.log import Log
from mldb.log.manifest import SegmentInfo
from mldb.log.segment import segment_name

_STEP_BYTES = 64 << 20


def backup(log: Log, target: FileSystem, metadata_of: MetadataOf | None) -> None:
    """Write the store as of its newest commit into the empty folder *target*.

    The copy has a store id of its own. Its manifest comes last: until then the folder is no store.
    Raises StorageFullError, StorageIOError, CorruptError (a segment is missing).
    """
    for folder in FOLDERS:
        target.mkdir(folder)
    carried: dict[bytes, SegmentInfo] = {}
    while True:
        manifest, active, view = log.still()
        # Nothing of what was taken changes any more, so the rest needs no lock.
        if _carry_all(log, target, manifest.segments, carried):
            break
    segments = manifest.segments
    last_lsn, end = view.commit.lsn, active.cursor.offset
    for info in carried.values():  # compaction replaced it meanwhile
        for name in _files_of(info):
            target.unlink(name)
    if active.has_commits():
        footer = index_frame(active, last_lsn, last_lsn, end, metadata_of)
        length = end + sum(map(len, footer))
        segments = segments.then([describe(active, last_lsn, length, "", end)])
        _write(target, segment_name(active.id), [active.file.map(end), *footer])
    floor = max(manifest.lsn_floor, last_lsn)
    jumps = manifest.jumps.after(active.jumps)
    origins = manifest.origins or (manifest.store_id,)
    publish_first(target, segments, floor, floor + 1, jumps, manifest.kept, origins)


def _carry_all(
    log: Log, target: FileSystem, segments: Sequence[SegmentInfo], carried: dict[bytes, SegmentInfo]
) -> bool:
    """Carry these segments, unless they are; False when one was replaced meanwhile.

    *carried* are those that are there; afterwards those of them that are none of these.
    """
    there = dict(carried)
    for info in segments:
        if there.pop(info.id, None) is not None:
            continue
        try:
            _carry(log.fs, target, info)
        except StorageIOError as error:
            if error.errno != errno.ENOENT or info.id in log.head().segments:
                raise
            return False
        carried[info.id] = info
    carried.clear()
    carried.update(there)
    return True


def _files_of(info: SegmentInfo) -> list[str]:
    return [segment_name(info.id), *([info.index_file] if info.index_file else [])]


def _carry(source: FileSystem, target: FileSystem, info: SegmentInfo) -> None:
    """Link a sealed segment and its side index, or copy them."""
    for name in _files_of(info):
        if target.exists(name):  # of a segment whose side index was gone
            continue
        if target.link_from(source, name, name):
            continue
        file = source.open(name, "r")
        try:
            _write(target, name, [file.map(file.size())])
        finally:
            file.close()


def _write(fs: FileSystem, name: str, buffers: list[Buffer]) -> None:
    file = fs.open(name, "create")
    try:
        offset = 0
        for buffer in buffers:
            view = memoryview(buffer)
            for low in range(0, len(view), _STEP_BYTES):
                offset += file.pwritev([view[low : low + _STEP_BYTES]], offset)
        file.sync()
    finally:
        file.close()
