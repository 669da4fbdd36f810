"""From records to the bytes of one batch: one pure function, which every commit goes through.

:func:`encode_batch` lays the frames of a batch out, one after another, closed by its commit frame,
and says which index entries come of it. It checks the limits of FORMAT.md section 12 before
anything is written, so that nothing is stored that a reader would call damaged.

A large payload is written while a second thread hashes it (:func:`write_payloads`), before its
frame head, which holds the checksums, can be made. The commit frame is part of the last write, so a
batch is whole once its commit is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from mldb.errors import LimitError
from mldb.log import format as fmt
from mldb.log.aside import Aside
from mldb.log.checksum import digest128
from mldb.log.frame import (
    Draft,
    Record,
    add_entries,
    encode_body,
    encode_commit,
    encode_head,
    hash_record,
    pack,
)
from mldb.log.fs.protocol import Buffer, File
from mldb.log.index.address import CommitRow, Entry, make_row
from mldb.log.index.entry_check import are_in_bounds, is_sound

OVERLAP_BYTES: Final = 4 << 20
"""From this payload size on, hashing and writing overlap."""

LSN_ROOM: Final = fmt.LSN_MAX - (1 << 24)
"""Behind it no batch is begun."""

_FRAMES_MAX: Final = fmt.FRAMES_MAX
assert fmt.EPOCH_MAX == fmt.TIME_MAX == -fmt.TIME_MIN - 1 == (1 << 63) - 1  # see the shifts
_SMALL_BODY: Final = fmt.KEY_BYTES_MAX  # nothing in a body is longer than itself
_FEW_DRAFTS: Final = 4
assert fmt.DIGEST_SIZE == 16
assert fmt.ATTR_BYTES_MAX >= _SMALL_BODY
_NO_EXTRA: Mapping[str, object] = {}
_IDS_AT_ONCE: Final = 256
_JOIN_BYTES: Final = 16 << 10  # up to here copying costs less than writing from many places
_HEADER_SIZE: Final = fmt.FRAME_HEADER_SIZE
_ALIGN_MASK: Final = fmt.FRAME_ALIGN - 1
_ZEROS: Final = bytes(fmt.FRAME_ALIGN)


class BatchStart(NamedTuple):
    """Where and after what a batch is written.

    ``seed``, ``segment`` and ``chain`` are those of its segment, ``offset`` is where its first
    frame starts, ``durable`` the last commit known to be durable. ``clock`` is in nanoseconds.
    """

    seed: int
    segment: bytes
    chain: bytes
    offset: int
    first_lsn: int
    durable: int
    parent: CommitRow
    epoch: int
    clock: int


make_start: Callable[[tuple[object, ...]], BatchStart] = partial(tuple.__new__, BatchStart)
"""Make a BatchStart of its fields in order, at half the cost of a call: once per commit."""


class EncodedBatch(NamedTuple):
    """A batch as bytes, and what the index and the sequencer need to know of it.

    ``extents`` are the stretches still to be written: an offset and buffers that follow each other.
    The last one ends with the commit. ``end`` is where the next batch starts, ``chain`` the digest
    that it continues from.
    """

    extents: list[tuple[int, list[Buffer]]]
    row: CommitRow
    entries: list[tuple[bytes, Entry]]
    end: int
    chain: bytes


make_batch: Callable[[tuple[object, ...]], EncodedBatch] = partial(tuple.__new__, EncodedBatch)
"""Make an EncodedBatch of its fields in order, at half the cost of a call: once per commit."""


class Placed(NamedTuple):
    """Where a record's frame and payload start, and where its frame ends."""

    record: Record
    offset: int
    payload: int
    end: int


