"""Encode and decode frames: pure functions over bytes. Layout: FORMAT.md sections 3 and 4.

Nothing here touches a file or knows what an event means. Every length is bounded before it is
trusted; damage raises :class:`DamagedFrame`, which callers turn into "torn" or "corrupt" by the
rule of ``mldb.log.recovery``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgpack

from mldb.deferred import NamedTuple, dataclass
from mldb.errors import FormatVersionError
from mldb.log import format as fmt
from mldb.log.checksum import block_checks, check64, checks_and_digest
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import CommitFields, Entry, make_entry
from mldb.log.index.entry_check import are_sound

# Packing plain values runs no Python code, so one packer may serve all threads under the GIL.
_packer = msgpack.Packer(use_bin_type=True, autoreset=True)
pack: Final[Callable[[object], bytes]] = _packer.pack
pack_start = fmt.FRAME_START.pack
pack_check = fmt.FRAME_CHECK.pack
_EMPTY_MAP: dict[str, object] = {}
_MASK: Final = 0xFFFFFFFFFFFFFFFF
_HEADER_SIZE: Final = fmt.FRAME_HEADER_SIZE
_COMMIT: Final = fmt.KIND_COMMIT | fmt.MUST_UNDERSTAND
_ZEROS: Final = bytes(1 << 21)  # the largest alignment is 2 MiB

TO_BE_HASHED = bytes(fmt.DIGEST_SIZE)
"""Stands for the digest, in its length, until :func:`hash_record` has run over the payload."""


class DamagedFrame(Exception):
    """The bytes at this place are no valid frame. Internal: never reaches a user."""


class Draft(NamedTuple):
    """One index entry of a record that is being written; offset is relative to the payload."""

    key: bytes
    flags: int
    encoding: int
    offset: int
    length: int
    digest: bytes
    base: int
    attr: bytes
    owner: bytes = b""
    """The key whose version owns the bytes or is the base; empty: its own."""


DraftFields = tuple[bytes, int, int, int, int, bytes, int, bytes, bytes]
"""A Draft, or its fields in order: what many are made of, the names cost more than the rest."""

_DRAFT_SIZE: Final = len(Draft._fields)
_make_drafts: Final[Callable[[Any], Draft]] = partial(tuple.__new__, Draft)  # of lists read


@dataclass(slots=True)
class Record:
    """One record on its way into the log: an event with its entries and payload.

    ``payload`` buffers are one-dimensional byte buffers of total length ``payload_length``; they
    must not change until the commit returns. :func:`hash_record` fills ``checks`` and the drafts
    that are TO_BE_HASHED, which must span the whole payload; other drafts bring their digest.
    """

    kind: int
    drafts: Sequence[DraftFields]
    payload: Sequence[Buffer] = ()
    payload_length: int = 0
    extra: object = None
    body_version: int = 1
    align_log2: int = fmt.PAYLOAD_ALIGN_LOG2
    block_log2: int = fmt.BLOCK_LOG2
    checks: bytes | None = None
    written: bool = False
    """The payload is in the file already, where :func:`mldb.log.batch.encode_batch` places it."""

    def named_drafts(self) -> list[Draft]:
        """The drafts, with the names of their fields."""
        return list(map(Draft._make, self.drafts))


def hash_record(record: Record) -> None:
    """Compute what is missing of a record's block checksums and digest."""
    if record.checks is not None:
        return
    if not record.payload_length:
        record.checks = b""
        return
    if any(draft[5] == TO_BE_HASHED for draft in record.drafts):
        checks, digest = checks_and_digest(record.payload, record.block_log2)
        record.drafts = hashed_drafts(record.drafts, digest)
        record.checks = checks
    else:
        record.checks = block_checks(record.payload, record.block_log2)


def hashed_drafts(drafts: Sequence[DraftFields], digest: bytes) -> list[DraftFields]:
    """Return the drafts, with *digest* where one was TO_BE_HASHED."""
    return [
        (*draft[:5], digest, *draft[6:]) if draft[5] == TO_BE_HASHED else draft for draft in drafts
    ]


class Frame(NamedTuple):
    """A decoded frame header with its place; body and payload are fetched by offset."""

    header: fmt.FrameHeader
    offset: int
    body_offset: int
    checks_offset: int
    payload_offset: int
    end: int


# --- encoding -------------------------------------------------------------------------------------


def encode_body(record: Record) -> bytes:
    """Return the msgpack body of a record: its entries, then what its kind adds."""
    if not record.drafts:
        return pack(record.extra)
    return pack((record.drafts, record.extra))


