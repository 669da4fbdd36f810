"""Write one compacted segment in the place of several segments. FORMAT.md section 4.

The frames of a group are put in the order of their keys, so that the versions of one tensor lie
side by side. A frame of which everything stays is copied as it is, with its block checksums: what
was damaged stays damaged, and no payload is decoded. The file is written in ``pending/``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from mldb.arrays import Numbers
from mldb.compaction.folds import Anew
from mldb.compaction.frames import FrameCopy, KindOf, Recode, copy_frame
from mldb.compaction.table import VersionTable
from mldb.log import format as fmt
from mldb.log.blocks import payload_checks
from mldb.log.compacted import ROW_LSN, compacted_chain
from mldb.log.file_header import encode_file_header
from mldb.log.frame import Frame, check_body, decode_header, encode_head, make_entries
from mldb.log.fs.protocol import Buffer, File, FileSystem
from mldb.log.index.address import CommitRow, Entry
from mldb.log.index.columns import COMPACTED_COLUMNS, MetadataOf, build_columns, image_of
from mldb.log.index.footer import encode_index
from mldb.log.index.lineage import Jump
from mldb.log.lone import PENDING, discard
from mldb.log.manifest import SegmentInfo
from mldb.log.sealed import SealedPart

_WRITE_BYTES: Final = 8 << 20
_WRITE_PARTS: Final = 1 << 9

Pause: TypeAlias = "Callable[[int], None]"
"""Told how many bytes were just written: it may wait, or raise to give up."""


class Rewriting(NamedTuple):
    """What a rewrite needs of its store. *owner* prefixes the names of files in ``pending/``."""

    fs: FileSystem
    owner: str
    store_id: bytes
    metadata_of: MetadataOf | None
    kind_of: KindOf
    recode: Recode
    pause: Pause


class NewSegment(NamedTuple):
    """A compacted segment in ``pending/``, synced; ``header`` makes its file header.

    ``published`` is the manifest that its header names so far.
    """

    info: SegmentInfo
    name: str
    base_lsn: int
    created: int
    published: int
    recoded: int
    recoded_bytes: int

    def header(self, published: int) -> bytes:
        """The header of the file once manifest *published* makes it part of the store."""
        return encode_file_header(
            fmt.FILE_COMPACTED,
            self.info.origin,
            self.created,
            segment_id=self.info.id,
            base_lsn=self.base_lsn,
            published=published,
        )


@dataclass(slots=True)
class _Out:
    """What was put into the file so far."""

    file: File
    seed: int
    segment: bytes
    offset: int = fmt.FILE_HEADER_SIZE
    buffers: list[Buffer] = field(default_factory=list)
    waiting: int = 0
    heads: list[bytes] = field(default_factory=list)
    entries: dict[bytes, list[Entry]] = field(default_factory=dict)
    lsns: dict[tuple[bytes, int], int] = field(default_factory=dict)
    commits: list[CommitRow] = field(default_factory=list)

    def put(self, buffers: Sequence[Buffer], size: int) -> None:
        self.buffers += buffers
        self.offset += size
        self.waiting += size

    def write(self) -> int:
        """Write what waits; return how many bytes that were."""
        done = self.waiting
        if done:
            self.file.pwritev(self.buffers, self.offset - done)
            self.file.start_writeback(self.offset - done, done)
            self.buffers, self.waiting = [], 0
        return done


def write_group(
    how: Rewriting,
    table: VersionTable,
    parts: Sequence[SealedPart],
    start: int,
    rows: Numbers,
    anew: Mapping[int, Anew],
    jumps: Sequence[Jump],
    *,
    before: int,
    published: int,
) -> NewSegment:
    """Write the segment that takes the place of *parts*; *start* is the number of the first one.

    *rows* are those that stay, *anew* what of the whole table gets another form. *jumps* are those
    of the commits of these parts, *before* is the last commit in front of them, *published* the
    manifest that is probably next. Raises CorruptError, StorageFullError, StorageIOError,
    SegmentGoneError; then nothing is left.
    """
    segment_id, created = os.urandom(len(fmt.NO_ID)), how.fs.time_ns()
    name = f"{PENDING}/{how.owner}-{segment_id.hex()}.seg"
    file = how.fs.open(name, "create")
    try:
        out = _Out(file, fmt.file_seed(how.store_id, segment_id), segment_id)
        for part in parts:
            _put_unkeyed(out, part)
        recoded = recoded_bytes = 0
        for segment, offset, frame_rows in _frames_in_order(table, rows):
            part = parts[segment - start]
            found = copy_frame(
                part.segment, offset, table, frame_rows, anew, how.kind_of, how.recode
            )
            _put_keyed(out, found)
            recoded, recoded_bytes = recoded + found.recoded, recoded_bytes + found.recoded_bytes
            if out.waiting >= _WRITE_BYTES or len(out.buffers) >= _WRITE_PARTS:
                how.pause(out.write())
        info = _close(out, how, parts, jumps)
        made = NewSegment(info, name, before + 1, created, published, recoded, recoded_bytes)
        file.pwritev([made.header(published)], 0)
        file.sync()
    except BaseException:
        discard(how.fs, name)
        raise
    finally:
        file.close()
    return made


def _frames_in_order(table: VersionTable, rows: Numbers) -> Iterator[tuple[int, int, list[int]]]:
    """Yield segment, offset and rows of each frame, by its first key and then by commit."""
    if not len(rows):
        return
    segment, frame = table.segment[rows], table.frame[rows]
    order = np.lexsort((rows, frame, segment))  # rows ascend by key and commit
    changes = (np.diff(segment[order]) != 0) | (np.diff(frame[order]) != 0)
    starts = np.flatnonzero(np.append(True, changes))
    bounds = np.append(starts, len(order))
    firsts = rows[order[starts]]
    for place in np.argsort(firsts, kind="stable").tolist():
        own = rows[order[bounds[place] : bounds[place + 1]]].tolist()
        yield int(table.segment[own[0]]), int(table.frame[own[0]]), own


# --- frames ---------------------------------------------------------------------------------------


def _put_unkeyed(out: _Out, part: SealedPart) -> None:
    """Copy the frames of a segment that are not keyed, and note its commits with their places."""
    index, segment = part.own_index(), part.segment
    data = segment.view(part.info.length)
    batches = part.info.kind == fmt.FILE_SEGMENT
    for row in list(index.commits(1, fmt.LSN_MAX)):
        start = out.offset
        at = row.start
        while at < row.end:
            frame = decode_header(data, at, segment.seed, len(data))
            if not (batches and frame.header.flags & fmt.FLAG_KEYED):
                _put_as_it_is(out, data, frame)
            at = frame.end
        out.commits.append(row._replace(start=start, end=out.offset))


def _put_as_it_is(out: _Out, data: memoryview, frame: Frame) -> None:
    body = check_body(data, frame)
    header = frame.header
    payload = data[frame.payload_offset : frame.payload_offset + header.payload_length]
    checks = payload_checks(data, frame)
    _put(out, FrameCopy(header, header.kind, body, checks, [payload], header.payload_length))


def _put_keyed(out: _Out, found: FrameCopy) -> None:
    frame, payload = _put(out, found)
    lsn, commit = found.header.lsn, found.header.commit_lsn
    for key, entry in make_entries(found.drafts, commit, out.segment, frame, payload):
        out.entries.setdefault(key, []).append(entry)
        out.lsns[key, commit] = lsn


def _put(out: _Out, found: FrameCopy) -> tuple[int, int]:
    """Put a frame at the end; return the offsets of it and of its payload."""
    header, offset, length = found.header, out.offset, found.length
    head = encode_head(
        found.kind,
        header.body_version,
        header.flags,
        found.body,
        found.checks,
        length,
        header.block_log2,
        found.align_log2,
        header.lsn,
        header.commit_lsn,
        out.seed,
        offset,
    )
    out.heads.append(head[: fmt.FRAME_HEADER_SIZE])
    end = fmt.align_up(offset + len(head) + length, 3)
    padding = end - offset - len(head) - length
    out.put([head, *found.payload, *([bytes(padding)] if padding else [])], end - offset)
    payload = fmt.payload_offset(
        offset, len(found.body), length, header.block_log2, found.align_log2
    )
    return offset, payload


# --- the footer -----------------------------------------------------------------------------------


def _close(
    out: _Out, how: Rewriting, parts: Sequence[SealedPart], jumps: Sequence[Jump]
) -> SegmentInfo:
    """Write the footer, and describe the segment."""
    how.pause(out.write())
    for versions in out.entries.values():
        versions.sort(key=lambda entry: entry.commit_lsn)
    columns = build_columns(out.entries, out.commits, how.metadata_of)
    lsns = [
        out.lsns[key, entry.commit_lsn] for key in sorted(out.entries) for entry in out.entries[key]
    ]
    columns[ROW_LSN] = np.array(lsns, COMPACTED_COLUMNS[ROW_LSN])
    chain = compacted_chain(how.store_id, out.segment, out.heads)
    first, last = out.commits[0], out.commits[-1]
    fields = {
        "end": out.offset,
        "lsn": last.lsn,
        "chain": chain,
        "durable": last.lsn,
        "jumps": [list(jump) for jump in jumps],
    }
    start = out.offset
    footer = encode_index(image_of(columns), fields, last.lsn, out.seed, start)
    out.put(footer, sum(memoryview(part).nbytes for part in footer))
    out.write()
    return SegmentInfo(
        out.segment,
        fmt.FILE_COMPACTED,
        how.store_id,
        out.offset,
        "",
        start,
        first.lsn,
        last.lsn,
        first.epoch,
        last.epoch,
        chain,
    )
