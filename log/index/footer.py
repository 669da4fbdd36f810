"""Build the index frame of a segment: the footer of a sealed one, a side index, or a hint."""

from __future__ import annotations

from collections.abc import Sequence

from mldb.log import format as fmt
from mldb.log.active import Active
from mldb.log.checksum import checks_and_digest
from mldb.log.frame import encode_head, pack
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import CommitRow, Entry
from mldb.log.index.columns import MetadataOf, build_index
from mldb.log.index.memory import IndexPart
from mldb.log.index.pause import collection_paused
from mldb.log.manifest import SegmentInfo


def index_frame(
    active: Active, last_lsn: int, durable: int, offset: int, metadata_of: MetadataOf | None
) -> list[Buffer]:
    """Return the buffers of an index frame for file offset *offset*, over commits <= *last_lsn*.

    *durable* is the last commit known to be durable. *active* is that of the commit lock's owner,
    or a copy (``Log.still``) whose cursor and jumps nobody changes.
    """
    entries: dict[bytes, list[Entry]] = {}
    commits: list[CommitRow] = []
    for part in reversed(active.parts()):
        some, rows = part.dump()
        for key, versions in some.items():
            kept = [entry for entry in versions if entry.commit_lsn <= last_lsn]
            if kept:
                entries.setdefault(key, []).extend(kept)
        commits.extend(row for row in rows if row.lsn <= last_lsn)
    with collection_paused():
        image = build_index(entries, commits, metadata_of)
    body = pack(
        {
            "columns": image.directory,
            "end": active.cursor.offset,
            "lsn": last_lsn,
            "chain": active.cursor.chain,
            "durable": durable,
            "jumps": [jump for jump in active.jumps if jump[0] <= last_lsn],
        }
    )
    checks, _ = checks_and_digest(image.payload, fmt.INDEX_BLOCK_LOG2)
    head = encode_head(
        fmt.KIND_INDEX | fmt.MUST_UNDERSTAND,
        1,
        0,
        body,
        checks,
        image.length,
        fmt.INDEX_BLOCK_LOG2,
        fmt.payload_align_log2(image.length),
        last_lsn,
        last_lsn,
        active.segment.seed,
        offset,
    )
    return [head, *image.payload, bytes(-image.length % fmt.FRAME_ALIGN)]


def describe(
    active: Active, last_lsn: int, length: int, index_file: str, index_offset: int
) -> SegmentInfo:
    """Describe the active segment, up to *last_lsn*, as a sealed one."""
    rows = [row for part in reversed(active.parts()) for row in _ends(part, last_lsn)]
    first, last = (rows[0], rows[-1]) if rows else (None, None)
    return SegmentInfo(
        active.id,
        fmt.FILE_SEGMENT,
        active.segment.store_id,
        length,
        index_file,
        index_offset,
        first.lsn if first else 0,
        last.lsn if last else 0,
        first.epoch if first else 0,
        last.epoch if last else 0,
        active.cursor.chain,
    )


def _ends(part: IndexPart, last_lsn: int) -> Sequence[CommitRow]:
    """The first and last commit of an index part up to *last_lsn*; it may have grown since."""
    if not part.last_lsn:
        return ()
    ends = part.first_lsn, min(part.last_lsn, last_lsn)
    return [row for lsn in ends if (row := part.commit_at(lsn)) is not None and lsn <= last_lsn]
