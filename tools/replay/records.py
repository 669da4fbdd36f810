"""Commits as records again: what stood in a frame, its payload mapped and verified."""

from __future__ import annotations

from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.batches import StoredBatch
from mldb.log.blocks import Blocks, payload_checks
from mldb.log.frame import DamagedFrame, Frame, Record, decode_commit, decode_entries, unpack
from mldb.log.rebuild import StoreBuilder
from mldb.log.segment import Segment
from mldb.tools.replay.source import ReplaySource


def replay_commits(source: ReplaySource, builder: StoreBuilder, until: int) -> None:
    """Write the commits up to *until* one by one, each as it was. Raises CorruptError."""
    for batch in source.batches(builder.last_lsn + 1, until):
        builder.append(batch.row, records_as_they_are(source, batch), batch_extra(source, batch))


def records_as_they_are(source: ReplaySource, batch: StoredBatch) -> list[Record]:
    """Return the records of a commit, payloads mapped. Raises CorruptError."""
    segment = source.segment_of(batch.file)
    return [as_it_is(segment, frame, body) for frame, body in batch.frames]


def as_it_is(segment: Segment, frame: Frame, body: bytes) -> Record:
    """Return the record of a frame, its payload mapped and verified. Raises CorruptError."""
    header = frame.header
    try:
        is_keyed = header.flags & fmt.FLAG_KEYED
        drafts, extra = decode_entries(body, frame) if is_keyed else ([], unpack(body))
    except (DamagedFrame, ValueError) as error:
        raise CorruptError(
            f"the frame is damaged: {error}", file=segment.name, offset=frame.offset
        ) from None
    payload, checks = payload_of(segment, frame)
    return Record(
        header.kind,
        drafts,
        (payload,) if len(payload) else (),
        len(payload),
        extra,
        header.body_version,
        header.align_log2,
        header.block_log2,
        checks,
    )


def payload_of(segment: Segment, frame: Frame) -> tuple[memoryview, bytes]:
    """Return the payload of a frame, every block verified, and its checksums."""
    start, length = frame.payload_offset, frame.header.payload_length
    if not length:
        return memoryview(b""), b""
    data = segment.view(start + length)
    checks = payload_checks(data, frame)
    Blocks(frame, checks, segment.name).touch(data, start, start + length)
    return data[start : start + length], checks


def batch_extra(source: ReplaySource, batch: StoredBatch) -> dict[str, object]:
    """What the commit frame of a batch says beside the rest; compacted segments keep nothing."""
    segment = source.segment_of(batch.file)
    part = next(iter(source.view.between(batch.row.lsn, batch.row.lsn)), None)
    if part is not None and part.info.kind == fmt.FILE_COMPACTED:
        return {}
    _, body = segment.frame(batch.row.end)
    try:
        return decode_commit(body).extra
    except DamagedFrame as error:
        raise CorruptError(str(error), file=segment.name, offset=batch.row.end) from None
