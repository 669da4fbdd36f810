"""Copy a store while writers run: link its sealed segments, seal what the active one holds."""

from __future__ import annotations

import os

from mldb.log import format as fmt
from mldb.log.active import chain_start
from mldb.log.frame import encode_file_header
from mldb.log.fs.protocol import Buffer, FileSystem
from mldb.log.index.columns import MetadataOf
from mldb.log.index.footer import describe, index_frame
from mldb.log.log import FOLDERS, Log
from mldb.log.manifest import Manifest, Mark, SegmentInfo, install_manifest
from mldb.log.segment import SEGMENTS, segment_name

_STEP_BYTES = 64 << 20


def backup(log: Log, target: FileSystem, metadata_of: MetadataOf | None) -> None:
    """Write the store as of its newest commit into the empty folder *target*.

    The copy has a store id of its own. Its manifest comes last: until then the folder is no store.
    Raises StorageFullError, StorageIOError, CorruptError (a segment is missing).
    """
    state = log.state
    for folder in FOLDERS:
        target.mkdir(folder)
    with state.mutex:
        if not state.writing:  # else a thread of this handle is between write and publication
            state.follow()
        manifest, active = state.manifest, state.active
        end, last_lsn = active.cursor.offset, state.last_lsn()
        footer = index_frame(active, last_lsn, last_lsn, end, metadata_of)
        length = end + sum(map(len, footer))
        sealed = describe(active, last_lsn, length, "", end)
        jumps = (*manifest.jumps, *active.jumps)
        data = active.file.map(end)
    for info in manifest.segments:
        _carry(log.fs, target, info)
    segments = manifest.segments
    if sealed.last_lsn:
        _write(target, segment_name(sealed.number), [data, *footer])
        segments = (*segments, sealed)
    store_id, created = os.urandom(16), target.time_ns()
    number = sealed.number + 1
    floor = max(manifest.lsn_floor, last_lsn)
    header = encode_file_header(fmt.FILE_SEGMENT, store_id, number, floor + 1, created)
    _write(target, segment_name(number), [header])
    target.sync_dir(SEGMENTS)
    target.sync_dir("")
    mark = Mark(number, fmt.FILE_HEADER_SIZE, floor, chain_start(store_id, number))
    kept = manifest.kept
    install_manifest(
        target, Manifest(1, store_id, created, segments, number, store_id, mark, floor, jumps, kept)
    )


def _carry(source: FileSystem, target: FileSystem, info: SegmentInfo) -> None:
    """Link a sealed segment and its side index, or copy them."""
    names = [segment_name(info.number), *([info.index_file] if info.index_file else [])]
    for name in names:
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
        place = 0
        for buffer in buffers:
            view = memoryview(buffer)
            for low in range(0, len(view), _STEP_BYTES):
                place += file.pwritev([view[low : low + _STEP_BYTES]], place)
        file.sync()
    finally:
        file.close()
