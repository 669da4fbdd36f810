"""What stands behind the valid part of a segment: proof that it was durable, and what is lost.

Any bytes may stand there, also megabytes of things that look like frames. So candidates are picked
from all multiples of 8 at once, in NumPy, by what a header of a commit or footer must say; only
they are hashed, and only those whose checksum fits are decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from mldb.deferred import dataclass
from mldb.log import format as fmt
from mldb.log.checksum import check64
from mldb.log.frame import DamagedFrame, Frame, check_body, decode_commit, decode_header, unpack

_WINDOW_BYTES: Final = 1 << 22
_TAILS_READ: Final = 4
_WORDS: Final = fmt.FRAME_HEADER_SIZE // 8
_MAGIC: Final = int.from_bytes(fmt.FRAME_MAGIC, "little")
_MASK: Final = (1 << 64) - 1
_WHAT: Final = {fmt.KIND_COMMIT: "a commit", fmt.KIND_INDEX: "a footer"}


@dataclass(frozen=True, slots=True)
class Tail:
    """What was found behind the valid part: commit frames, and the highest durable mark with it."""

    commits: int = 0
    durable: int = 0
    offset: int = 0
    """Where the frame with the highest durable mark stands."""
    what: str = ""


def survey(data: memoryview, start: int, seed: int) -> Tail:
    """Look at every intact commit and footer from *start* on, wherever it lies.

    Frame headers are believed by their checksum, which covers store, segment and offset. Frames do
    not overlap, so all heads together are no longer than the tail; of forged ones, which may, as
    many are read as make up four tails.
    """
    commits = 0
    best = Tail()
    left = _TAILS_READ * (len(data) - start)
    for frame in _frames(data, start, seed):
        head = frame.payload_offset - frame.offset
        if head > left:
            continue
        left -= head
        kind = frame.header.kind & ~fmt.MUST_UNDERSTAND
        commits += kind == fmt.KIND_COMMIT
        durable = _durable(data, frame, kind)
        if durable > best.durable:
            best = Tail(0, durable, frame.offset, _WHAT[kind])
    return Tail(commits, best.durable, best.offset, best.what)


def _durable(data: memoryview, frame: Frame, kind: int) -> int:
    """The durable mark that a commit or footer carries; 0 when it is damaged."""
    try:
        body = check_body(data, frame)
        if kind == fmt.KIND_COMMIT:
            return decode_commit(body).durable
        durable = unpack(body)["durable"]
        return durable if isinstance(durable, int) else 0
    except (DamagedFrame, ValueError, TypeError, KeyError):
        return 0


def _frames(data: memoryview, start: int, seed: int) -> Iterator[Frame]:
    for base in range(fmt.align_up(start, 3), len(data), _WINDOW_BYTES):
        stop = min(base + _WINDOW_BYTES + fmt.FRAME_HEADER_SIZE - 8, len(data)) & ~7
        words = np.frombuffer(data[base:stop], "<u8")
        for index in _candidates(words, len(data) - base):
            offset = base + 8 * index
            stored = int(words[index + _WORDS - 1])
            checked = data[offset : offset + fmt.FRAME_CHECKED_SIZE]
            if check64(checked, (seed + offset) & _MASK) != stored:
                continue
            try:
                yield decode_header(data, offset, seed, len(data))
            except DamagedFrame:
                continue


def _candidates(words: npt.NDArray[np.uint64], left: int) -> list[int]:
    """Where a header of a commit or footer may start, by its fields; *left* bytes are there."""
    count = len(words) - _WORDS + 1
    if count <= 0:
        return []
    first = words[:count]
    index = np.flatnonzero((first & np.uint64(0xFFFFFFFF)) == np.uint64(_MAGIC))
    kind = (first[index] >> np.uint64(32)) & np.uint64(0xFFFF & ~fmt.MUST_UNDERSTAND)
    lengths = words[index + 1]
    good = (
        ((kind == np.uint64(fmt.KIND_COMMIT)) | (kind == np.uint64(fmt.KIND_INDEX)))
        & ((lengths >> np.uint64(48)) == np.uint64(0))  # the reserved field
        & ((lengths & np.uint64(0xFFFFFFFF)) <= np.uint64(min(left, fmt.BODY_BYTES_MAX)))
        & (words[index + 2] <= np.uint64(left))  # the payload
    )
    found: list[int] = index[good].tolist()
    return found
