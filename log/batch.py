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
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from mldb.deferred import NamedTuple
from mldb.errors import LimitError
from mldb.log import format as fmt
from mldb.log import native
from mldb.log.aside import OVERLAP_BYTES, Aside
from mldb.log.checksum import check64, digest128
from mldb.log.frame import (
    Draft,
    DraftFields,
    Record,
    encode_body,
    encode_commit,
    hash_record,
    pack,
    pack_check,
    pack_start,
)
from mldb.log.fs.protocol import Buffer, File
from mldb.log.index.address import CommitRow, Entry, make_entry, make_row
from mldb.log.index.entry_check import are_in_bounds, is_sound

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
_FRAME_MASK: Final = fmt.FRAME_ALIGN - 1
_SMALL_PAYLOAD: Final = fmt.PAGE_ALIGN_FROM
_MAGIC: Final = fmt.FRAME_MAGIC
_KEYED: Final = fmt.FLAG_KEYED
_BLOCK: Final = fmt.BLOCK_LOG2
_ALIGN: Final = fmt.PAYLOAD_ALIGN_LOG2
_DIGEST: Final = fmt.DIGEST_SIZE
_MASK: Final = 0xFFFFFFFFFFFFFFFF
_ZEROS: Final = bytes(1 << fmt.ALIGN_LOG2_MAX)


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


StartFields = tuple[int, bytes, bytes, int, int, int, CommitRow, int, int]
"""A BatchStart, or its fields without their names: those cost every commit something."""


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


BatchFields = tuple[
    list[tuple[int, list[Buffer]]], CommitRow, list[tuple[bytes, Entry]], int, bytes
]
"""An EncodedBatch, or its fields in order."""


class Placed(NamedTuple):
    """Where a record's frame and payload start, and where its frame ends."""

    record: Record
    offset: int
    payload: int
    end: int


def encode_batch(
    records: Sequence[Record],
    start: StartFields,
    extra: Mapping[str, object] = _NO_EXTRA,
    commit_id: bytes | None = None,
) -> BatchFields:
    """Return the fields of an :class:`EncodedBatch`; writes nothing.

    The records are hashed. Payloads of those that are ``written`` are in the file already, where
    :func:`place` puts them. *extra* is what the commit says beside the rest, *commit_id* its id
    where it had one before. Raises LimitError.
    """
    own_id = new_commit_id() if commit_id is None else commit_id
    twin = native.twin
    if twin is not None:
        encoded: BatchFields | None = twin.encode_batch(records, start, extra, own_id)
        if encoded is not None:
            return encoded
    return _encode(records, start, extra, own_id)


def _encode(
    records: Sequence[Record], start: StartFields, extra: Mapping[str, object], own_id: bytes
) -> BatchFields:
    seed, segment, chain, first, lsn, durable, parent, epoch, clock = start
    count = len(records)
    if count > _FRAMES_MAX or lsn > LSN_ROOM or epoch >> 63 or (clock >> 63) + 1 >> 1:
        check_batch(count, lsn, epoch, clock)
    last, offset = lsn + count, first
    buffers: list[Buffer] = []
    extents = [(offset, buffers)]
    heads = [chain]
    entries: list[tuple[bytes, Entry]] = []
    for record in records:
        kind, version, drafts = record.kind, record.body_version, record.drafts
        length, block, align = record.payload_length, record.block_log2, record.align_log2
        body = pack((drafts, record.extra)) if drafts else pack(record.extra)
        size = len(body)
        if size > _SMALL_BODY or not _is_usual(drafts, length, block, align):
            _check_record(record, size)
        keyed = _KEYED if drafts else 0
        tail = body + (record.checks or b"") if length else body
        head = pack_start(
            _MAGIC, kind, version, keyed, size, block, align, 0, length, lsn, last, check64(tail)
        )
        head += pack_check(check64(head, (seed + offset) & _MASK))
        heads.append(head)
        at = offset + _HEADER_SIZE + len(tail)
        # Without a payload the padding is that of the frame: nothing stands behind it.
        padding = -at & ((1 << align) - 1 if length else _FRAME_MASK)
        buffers.append(head + tail + _ZEROS[:padding])
        if length:
            at += padding
        for key, flags, code, place, stored, digest, base, attr, owner in drafts:
            stands = at + place
            entry = (last, segment, offset, stands, stored, attr, flags, code, base, digest, owner)
            entries.append((key, make_entry(entry)))
        offset = at + (length or padding)
        if record.written:
            buffers = []
            extents.append((offset, buffers))
        elif length:
            buffers += record.payload
        padding = -offset & _FRAME_MASK
        if padding:
            buffers.append(_ZEROS[:padding])
            offset += padding
        lsn += 1
    time = max(parent.time, clock)
    row = (last, parent.lsn, epoch, time, clock, first, offset, own_id)
    chain = digest128(b"".join(heads))
    commit = encode_commit(row, count, chain, durable, seed, extra)
    if extra and len(commit) > fmt.BODY_BYTES_MAX:
        raise LimitError(f"a commit of {len(commit)} bytes is too long. Nothing was stored.")
    buffers.append(commit)
    if offset - first <= _JOIN_BYTES and len(extents) == 1:
        extents = [(first, [b"".join(buffers)])]
    return extents, make_row(row), entries, offset + len(commit), chain


def write_batch(file: File, batch: BatchFields) -> None:
    """Write what is still to be written of a batch, its commit last.

    When this raises, some prefix may be in the file, but no commit: the batch does not exist.
    """
    for offset, buffers in batch[0]:
        file.pwritev(buffers, offset)


# --- limits ---------------------------------------------------------------------------------------


def check_batch(count: int, lsn: int, epoch: int, clock: int = 0) -> None:
    """Raise LimitError when a batch of *count* records cannot begin at *lsn* and this *clock*."""
    if count > fmt.FRAMES_MAX:
        raise LimitError(
            f"a transaction of {count} records exceeds the limit of {fmt.FRAMES_MAX}. Nothing was "
            "stored; split it."
        )
    if lsn > LSN_ROOM:
        raise LimitError("the log has no LSNs left. Nothing was stored.")
    if not 0 <= epoch <= fmt.EPOCH_MAX:
        raise LimitError(f"epoch {epoch} is outside 0 .. 2**63 - 1. Nothing was stored.")
    if not fmt.TIME_MIN <= clock <= fmt.TIME_MAX:
        raise LimitError(f"the time {clock} has no place in the log. Nothing was stored.")


def _is_usual(drafts: Sequence[DraftFields], length: int, block: int, align: int) -> bool:
    """Whether there is one draft, of all of a usual payload; a short body bounds its bytes."""
    if len(drafts) != 1 or length > _SMALL_PAYLOAD or block != _BLOCK or align != _ALIGN:
        return False
    key, flags, code, place, stored, digest, base, _, _ = drafts[0]
    if flags or code or place or base or stored != length or len(digest) != _DIGEST:
        return False
    return key != b""


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


def _unsound(drafts: Sequence[DraftFields], length: int) -> LimitError:
    draft = Draft._make(next(item for item in drafts if not is_sound(item, length)))
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
    hashing = Aside(partial(hash_all, records))
    try:
        for item in placed:
            file.pwritev(item.record.payload, item.payload)
    finally:
        hashing.result()  # also when a write failed: nobody may change the payload before
    for record in records:
        record.written = True


def hash_all(records: Sequence[Record]) -> None:
    """Hash what is not hashed yet of these records."""
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
