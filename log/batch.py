"""Lay out one batch in a segment and write it: in one gathered write, large payloads first.

A large payload is written while a second thread hashes it; its frame head, which holds the
checksums, follows when both are done. The commit frame is always part of the last write, so a batch
is whole once its commit is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mldb.errors import LimitError
from mldb.log import format as fmt
from mldb.log.checksum import digest128
from mldb.log.frame import (
    Record,
    encode_body,
    encode_commit,
    encode_record,
    hash_record,
    make_entries,
)
from mldb.log.fs.protocol import Buffer, File
from mldb.log.index.address import CommitRow, Entry, make_row

OVERLAP_BYTES = 4 << 20  # from this payload size on, hashing and writing overlap


@dataclass(slots=True)
class Placed:
    """A record with its place: where its frame, its payload and the next frame start."""

    record: Record
    offset: int
    body: bytes
    payload: int
    end: int
    written: bool = False
    """The payload is in the file already."""


class Written(NamedTuple):
    """A batch in the file, and what the index and the writer need to know of it.

    ``end`` is the offset where the next batch starts, ``chain`` the digest that it continues from.
    """

    row: CommitRow
    entries: list[tuple[bytes, Entry]]
    end: int
    chain: bytes


def place(record: Record, offset: int) -> Placed:
    """Decide where a record's parts go when its frame starts at *offset*. Raises LimitError."""
    body = _bounded_body(record)
    length = record.payload_length
    payload = fmt.payload_offset(offset, len(body), length, record.block_log2, record.align_log2)
    return Placed(record, offset, body, payload, fmt.align_up(payload + length, 3))


def _bounded_body(record: Record) -> bytes:
    body = encode_body(record)
    length = record.payload_length
    if (
        len(body) > fmt.BODY_BYTES_MAX
        or length > fmt.PAYLOAD_BYTES_MAX
        or len(record.drafts) > fmt.ENTRIES_MAX
    ):
        raise LimitError(
            f"a record of {len(record.drafts)} entries, {len(body)} body bytes and {length} "
            f"payload bytes exceeds the limits {fmt.ENTRIES_MAX}, {fmt.BODY_BYTES_MAX} and "
            f"{fmt.PAYLOAD_BYTES_MAX}. Nothing was stored."
        )
    return body


def place_all(records: Sequence[Record], offset: int) -> list[Placed]:
    """Place records one after another from *offset* on."""
    placed: list[Placed] = []
    for record in records:
        item = place(record, offset)
        placed.append(item)
        offset = item.end
    return placed


def write_payloads(file: File, placed: Sequence[Placed]) -> None:
    """Write the payloads of these records and hash them meanwhile."""
    from concurrent.futures import ThreadPoolExecutor  # costs every import of mldb 5 ms

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="mldb-hash") as pool:
        hashes = pool.map(hash_record, [item.record for item in placed])
        for item in placed:
            file.pwritev(item.record.payload, item.payload)
            item.written = True
        list(hashes)


class Place(NamedTuple):
    """Where and after what a batch is written: the writer's view of the active segment."""

    seed: int
    segment: int
    chain: bytes
    durable: int
    first_lsn: int
    parent: CommitRow
    epoch: int
    clock: int


def write_small(file: File, records: Sequence[Record], offset: int, where: Place) -> Written:
    """Write records and their commit with one gathered write."""
    seed, segment, chain, durable, lsn, parent, epoch, clock = where
    commit_lsn = lsn + len(records)
    start = offset
    buffers: list[Buffer] = []
    heads = [chain]
    entries: list[tuple[bytes, Entry]] = []
    for record in records:
        if record.checks is None:
            hash_record(record)
        length = record.payload_length
        body = _bounded_body(record)
        head = encode_record(record, body, lsn, commit_lsn, seed, offset)
        heads.append(head[: fmt.FRAME_HEADER_SIZE])
        buffers.append(head)
        # Without a payload, what follows the body is padding of the frame.
        place = offset + (len(head) if length else fmt.FRAME_HEADER_SIZE + len(body))
        entries += make_entries(record.drafts, commit_lsn, segment, offset, place)
        offset += len(head) + length
        if length:
            buffers += record.payload
            padding = -offset & (fmt.FRAME_ALIGN - 1)
            if padding:
                buffers.append(bytes(padding))
                offset += padding
        lsn += 1
    time = max(clock, parent.time)
    row = make_row((commit_lsn, parent.lsn, epoch, time, clock, start, offset))
    chain = digest128(b"".join(heads))
    commit = encode_commit(row, len(records), chain, durable, seed)
    buffers.append(commit)
    file.pwritev(buffers, start)
    return Written(row, entries, offset + len(commit), chain)


def write_batch(file: File, placed: Sequence[Placed], end: int, where: Place) -> Written:
    """Write placed records, large payloads first, and their commit, which goes to *end*.

    When this raises, some prefix may be in the file, but no commit: the batch does not exist.
    """
    large = [
        item
        for item in placed
        if item.record.checks is None and item.record.payload_length >= OVERLAP_BYTES
    ]
    if large:
        write_payloads(file, large)
    lsn = where.first_lsn + len(placed)
    start = placed[0].offset if placed else end
    parent = where.parent
    time = max(where.clock, parent.time)
    row = CommitRow(lsn, parent.lsn, where.epoch, time, where.clock, start, end)
    heads, extents = _encode(placed, where.first_lsn, lsn, where.seed)
    digest = digest128(b"".join([where.chain, *[head[: fmt.FRAME_HEADER_SIZE] for head in heads]]))
    commit = encode_commit(row, len(placed), digest, where.durable, where.seed)
    if extents and _extent_end(extents[-1]) == end:
        extents[-1][1].append(commit)
    else:
        extents.append((end, [commit]))
    for offset, buffers in extents:
        file.pwritev(buffers, offset)
    entries = [
        pair
        for item in placed
        for pair in make_entries(item.record.drafts, lsn, where.segment, item.offset, item.payload)
    ]
    return Written(row, entries, end + len(commit), digest)


def _encode(
    placed: Sequence[Placed], lsn: int, commit_lsn: int, seed: int
) -> tuple[list[bytes], list[tuple[int, list[Buffer]]]]:
    """Return the frame heads and the contiguous stretches still to be written."""
    heads: list[bytes] = []
    extents: list[tuple[int, list[Buffer]]] = []
    current: list[Buffer] | None = None
    for item in placed:
        record = item.record
        if record.checks is None or item.written:
            hash_record(record)
            item.body = encode_body(record)
        head = encode_record(record, item.body, lsn, commit_lsn, seed, item.offset)
        lsn += 1
        heads.append(head)
        if current is None:
            current = []
            extents.append((item.offset, current))
        current.append(head)
        if not record.payload_length:
            continue
        stop = item.payload + record.payload_length
        if item.written:
            current = []
            extents.append((stop, current))
        else:
            current.extend(record.payload)
        if item.end > stop:
            current.append(bytes(item.end - stop))
    return heads, [extent for extent in extents if extent[1]]


def _extent_end(extent: tuple[int, list[Buffer]]) -> int:
    return extent[0] + sum(map(len, extent[1]))
