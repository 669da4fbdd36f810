"""One batch of one small record, read in a fraction of the steps: what most logs are made of.

A log of a hundred thousand small commits is scanned when its process was killed, and each frame
costs what Python's calls cost. So the common batch (one keyed frame, its payload of one block, then
its commit) is checked here in one go, by the same rules. Whatever is not exactly that, or is not
sound, is left to the careful reader in ``mldb.log.scan``, who also says what is wrong.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import msgpack

from mldb.deferred import NamedTuple
from mldb.log import format as fmt
from mldb.log.checksum import check64, digest128
from mldb.log.frame import CommitBody, Frame
from mldb.log.index.address import CommitRow, Entry, make_entry, make_row
from mldb.log.index.entry_check import is_sound

_HEADER_SIZE: Final = fmt.FRAME_HEADER_SIZE
_CHECKED: Final = fmt.FRAME_CHECKED_SIZE
_unpack_header = fmt.FRAME_HEADER.unpack_from
_COMMIT: Final = fmt.KIND_COMMIT | fmt.MUST_UNDERSTAND
_MASK: Final = 0xFFFFFFFFFFFFFFFF
_BODY_MAX: Final = 1 << 12
_unpack = partial(msgpack.unpackb, raw=False, use_list=True, strict_map_key=False)
_make_header = partial(tuple.__new__, fmt.FrameHeader)
_make_frame = partial(tuple.__new__, Frame)
_make_body = partial(tuple.__new__, CommitBody)
ODD: Final = (
    msgpack.UnpackException,
    ValueError,
    TypeError,
    LookupError,
    RecursionError,
    OverflowError,
)
_SIX_INTS: Final = (int,) * 6
assert _BODY_MAX <= fmt.BODY_BYTES_MAX
assert fmt.DIGEST_SIZE == 16


class UsualBatch(NamedTuple):
    """What the scan takes from a batch: see ``mldb.log.scan.Batch``; where it ends, its digest."""

    row: CommitRow
    frame: Frame
    raw: bytes
    entry: tuple[bytes, Entry]
    body: CommitBody
    end: int
    chain: bytes


_make_batch: Any = partial(tuple.__new__, UsualBatch)


def read_usual(
    data: memoryview,
    start: int,
    last_lsn: int,
    before: bytes,
    seed: int,
    segment: bytes,
    verify_after: int | None,
) -> UsualBatch | None:
    """Read the batch at offset *start* behind commit *last_lsn* with digest *before*.

    None when it is another kind of batch, no batch, or damaged in any way. Changes nothing.
    """
    limit = len(data)
    at = start + _HEADER_SIZE
    if at + _HEADER_SIZE > limit or not before:
        return None
    head = bytes(data[start:at])
    header = _unpack_header(head)
    if not _is_usual(header) or header[-1] != check64(head[:_CHECKED], (seed + start) & _MASK):
        return None
    _, _, _, _, size, block, align, _, length, lsn, last, check, _ = header
    if not last_lsn < lsn < fmt.LSN_MAX or last != lsn + 1:
        return None
    checks = at + size
    if length:
        if not fmt.is_readable(block, align) or length > 1 << block:
            return None
        tail = checks + 8
        payload = -(-tail >> align << align)
        stop = payload + length
        commit = stop + 7 & ~7
    else:
        tail = payload = checks
        stop = commit = checks + 7 & ~7
    if commit + _HEADER_SIZE > limit:
        return None
    body = bytes(data[at:tail])
    if check64(body) != check or bytes(data[tail : payload if length else stop]).strip(b"\0"):
        return None
    if length:
        if stop < commit and bytes(data[stop:commit]).strip(b"\0"):
            return None
        if verify_after is not None and last > verify_after:
            stored = int.from_bytes(body[size:], "big")
            if check64(data[payload:stop]) != stored:
                return None
    closing = _read_commit(data, commit, lsn, seed, limit)
    if closing is None:
        return None
    commit_body, end = closing
    parent, epoch, time, clock, _, chain, _, _, commit_id, _ = commit_body
    if digest128(before + head) != chain:
        return None
    raw = body[:size]
    entry = _read_entry(raw, length, last, segment, start, payload)
    if entry is None:
        return None
    return _make_batch(  # type: ignore[no-any-return]  # of the fields in order
        (
            make_row((last, parent, epoch, time, clock, start, commit, commit_id)),
            _make_frame((_make_header(header), start, at, checks, payload, commit)),
            raw,
            entry,
            _make_body(commit_body),
            end,
            chain,
        )
    )


def _is_usual(header: tuple[Any, ...]) -> bool:
    """Whether this is the header of a keyed event with a short body."""
    magic, kind, version, flags, size, _, _, odd, _, _, _, _, _ = header
    return (
        magic == fmt.FRAME_MAGIC
        and kind & ~fmt.MUST_UNDERSTAND >= fmt.KIND_FIRST_EVENT
        and version <= fmt.BODY_VERSION
        and flags == fmt.FLAG_KEYED
        and not odd
        and size <= _BODY_MAX
    )


def _read_commit(
    data: memoryview, start: int, lsn: int, seed: int, limit: int
) -> tuple[tuple[Any, ...], int] | None:
    """The fields of the commit that closes one frame with this LSN, and where it ends."""
    at = start + _HEADER_SIZE
    head = bytes(data[start:at])
    magic, kind, version, flags, size, _, _, odd, length, own, last, check, stored = _unpack_header(
        head
    )
    stop = at + size
    end = stop + 7 & ~7
    if (
        magic != fmt.FRAME_MAGIC
        or stored != check64(head[:_CHECKED], (seed + start) & _MASK)
        or kind != _COMMIT
        or version > fmt.BODY_VERSION
        or flags
        or odd
        or length
        or size > _BODY_MAX
        or not own == last == lsn + 1
        or end > limit
    ):
        return None
    body = bytes(data[at:end])
    if check64(body[:size]) != check or body[size:].strip(b"\0"):
        return None
    try:
        fields = _unpack(body[:size])
        if type(fields) is not list:
            return None
        parent, epoch, time, clock, frames, digest, durable, extra, commit_id, merged = fields
    except ODD:
        return None
    ints = (type(parent), type(epoch), type(time), type(clock), type(frames), type(durable))
    if (
        ints != _SIX_INTS
        or type(digest) is not bytes
        or type(extra) is not dict
        or type(commit_id) is not bytes
        or type(merged) is not list
        or frames != 1
        or not 0 <= parent <= lsn
        or not 0 <= durable <= fmt.LSN_MAX
        or not 0 <= epoch <= fmt.EPOCH_MAX
        or not fmt.TIME_MIN <= time <= fmt.TIME_MAX
        or not fmt.TIME_MIN <= clock <= fmt.TIME_MAX
        or len(commit_id) not in (0, fmt.DIGEST_SIZE)
    ):
        return None
    return tuple(fields), end


def _read_entry(
    raw: bytes, length: int, commit_lsn: int, segment: bytes, frame: int, payload: int
) -> tuple[bytes, Entry] | None:
    """The entry of a body that has exactly one."""
    try:
        fields = _unpack(raw)
        if type(fields) is not list or len(fields) < 2:
            return None
        drafts = fields[0]
        if type(drafts) is not list or len(drafts) != 1 or type(drafts[0]) is not list:
            return None
        draft: Any = drafts[0]
        key, flags, code, offset, stored, digest, base, attr, owner = draft
        kinds = (type(flags), type(code), type(offset), type(stored), type(base), int)
        if (
            kinds != _SIX_INTS
            or not type(key) is type(digest) is type(attr) is type(owner) is bytes
            or not is_sound(draft, length)
        ):
            return None
    except ODD:
        return None
    at = payload + offset
    entry = (commit_lsn, segment, frame, at, stored, attr, flags, code, base, digest, owner)
    return key, make_entry(entry)
