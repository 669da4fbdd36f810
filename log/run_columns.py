"""What makes a run of common batches sound: their headers, checksums and bodies, as columns.

Pure functions over the bytes of a piece of a segment; ``mldb.log.scan_run`` puts them together. The
rules are those of ``mldb.log.scan_usual``, with any number of entries in a frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import add, le
from typing import Any, Final

import msgpack
import numpy as np
import numpy.typing as npt

from mldb.log import format as fmt
from mldb.log.checksum import check64
from mldb.log.index.entry_check import are_sound
from mldb.log.scan_usual import ODD

_HEAD: Final = fmt.FRAME_HEADER_SIZE
_CHECKED: Final = fmt.FRAME_CHECKED_SIZE
_sizes = struct.Struct("<8xIBBxxQ").unpack_from  # of a header: body, block, alignment, payload
_body_size = struct.Struct("<8xI").unpack_from
_COMMIT: Final = fmt.KIND_COMMIT | fmt.MUST_UNDERSTAND
_MAGIC: Final = int.from_bytes(fmt.FRAME_MAGIC, "little")
_HEADER: Final = np.dtype(
    [
        *(("magic", "<u4"), ("kind", "<u2"), ("version", "u1"), ("flags", "u1")),
        *(("body", "<u4"), ("block", "u1"), ("align", "u1"), ("reserved", "<u2")),
        *(("payload", "<u8"), ("lsn", "<u8"), ("last", "<u8")),
        *(("body_check", "<u8"), ("check", "<u8")),
    ]
)
assert _HEADER.itemsize == _HEAD
_MASK: Final = 0xFFFFFFFFFFFFFFFF
_COMMIT_FIELDS: Final = 10
_DRAFT_FIELDS: Final = 9
_INTS: Final = (0, 1, 2, 3, 4, 6)  # of a commit body: parent to frames, durable

Heads = npt.NDArray[np.void]
Places = list[tuple[int, int, int, int, int, int, int]]
"""Of each batch: start, end of the body, start and end of the payload, commit, the ends of its
body and of its padding; from the start of the piece."""


def batch_places(piece: bytes, base: int, room: int) -> Places:
    """Where the batches of a piece stand by the sizes they name; nothing else is checked yet."""
    places: Places = []
    at, limit, whole = 0, len(piece) - _HEAD, len(piece)
    readable = (-1, -1)  # block and alignment that were found to be
    for _ in range(room):
        if at >= limit:
            break
        body, block, align, length = _sizes(piece, at)
        start = checks = at + _HEAD + body
        if length:
            if (block, align) != readable:
                if not fmt.is_readable(block, align):
                    break
                readable = (block, align)
            if length > 1 << block:
                break
            start = -(-(base + checks + 8) >> align << align) - base
        stop = start + length
        commit = stop + 7 & ~7
        if commit > limit:
            break
        last = commit + _HEAD + _body_size(piece, commit)[0]
        end = last + 7 & ~7
        if end > whole:
            break
        places.append((at, checks, start, stop, commit, last, end))
        at = end
    return places


def parsed_heads(heads: Sequence[bytes]) -> Heads:
    """Frame headers as an array with their fields."""
    return np.frombuffer(b"".join(heads), _HEADER)


def count_usual(heads: Heads, closings: Heads, last_lsn: int, until: int) -> int:
    """How many batches are, one behind another, a keyed event and its commit, by their headers."""
    lsns, last = heads["lsn"], heads["last"]
    before = np.concatenate((np.array([last_lsn], "<u8"), last[:-1]))
    usual = (
        (heads["magic"] == _MAGIC)
        & (heads["kind"] & ~np.uint16(fmt.MUST_UNDERSTAND) >= fmt.KIND_FIRST_EVENT)
        & (heads["version"] <= fmt.BODY_VERSION)
        & (heads["flags"] == fmt.FLAG_KEYED)
        & (heads["reserved"] == 0)
        & (lsns > before)
        & (lsns < fmt.LSN_MAX)
        & (last == lsns + np.uint64(1))
        & (last <= until)
        & (closings["magic"] == _MAGIC)
        & (closings["kind"] == _COMMIT)
        & (closings["version"] <= fmt.BODY_VERSION)
        & (closings["flags"] == 0)
        & (closings["reserved"] == 0)
        & (closings["payload"] == 0)
        & (closings["lsn"] == last)
        & (closings["last"] == last)
    )
    return len(usual) if usual.all() else int(usual.argmin())


def are_checked(
    piece: bytes,
    places: Places,
    at: npt.NDArray[np.int64],
    heads: Sequence[bytes],
    closings: Sequence[bytes],
    seed: int,
    verify_after: int | None,
) -> bool:
    """Whether checksums and padding are right; *at* are the places as columns, in the file."""
    own, closed = parsed_heads(heads), parsed_heads(closings)
    for packed, parsed, offsets in ((heads, own, at[0]), (closings, closed, at[4])):
        seeds = offsets.astype(np.uint64) + np.uint64(seed & _MASK)  # modulo 2^64
        cut = [head[:_CHECKED] for head in packed]
        if not _agree(map(check64, cut, seeds.tolist()), parsed["check"]):
            return False
    tails = [
        piece[frame + _HEAD : (end + 8 if stop > start else end)]
        for frame, end, start, stop, _, _, _ in places
    ]
    if not _agree(map(check64, tails), own["body_check"]):
        return False
    ends = [piece[frame + _HEAD : last] for _, _, _, _, frame, last, _ in places]
    if not _agree(map(check64, ends), closed["body_check"]):
        return False
    between = [
        piece[frame + _HEAD + len(tail) : start]
        for tail, (frame, _, start, _, _, _, _) in zip(tails, places, strict=True)
    ]
    between += [piece[stop:commit] for _, _, _, stop, commit, _, _ in places]
    between += [piece[last:end] for _, _, _, _, _, last, end in places]
    if b"".join(between).strip(b"\0"):
        return False
    if verify_after is None:
        return True
    payloads = [
        (piece[start:stop], tail[-8:])
        for tail, (_, _, start, stop, _, _, _), last in zip(
            tails, places, own["last"].tolist(), strict=True
        )
        if stop > start and last > verify_after
    ]
    stored = np.frombuffer(b"".join([check for _, check in payloads]), ">u8")
    return _agree((check64(payload) for payload, _ in payloads), stored)


def _agree(computed: Iterator[int], stored: npt.NDArray[np.uint64]) -> bool:
    return bool((np.fromiter(computed, np.uint64, len(stored)) == stored).all())


def commit_columns(bodies: Sequence[bytes], lsns: Sequence[int]) -> tuple[Any, ...] | None:
    """The fields of commit bodies as columns, or None where one is odd.

    *lsns* are those of the frames before them.
    """
    stored = _unpacked(bodies)
    if stored is None or {*map(type, stored)} != {list} or {*map(len, stored)} != {_COMMIT_FIELDS}:
        return None
    columns = tuple(zip(*stored, strict=True))
    parents, epochs, times, clocks, frames, digests, durable, extras, ids, merged = columns
    if (
        any({*map(type, columns[index])} != {int} for index in _INTS)
        or not {*map(type, digests)} == {*map(type, ids)} == {bytes}
        or {*map(type, extras)} != {dict}
        or {*map(type, merged)} != {list}
        or {*frames} != {1}
        or min(parents) < 0
        or not all(map(le, parents, lsns))
        or not _within(durable, 0, fmt.LSN_MAX)
        or not _within(epochs, 0, fmt.EPOCH_MAX)
        or not _within(times, fmt.TIME_MIN, fmt.TIME_MAX)
        or not _within(clocks, fmt.TIME_MIN, fmt.TIME_MAX)
        or not {*map(len, ids)} <= {0, fmt.DIGEST_SIZE}
    ):
        return None
    return columns


def _within(values: Sequence[int], low: int, high: int) -> bool:
    return low <= min(values) and max(values) <= high


def draft_columns(
    bodies: Sequence[bytes], sizes: Sequence[int]
) -> tuple[tuple[Any, ...], list[int]] | None:
    """The entries of keyed bodies as columns, and how many each has; None where one is odd.

    *sizes* are the bytes of their payloads.
    """
    stored = _unpacked(bodies)
    if stored is None or {*map(type, stored)} != {list} or min(map(len, stored)) < 2:
        return None
    lists = [fields[0] for fields in stored]
    if {*map(type, lists)} != {list}:
        return None
    counts = list(map(len, lists))
    drafts = list(chain.from_iterable(lists))
    if (
        not 0 < min(counts) <= max(counts) <= fmt.ENTRIES_MAX
        or {*map(type, drafts)} != {list}
        or {*map(len, drafts)} != {_DRAFT_FIELDS}
    ):
        return None
    columns = tuple(zip(*drafts, strict=True))
    if not are_sound(columns, fmt.PAYLOAD_BYTES_MAX):
        return None
    if not all(map(le, map(add, columns[3], columns[4]), repeated(sizes, counts))):
        return None
    return columns, counts


def repeated(values: Sequence[int], counts: Sequence[int]) -> Sequence[int]:
    """Each value as often as its count says."""
    if len(values) == sum(counts):
        return values  # none is 0
    found: list[int] = np.repeat(np.array(values, np.int64), counts).tolist()
    return found


def _unpacked(bodies: Sequence[bytes]) -> list[Any] | None:
    """Decode bodies, each exactly one value, or None.

    Maps whose keys are no text are odd here; the readers of single batches take them.
    """
    try:
        return list(map(msgpack.unpackb, bodies))
    except ODD:
        return None
