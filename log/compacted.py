"""Compacted segments: frames by name and LSN without batches. FORMAT.md section 4.

They are written by ``mldb.compaction.rewrite``. What reads versions needs to know nothing of this:
a footer says where they lie. Here is what does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from mldb.errors import CorruptError, MldbError
from mldb.log import format as fmt
from mldb.log.active import chain_start
from mldb.log.blocks import Blocks, payload_checks
from mldb.log.checksum import digest128
from mldb.log.frame import DamagedFrame, Frame, check_body, decode_header
from mldb.log.index.address import Entry
from mldb.log.index.mapped import MappedIndex
from mldb.log.scan import frame_entries
from mldb.log.segment import Segment

ROW_LSN: Final = "row_lsn"


class FramesOfCommits:
    """Where the keyed frames of each commit lie in a compacted segment. Immutable; any thread.

    Made of two columns of its footer, in O(versions log versions).
    """

    __slots__ = ("_commits", "_frames")

    def __init__(self, index: MappedIndex) -> None:
        commits, frames = index.reader.whole("row_commit"), index.reader.whole("row_frame")
        order = np.lexsort((frames, commits))
        commits, frames = commits[order], frames[order]
        first = np.ones(len(order), np.bool_)
        first[1:] = (frames[1:] != frames[:-1]) | (commits[1:] != commits[:-1])
        self._commits, self._frames = commits[first], frames[first]

    def of(self, lsn: int) -> list[int]:
        """Return the offsets of the frames that commit *lsn* has here."""
        low, high = np.searchsorted(self._commits, np.array([lsn, lsn + 1], np.uint64))
        offsets: list[int] = self._frames[low:high].tolist()
        return offsets


def entries_of(index: MappedIndex) -> dict[tuple[bytes, int], Entry]:
    """Return every version of an index by key and commit, in the order of its rows.

    Column by column, some 0.5 KB each. Raises CorruptError when keys and rows do not fit.
    """
    entries, _ = index.dump()
    return {(key, entry.commit_lsn): entry for key, own in entries.items() for entry in own}


def compacted_chain(store_id: bytes, segment_id: bytes, heads: Sequence[bytes]) -> bytes:
    """The digest of a compacted segment: of the 56-byte headers of its frames, as they stand."""
    return digest128(b"".join((chain_start(store_id, segment_id), *heads)))


class Damage(NamedTuple):
    """What is wrong with a compacted segment, and where."""

    offset: int
    message: str
    lsn: int


def check_compacted(
    segment: Segment,
    data: memoryview,
    index: MappedIndex | None,
    chain: bytes,
    stored: Mapping[tuple[bytes, int], Entry] | None = None,
) -> Iterator[Damage]:
    """Yield what is damaged in a compacted segment; *data* ends where its footer starts.

    Every frame is read, every block, and compared with the *index*, where that is sound; *stored*
    is what :func:`entries_of` says of it, for who has that already. Behind a damaged frame it goes
    on at the next one that the index knows.
    """
    known = np.zeros(0, "<u8") if index is None else np.unique(index.reader.whole("row_frame"))
    if stored is None and index is not None:
        stored = entries_of(index)
    offset, rows, sound = fmt.FILE_HEADER_SIZE, 0, True
    heads: list[bytes] = []
    while offset < len(data):
        try:
            frame, count = _check_frame(segment, data, offset, index, stored)
        except (DamagedFrame, MldbError) as error:
            sound = False
            yield Damage(
                getattr(error, "offset", None) or offset, str(error), _lsn_at(data, offset)
            )
            later = known[known > offset]
            if not len(later):
                return
            offset = int(later[0])
            continue
        heads.append(bytes(data[offset : offset + fmt.FRAME_HEADER_SIZE]))
        rows += count
        offset = frame.end
    if not sound or index is None:
        return
    if rows != index.entry_count():
        yield Damage(0, f"the index lists {index.entry_count()} versions, frames hold {rows}", 0)
    if compacted_chain(segment.store_id, segment.id, heads) != chain:
        yield Damage(0, "the frames have another digest than the manifest names", 0)


def _check_frame(
    segment: Segment,
    data: memoryview,
    offset: int,
    index: MappedIndex | None,
    stored: Mapping[tuple[bytes, int], Entry] | None,
) -> tuple[Frame, int]:
    """Check one frame and its payload; return it and how many versions it holds."""
    frame = decode_header(data, offset, segment.seed, len(data))
    body = check_body(data, frame)
    length = frame.header.payload_length
    blocks = Blocks(frame, payload_checks(data, frame), segment.name)
    blocks.touch(data, frame.payload_offset, frame.payload_offset + length)
    commit = frame.header.commit_lsn
    entries = frame_entries(frame, body, commit, segment.id)
    for key, entry in entries:
        if stored is not None and stored.get((key, commit)) != entry:
            raise CorruptError(
                f"the index says something else of {key!r:.80} at commit {commit}",
                file=segment.name,
                offset=offset,
            )
    if index is not None and not entries:
        row = index.commit_at(commit)
        if row is None or not row.start <= offset < row.end:
            raise DamagedFrame(f"the index does not know this frame of commit {commit}")
    return frame, len(entries)


def _lsn_at(data: memoryview, offset: int) -> int:
    """The commit that a damaged frame says it belongs to, as far as that can be told."""
    found = bytes(data[offset + 32 : offset + 40])
    return int.from_bytes(found, "little")