def encode_head(
    kind: int,
    body_version: int,
    flags: int,
    body: bytes,
    checks: bytes,
    payload_length: int,
    block_log2: int,
    align_log2: int,
    lsn: int,
    commit_lsn: int,
    seed: int,
    offset: int,
) -> bytes:
    """Return all of a frame that precedes its payload: header, body, block checksums, padding.

    Without a payload the padding is that at the end of the frame. *offset* is where it will stand.
    """
    tail = body + checks if checks else body
    start = pack_start(
        fmt.FRAME_MAGIC,
        kind,
        body_version,
        flags,
        len(body),
        block_log2,
        align_log2,
        0,
        payload_length,
        lsn,
        commit_lsn,
        check64(tail),
    )
    check = check64(start, (seed + offset) & _MASK)
    size = fmt.FRAME_HEADER_SIZE + len(tail)
    if payload_length:
        padding = -(offset + size) & ((1 << align_log2) - 1)
    else:
        padding = -size & (fmt.FRAME_ALIGN - 1)
    return b"".join((start, pack_check(check), tail, _ZEROS[:padding]))


def encode_commit(
    row: CommitFields,
    count: int,
    digest: bytes,
    durable: int,
    seed: int,
    extra: Mapping[str, object] = _EMPTY_MAP,
) -> bytes:
    """Return the commit frame that closes a batch; it stands at ``row.end``."""
    lsn, parent, epoch, time, clock, _, end, commit_id = row
    body = pack((parent, epoch, time, clock, count, digest, durable, extra, commit_id, ()))
    # What encode_head makes of a frame without a payload, in the half of its steps: once a commit.
    length = len(body)
    start = pack_start(fmt.FRAME_MAGIC, _COMMIT, 1, 0, length, 0, 0, 0, 0, lsn, lsn, check64(body))
    check = pack_check(check64(start, (seed + end) & _MASK))
    return start + check + body + _ZEROS[: -(_HEADER_SIZE + length) & 7]


def make_entries(
    drafts: Sequence[DraftFields], commit_lsn: int, segment: bytes, frame: int, payload: int
) -> list[tuple[bytes, Entry]]:
    """Return the entries of the frame at offset *frame*, whose payload starts at *payload*."""
    entries: list[tuple[bytes, Entry]] = []
    add = entries.append
    for key, flags, encoding, offset, length, digest, base, attr, owner in drafts:
        at = payload + offset
        entry = (commit_lsn, segment, frame, at, length, attr, flags, encoding, base, digest, owner)
        add((key, make_entry(entry)))
    return entries


# --- decoding -------------------------------------------------------------------------------------


def decode_header(data: Buffer, offset: int, seed: int, limit: int, base: int = 0) -> Frame:
    """Decode and check the header at file offset *offset*; *data* starts at file offset *base*.

    *limit* is the end of what may be read, also a file offset. Raises :class:`DamagedFrame`.
    """
    at = offset - base
    if offset + fmt.FRAME_HEADER_SIZE > limit:
        raise DamagedFrame(
            f"{limit - offset} bytes are left, a frame header needs {fmt.FRAME_HEADER_SIZE}"
        )
    header = fmt.FrameHeader._make(fmt.FRAME_HEADER.unpack_from(data, at))
    if header.magic != fmt.FRAME_MAGIC:
        raise DamagedFrame("no frame magic")
    computed = check64(data[at : at + fmt.FRAME_CHECKED_SIZE], (seed + offset) & 0xFFFFFFFFFFFFFFFF)
    if computed != header.header_check:
        raise DamagedFrame(
            f"stored header checksum {header.header_check:016x}, computed {computed:016x}"
        )
    _bound(header)
    body_offset = offset + fmt.FRAME_HEADER_SIZE
    checks_offset = body_offset + header.body_length
    payload = fmt.payload_offset(
        offset, header.body_length, header.payload_length, header.block_log2, header.align_log2
    )
    end = fmt.align_up(payload + header.payload_length, 3)
    if end > limit:
        raise DamagedFrame(f"the frame ends at {end}, the file's valid part at {limit}")
    return Frame(header, offset, body_offset, checks_offset, payload, end)


def _bound(header: fmt.FrameHeader) -> None:
    """Refuse lengths that no writer makes, although the checksum is right."""
    if header.kind & ~fmt.MUST_UNDERSTAND == fmt.KIND_INVALID or header.reserved:
        raise DamagedFrame("kind 0 or a reserved field is set")
    if header.body_length > fmt.BODY_BYTES_MAX or header.payload_length > fmt.PAYLOAD_BYTES_MAX:
        raise DamagedFrame("a length exceeds its limit")
    if header.lsn > fmt.LSN_MAX or header.commit_lsn > fmt.LSN_MAX:
        raise DamagedFrame("an LSN exceeds its limit")
    if header.payload_length and not fmt.is_readable(header.block_log2, header.align_log2):
        raise DamagedFrame("block size or alignment is out of range")


