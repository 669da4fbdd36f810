"""The segments of a store in log order, and some replaced by another, as a compactor will do it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from unittest import mock

from mldb.log import batch as batch_module
from mldb.log import format as fmt
from mldb.log.active import Active, chain_start
from mldb.log.batch import BatchStart, EncodedBatch, encode_batch, write_batch
from mldb.log.batches import StoredBatch
from mldb.log.file_header import encode_file_header
from mldb.log.frame import Draft, Record, decode_entries, hash_record, unpack
from mldb.log.fs.protocol import FileSystem
from mldb.log.grown import Grown
from mldb.log.index.address import EMPTY_COMMIT
from mldb.log.index.footer import describe, index_frame
from mldb.log.index.memory import MemoryIndex
from mldb.log.lock import LOCK
from mldb.log.log import Log
from mldb.log.manifest import Kept, Manifest, SegmentInfo, install_manifest
from mldb.log.newest import load_newest
from mldb.log.scan import Cursor
from mldb.log.segment import Segment, segment_name

Keeps = Callable[[bytes, int], bool]
"""Whether the version of a key that a commit stored stays."""


def segment_ids(fs: FileSystem) -> list[bytes]:
    """The ids of the segments in log order, the active one last."""
    manifest = load_newest(fs, [])
    return [*(info.id for info in manifest.segments), manifest.active]


def segment_names(fs: FileSystem) -> list[str]:
    """The files of the segments in log order, the active one last."""
    return [segment_name(segment_id) for segment_id in segment_ids(fs)]


def keep_all(key: bytes, lsn: int) -> bool:
    """Drop nothing."""
    return True


def replace_segments(
    log: Log, count: int, keeps: Keeps = keep_all, kept: Kept | None = None
) -> bytes:
    """Put one with the same commits in the place of the first *count* sealed segments.

    It has the same keys, LSNs and bytes, but for the versions that *keeps* drops; another id, other
    offsets. *kept* is what the manifest says of the commits that are left. The old files go as soon
    as it has its name, and no handle is told. Returns the new id. The caller sees to it that nobody
    commits meanwhile.
    """
    fs, manifest = log.fs, load_newest(log.fs, [])
    gone = manifest.segments[:count]
    info = _write_merged(log, manifest, gone, keeps)
    changed = replace(
        manifest,
        number=manifest.number + 1,
        segments=Grown((info, *manifest.segments[count:])),
        predecessor=manifest.digest,
        kept=kept,
    )
    announced = fs.open(LOCK, "rw")
    announced.pwritev([bytes(1)], changed.number - 1)
    announced.close()
    assert install_manifest(fs, changed, os.urandom(16).hex()) is not None
    for old in gone:
        fs.unlink(segment_name(old.id))
    return info.id


def _write_merged(
    log: Log, manifest: Manifest, gone: Sequence[SegmentInfo], keeps: Keeps
) -> SegmentInfo:
    fs, store_id, segment_id = log.fs, manifest.store_id, os.urandom(16)
    header = encode_file_header(
        fmt.FILE_SEGMENT,
        store_id,
        fs.time_ns(),
        segment_id=segment_id,
        base_lsn=gone[0].first_lsn,
        published=manifest.number + 1,
    )
    file = fs.open(segment_name(segment_id), "create")
    file.pwritev([header], 0)
    segment = Segment(fs, segment_id, store_id, fmt.FILE_HEADER_SIZE, grows=True)
    cursor = Cursor(fmt.FILE_HEADER_SIZE, 0, chain_start(store_id, segment_id))
    active = Active(segment, file, cursor, MemoryIndex(), None, [])
    for batch in log.batches(log.head(), gone[0].first_lsn, gone[-1].last_lsn):
        _append(log.fs, batch, active, keeps)
    last, offset = cursor.last_lsn, cursor.offset
    end = offset + file.pwritev(index_frame(active, last, last, offset, None), offset)
    file.sync()
    file.close()
    return describe(active, last, end, "", offset)


def _append(fs: FileSystem, batch: StoredBatch, active: Active, keeps: Keeps) -> None:
    """Write a batch again, its payloads on pages, so that they lie elsewhere."""
    row, frames, name = batch
    records: list[Record] = []
    source = fs.open(name, "r")
    for frame, body in frames:
        head = frame.header
        drafts: list[Draft] = []
        extra = unpack(body)
        if head.flags & fmt.FLAG_KEYED:
            drafts, extra = decode_entries(body, frame)
            drafts = [draft for draft in drafts if keeps(draft.key, row.lsn)]
        payload = source.pread(head.payload_length, frame.payload_offset)
        aligned = fmt.PAGE_ALIGN_LOG2
        record = Record(
            head.kind, drafts, [payload], len(payload), extra, head.body_version, aligned
        )
        hash_record(record)
        records.append(record)
    source.close()
    cursor, segment = active.cursor, active.segment
    start = BatchStart(
        segment.seed,
        segment.id,
        cursor.chain,
        cursor.offset,
        row.lsn - len(records),
        row.lsn,
        EMPTY_COMMIT._replace(lsn=row.parent, time=row.time),
        row.epoch,
        row.clock,
    )
    with mock.patch.object(batch_module, "new_commit_id", return_value=row.id):
        done = EncodedBatch(*encode_batch(records, start))
    write_batch(active.file, done)
    cursor.offset, cursor.last_lsn, cursor.chain = done.end, row.lsn, done.chain
    active.memory.add(done.row, done.entries)
    active.count += len(done.entries)
    segment.valid = done.end
