"""Read batches from a stretch of a segment, and decide where its valid part ends.

The scanner never guesses: it stops at the first byte that is not part of a complete batch and says
why. Whether that is a batch still being written, a torn tail or corruption is decided by
``mldb.log.recovery``.
"""

from __future__ import annotations

from collections.abc import Iterator

from mldb.deferred import NamedTuple, dataclass
from mldb.errors import FormatVersionError
from mldb.log import format as fmt
from mldb.log.blocks import payload_checks
from mldb.log.checksum import check64, digest128
from mldb.log.frame import (
    CommitBody,
    DamagedFrame,
    Frame,
    check_body,
    decode_commit,
    decode_entries,
    decode_header,
    make_entries,
)
from mldb.log.index.address import CommitRow, Entry


@dataclass(slots=True)
class Cursor:
    """Where a scan stands: everything before ``offset`` is whole batches. Owned by one thread."""

    offset: int
    last_lsn: int
    chain: bytes
    """Digest of the batch before; b"" skips the check of one batch (behind known damage)."""
    durable: int = 0
    problem: str = ""
    problem_offset: int = 0
    index: Frame | None = None
    """The footer frame, once the scan has met it: the segment is sealed."""


class Batch(NamedTuple):
    """One committed batch: its row, its frames with their bodies, its index entries."""

    row: CommitRow
    frames: list[tuple[Frame, bytes]]
    entries: list[tuple[bytes, Entry]]
    body: CommitBody


def scan(
    data: memoryview, cursor: Cursor, seed: int, segment: bytes, *, verify_after: int | None = None
) -> Iterator[Batch]:
    """Yield the complete batches from ``cursor.offset`` on, advancing the cursor past each.

    *verify_after*: payloads of commits above this LSN are verified too; None verifies none. The
    scan ends at the end of *data*, at a footer, or at the first byte that is no complete batch
    (``cursor.problem`` says why).
    """
    from mldb.log.scan_usual import read_usual

    end = len(data)
    while cursor.offset < end and cursor.index is None:
        usual = read_usual(
            data, cursor.offset, cursor.last_lsn, cursor.chain, seed, segment, verify_after
        )
        if usual is not None:
            row, frame, raw, entry, body, cursor.offset, cursor.chain = usual
            cursor.last_lsn = row.lsn
            cursor.durable = max(cursor.durable, body.durable)
            yield Batch(row, [(frame, raw)], [entry], body)
            continue
        try:
            batch = _read_batch(data, cursor, seed, segment, verify_after)
        except DamagedFrame as error:
            cursor.problem = str(error)
            return
        if batch is not None:
            yield batch


def _read_batch(
    data: memoryview, cursor: Cursor, seed: int, segment: bytes, verify_after: int | None
) -> Batch | None:
    frames: list[tuple[Frame, bytes]] = []
    offset = cursor.offset
    heads: list[bytes] = [cursor.chain]
    while True:
        cursor.problem_offset = offset
        frame = decode_header(data, offset, seed, len(data))
        body = check_body(data, frame)
        kind = frame.header.kind & ~fmt.MUST_UNDERSTAND
        if kind == fmt.KIND_INDEX:
            if frames:
                raise DamagedFrame("a footer stands inside a batch")
            # Written with one write, synced later: any part of it may be missing after a crash.
            _verify_payload(data, frame)
            cursor.index = frame
            return None
        _check_order(frame, frames, cursor.last_lsn)
        if kind == fmt.KIND_COMMIT:
            return _close_batch(data, cursor, frames, heads, frame, body, segment, verify_after)
        if kind < fmt.KIND_FIRST_EVENT:
            raise DamagedFrame(f"frame kind {kind} does not belong in a segment")
        if len(frames) >= fmt.FRAMES_MAX:
            raise DamagedFrame("the batch has too many frames")
        frames.append((frame, body))
        heads.append(bytes(data[offset : offset + fmt.FRAME_HEADER_SIZE]))
        offset = frame.end


def _check_order(frame: Frame, frames: list[tuple[Frame, bytes]], last_lsn: int) -> None:
    lsn = frame.header.lsn
    if frames:
        first = frames[0][0].header
        if lsn != first.lsn + len(frames) or frame.header.commit_lsn != first.commit_lsn:
            raise DamagedFrame(f"LSN {lsn} does not follow in its batch")
    elif lsn <= last_lsn:
        raise DamagedFrame(f"LSN {lsn} does not follow {last_lsn}")


def _close_batch(
    data: memoryview,
    cursor: Cursor,
    frames: list[tuple[Frame, bytes]],
    heads: list[bytes],
    frame: Frame,
    body: bytes,
    segment: bytes,
    verify_after: int | None,
) -> Batch:
    commit = decode_commit(body)
    lsn = frame.header.lsn
    if commit.frames != len(frames) or frame.header.commit_lsn != lsn or commit.parent >= lsn:
        raise DamagedFrame(f"commit {lsn} does not close this batch")
    chain = digest128(b"".join(heads))
    if not cursor.chain:
        chain = commit.digest
    if chain != commit.digest:
        raise DamagedFrame(f"commit {lsn} has digest {commit.digest.hex()}, computed {chain.hex()}")
    if verify_after is not None and lsn > verify_after:
        for part, _ in frames:
            cursor.problem_offset = part.offset
            _verify_payload(data, part)
    row = CommitRow(
        *(lsn, commit.parent, commit.epoch, commit.time, commit.clock),
        *(cursor.offset, frame.offset, commit.id),
    )
    entries = [item for part, raw in frames for item in frame_entries(part, raw, lsn, segment)]
    cursor.offset = frame.end
    cursor.last_lsn = lsn
    cursor.chain = chain
    cursor.durable = max(cursor.durable, commit.durable)
    return Batch(row, frames, entries, commit)


def frame_entries(
    frame: Frame, body: bytes, commit_lsn: int, segment: bytes
) -> list[tuple[bytes, Entry]]:
    """Return the index entries of one frame with absolute offsets. Raises DamagedFrame."""
    if not frame.header.flags & fmt.FLAG_KEYED:
        return []
    drafts, _ = decode_entries(body, frame)
    return make_entries(drafts, commit_lsn, segment, frame.offset, frame.payload_offset)


def _verify_payload(data: memoryview, frame: Frame) -> None:
    checks = payload_checks(data, frame)
    size = 1 << frame.header.block_log2
    stop = frame.payload_offset + frame.header.payload_length
    for index in range(len(checks) // 8):
        low = frame.payload_offset + index * size
        computed = check64(data[low : min(low + size, stop)])
        if computed != int.from_bytes(checks[8 * index : 8 * index + 8], "big"):
            raise DamagedFrame(f"block {index} of the payload has another checksum")


def refuse_unknown(batch: Batch, known: frozenset[int], file: str) -> None:
    """Raise FormatVersionError when the batch holds a must-understand kind that is not *known*."""
    for frame, _ in batch.frames:
        refuse_kind(frame.header.kind, frame.offset, known, file)


def refuse_kind(kind: int, offset: int, known: frozenset[int], file: str) -> None:
    """Raise FormatVersionError for a must-understand frame kind that is not *known*."""
    if kind & fmt.MUST_UNDERSTAND and kind & ~fmt.MUST_UNDERSTAND not in known:
        raise FormatVersionError(
            f"{file} holds an event of kind {kind & ~fmt.MUST_UNDERSTAND} at offset {offset}, "
            "which this mldb does not know and must understand. Nothing was changed; use a newer "
            "mldb."
        )