def encode_batch(
    records: Sequence[Record], start: BatchStart, extra: Mapping[str, object] = _NO_EXTRA
) -> EncodedBatch:
    """Return the bytes of one batch and its index entries; writes nothing.

    The records are hashed. Payloads of those that are ``written`` are in the file already, where
    :func:`place` puts them. *extra* is what the commit says beside the rest. Raises LimitError.
    """
    seed, segment, chain, offset, lsn, durable, parent, epoch, clock = start
    count = len(records)
    if count > _FRAMES_MAX or lsn > LSN_ROOM or epoch >> 63 or (clock >> 63) + 1 >> 1:
        check_batch(count, lsn, epoch)
        raise LimitError(f"the time {clock} has no place in the log. Nothing was stored.")
    commit_lsn = lsn + count
    first = offset
    buffers: list[Buffer] = []
    extents = [(offset, buffers)]
    heads = [chain]
    entries: list[tuple[bytes, Entry]] = []
    for record in records:
        drafts, length = record.drafts, record.payload_length
        body = pack((drafts, record.extra)) if drafts else pack(record.extra)
        size = len(body)
        if size > _SMALL_BODY or len(drafts) != 1 or not _is_plain(drafts[0], record):
            _check_record(record, size)
        head = encode_head(
            record.kind,
            record.body_version,
            fmt.FLAG_KEYED if drafts else 0,
            body,
            record.checks or b"",
            length,
            record.block_log2,
            record.align_log2,
            lsn,
            commit_lsn,
            seed,
            offset,
        )
        heads.append(head[:_HEADER_SIZE])
        buffers.append(head)
        # Without a payload, what follows the body is padding of the frame.
        payload = offset + (len(head) if length else _HEADER_SIZE + size)
        add_entries(entries, drafts, commit_lsn, segment, offset, payload)
        offset += len(head) + length
        if length:
            if record.written:
                buffers = []
                extents.append((offset, buffers))
            else:
                buffers += record.payload
            padding = -offset & _ALIGN_MASK
            if padding:
                buffers.append(_ZEROS[:padding])
                offset += padding
        lsn += 1
    before, time = parent[0], parent[3]
    if clock > time:  # noqa: PLR1730 - max() costs three times as much
        time = clock
    row = make_row((commit_lsn, before, epoch, time, clock, first, offset, new_commit_id()))
    chain = digest128(b"".join(heads))
    commit = encode_commit(row, count, chain, durable, seed, extra)
    if extra and len(commit) > fmt.BODY_BYTES_MAX:
        raise LimitError(f"a commit of {len(commit)} bytes is too long. Nothing was stored.")
    buffers.append(commit)
    return make_batch((extents, row, entries, offset + len(commit), chain))


def write_batch(file: File, batch: EncodedBatch) -> None:
    """Write what is still to be written of a batch, its commit last.

    When this raises, some prefix may be in the file, but no commit: the batch does not exist.
    """
    extents, row, _, end, _ = batch
    if end - row.start <= _JOIN_BYTES and len(extents) == 1:
        file.pwritev((b"".join(extents[0][1]),), row.start)
        return
    for offset, buffers in extents:
        file.pwritev(buffers, offset)


# --- limits ---------------------------------------------------------------------------------------


def check_batch(count: int, lsn: int, epoch: int) -> None:
    """Raise LimitError when a batch of *count* records cannot begin at *lsn*."""
    if count > fmt.FRAMES_MAX:
        raise LimitError(
            f"a transaction of {count} records exceeds the limit of {fmt.FRAMES_MAX}. Nothing was "
            "stored; split it."
        )
    if lsn > LSN_ROOM:
        raise LimitError("the log has no LSNs left. Nothing was stored.")
    if not 0 <= epoch <= fmt.EPOCH_MAX:
        raise LimitError(f"epoch {epoch} is outside 0 .. 2**63 - 1. Nothing was stored.")


def _is_plain(draft: Draft, record: Record) -> bool:
    """Whether a draft is all of a usual payload; the short body bounds its key and attr."""
    key, flags, encoding, offset, size, digest, base, _, _ = draft
    if flags or encoding or offset or base or not key or len(digest) != 16:
        return False
    return (
        size == record.payload_length < fmt.PAGE_ALIGN_FROM
        and record.align_log2 == fmt.PAYLOAD_ALIGN_LOG2
        and record.block_log2 == fmt.BLOCK_LOG2
    )