def check_body(data: Buffer, frame: Frame, base: int = 0) -> bytes:
    """Return the verified body bytes of *frame*; also proves its block checksums and padding."""
    header = frame.header
    kind = header.kind & ~fmt.MUST_UNDERSTAND
    known = fmt.MANIFEST_BODY_VERSION if kind == fmt.KIND_MANIFEST else fmt.BODY_VERSION
    if header.body_version > known and header.kind & fmt.MUST_UNDERSTAND:
        raise FormatVersionError(
            f"the frame at offset {frame.offset} has kind {kind} and body version "
            f"{header.body_version}; this mldb reads up to {known}. Nothing was changed; use a "
            "newer mldb."
        )
    count = fmt.block_count(header.payload_length, header.block_log2)
    end = frame.checks_offset + 8 * count
    tail = bytes(data[frame.body_offset - base : end - base])
    computed = check64(tail)
    if computed != header.body_check:
        raise DamagedFrame(
            f"stored body checksum {header.body_check:016x}, computed {computed:016x}"
        )
    padding_end = frame.payload_offset if header.payload_length else frame.end
    if not is_zero(data[end - base : padding_end - base]):
        raise DamagedFrame("padding before the payload is not zero")
    if not is_zero(data[frame.payload_offset + header.payload_length - base : frame.end - base]):
        raise DamagedFrame("padding after the payload is not zero")
    return tail[: header.body_length]


def is_zero(data: Buffer) -> bool:
    """Tell whether all bytes are zero; counting them is far faster than ``any``. Copies *data*."""
    return bytes(data).count(0) == len(data)


def decode_entries(body: bytes, frame: Frame) -> tuple[list[Draft], object]:
    """Return the index entries and the rest of a keyed body. Raises :class:`DamagedFrame`."""
    try:
        raw, extra = unpack(body)[:2]
        if {_DRAFT_SIZE} != {*map(len, raw)}:
            raw = list(map(_of_another_version, raw))
        drafts = list(map(_make_drafts, raw))
        columns = tuple(zip(*raw, strict=True)) or ((),) * _DRAFT_SIZE
        sound = are_sound(columns, frame.header.payload_length)
    except (ValueError, TypeError, LookupError) as error:
        raise DamagedFrame(f"entries cannot be decoded: {error}") from None
    if len(drafts) > fmt.ENTRIES_MAX:
        raise DamagedFrame(f"{len(drafts)} entries in one frame")
    if not sound or len(columns[0]) != len(drafts):  # rows of nothing leave no columns
        raise DamagedFrame("an index entry is out of range")
    return drafts, extra


def _of_another_version(row: list[Any]) -> list[Any]:
    """An entry of version 1, which has no owner, or one that has more behind it."""
    return [*row, b""] if len(row) == _DRAFT_SIZE - 1 else row[:_DRAFT_SIZE]


class CommitBody(NamedTuple):
    """The decoded body of a commit frame."""

    parent: int
    epoch: int
    time: int
    clock: int
    frames: int
    digest: bytes
    durable: int
    extra: dict[str, object]
    id: bytes
    merged: list[int]


_COMMIT_SIZE: Final = len(CommitBody._fields)
_SINCE_VERSION_2: Final[tuple[object, ...]] = (b"", [])


def decode_commit(body: bytes) -> CommitBody:
    """Decode the body of a commit frame. Raises :class:`DamagedFrame`."""
    try:
        stored = unpack(body)
        if len(stored) == _COMMIT_SIZE - len(_SINCE_VERSION_2):
            stored += _SINCE_VERSION_2
        commit = CommitBody._make(stored[:_COMMIT_SIZE])
        good = all(type(value) is int for value in (*commit[:5], commit.durable))
    except (ValueError, TypeError, LookupError) as error:
        raise DamagedFrame(f"a commit cannot be decoded: {error}") from None
    if not (
        good
        and type(commit.digest) is bytes
        and len(commit.digest) == fmt.DIGEST_SIZE
        and type(commit.extra) is dict
        and type(commit.id) is bytes
        and len(commit.id) in (0, fmt.DIGEST_SIZE)
        and type(commit.merged) is list
        and 0 <= commit.frames <= fmt.FRAMES_MAX
        and 0 <= commit.parent <= fmt.LSN_MAX
        and 0 <= commit.durable <= fmt.LSN_MAX
        and 0 <= commit.epoch <= fmt.EPOCH_MAX
        and fmt.TIME_MIN <= commit.time <= fmt.TIME_MAX
        and fmt.TIME_MIN <= commit.clock <= fmt.TIME_MAX
    ):
        raise DamagedFrame("a commit field is out of range")
    return commit


def unpack(data: bytes) -> Any:
    """Decode msgpack with every length bounded by the input; raises ValueError on anything odd."""
    try:
        return msgpack.unpackb(data, raw=False, use_list=True, strict_map_key=False)
    except (msgpack.UnpackException, RecursionError, OverflowError, TypeError) as error:
        # TypeError: a key of a map that Python cannot hash.
        raise ValueError(f"invalid msgpack: {error}") from None