def _check_record(record: Record, body_length: int) -> None:
    """Refuse what a reader would refuse, by the same bounds."""
    drafts, length = record.drafts, record.payload_length
    count = len(drafts)
    if (
        body_length > fmt.BODY_BYTES_MAX
        or length > fmt.PAYLOAD_BYTES_MAX
        or count > fmt.ENTRIES_MAX
        or (length and not fmt.is_readable(record.block_log2, record.align_log2))
    ):
        raise LimitError(
            f"a record of {count} entries, {body_length} body bytes and {length} payload bytes "
            f"(blocks of 2**{record.block_log2}, aligned to 2**{record.align_log2}) exceeds the "
            f"limits {fmt.ENTRIES_MAX}, {fmt.BODY_BYTES_MAX} and {fmt.PAYLOAD_BYTES_MAX} (2**"
            f"{fmt.BLOCK_LOG2_MAX}, 2**{fmt.ALIGN_LOG2_MAX}). Nothing was stored."
        )
    if count > _FEW_DRAFTS:
        if not are_in_bounds(tuple(zip(*drafts, strict=True)), length):
            raise _unsound(drafts, length)
        return
    for draft in drafts:
        if not is_sound(draft, length):
            raise _unsound(drafts, length)


def _unsound(drafts: Sequence[Draft], length: int) -> LimitError:
    draft = next(item for item in drafts if not is_sound(item, length))
    return LimitError(
        f"the key {draft.key!r:.80} of {len(draft.key)} bytes has an entry beyond the limits: "
        f"{len(draft.attr)} bytes of attr (limits {fmt.KEY_BYTES_MAX} and {fmt.ATTR_BYTES_MAX}), "
        f"bytes {draft.offset}..{draft.offset + draft.length} of a payload of {length}. Nothing "
        "was stored."
    )


# --- places and payloads --------------------------------------------------------------------------


def place(record: Record, offset: int) -> Placed:
    """Decide where a record's parts go when its frame starts at *offset*. Raises LimitError.

    Digests that are still TO_BE_HASHED have their length, so that hashing moves nothing.
    """
    body_length = len(encode_body(record))
    length = record.payload_length
    _check_record(record, body_length)
    payload = fmt.payload_offset(offset, body_length, length, record.block_log2, record.align_log2)
    end = payload + length if length else fmt.align_up(payload, 3)
    return Placed(record, offset, payload, fmt.align_up(end, 3))


def place_all(records: Sequence[Record], offset: int) -> Iterator[Placed]:
    """Place records one after another from *offset* on."""
    for record in records:
        placed = place(record, offset)
        yield placed
        offset = placed.end


def write_payloads(file: File, placed: Sequence[Placed]) -> None:
    """Write the payloads of these records, and hash them meanwhile in a second thread."""
    records = [item.record for item in placed]
    hashing = Aside(partial(_hash_all, records))
    try:
        for item in placed:
            file.pwritev(item.record.payload, item.payload)
    finally:
        hashing.result()  # also when a write failed: nobody may change the payload before
    for record in records:
        record.written = True


def _hash_all(records: Sequence[Record]) -> None:
    for record in records:
        hash_record(record)


def write_ahead(file: File, records: Sequence[Record], offset: int) -> None:
    """Write and hash the large payloads of a batch that will start at *offset*."""
    large = [
        item
        for item in place_all(records, offset)
        if item.record.checks is None and item.record.payload_length >= OVERLAP_BYTES
    ]
    if large:
        write_payloads(file, large)
    for record in records:
        hash_record(record)


# --- commit ids -----------------------------------------------------------------------------------

_ids: list[bytes] = []  # ready to be given out; list.pop is one step, so that no lock is needed


def new_commit_id() -> bytes:
    """Return 16 random bytes; the system is asked once for many."""
    try:
        return _ids.pop()
    except IndexError:
        size = len(fmt.NO_ID)
        data = os.urandom(size * _IDS_AT_ONCE)
        _ids.extend(data[at : at + size] for at in range(size, len(data), size))
        return data[:size]


os.register_at_fork(after_in_child=_ids.clear)  # a child must not give out the same ones
