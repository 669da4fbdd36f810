"""Build the index frame of a segment: the footer of a sealed one, a side index, or a hint."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from operator import is_
from typing import Final

from mldb.log import format as fmt
from mldb.log.active import Active
from mldb.log.checksum import checks_and_digest
from mldb.log.frame import encode_head, pack
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import CommitRow, Entry
from mldb.log.index.columns import IndexImage, MetadataOf, build_columns, build_steps, image_of
from mldb.log.index.memory import IndexPart, MemoryIndex
from mldb.log.index.merge import Columns, UnmergeableError, merge_steps
from mldb.log.index.pause import collection_paused
from mldb.log.index.steps import Column, Steps, finish
from mldb.log.manifest import SegmentInfo

_NO_TAILS: Final[Columns] = {}
_PIECES_MAX: Final = 16  # each is merged with all before it


def index_frame(
    active: Active, last_lsn: int, durable: int, offset: int, metadata_of: MetadataOf | None
) -> list[Buffer]:
    """Return the buffers of an index frame for file offset *offset*, over commits <= *last_lsn*.

    *durable* is the last commit known to be durable. *active* is that of the commit lock's owner,
    or a copy (``Log.still``) whose cursor and jumps nobody changes. What is saved or merged already
    costs NumPy's time, the rest a step of Python for each version.
    """
    tails: dict[str, Column] = {}
    with collection_paused():
        columns = finish(column_steps(active, last_lsn, metadata_of, rows=0, tails=tails))
    return frame_of(active, columns, last_lsn, durable, offset, tails)


def column_steps(
    active: Active,
    last_lsn: int,
    metadata_of: MetadataOf | None,
    *,
    rows: int,
    tails: dict[str, Column] | None = None,
) -> Steps:
    """Make the columns of all commits <= *last_lsn*, in steps of *rows* versions; 0 is all at once.

    With *tails* the end of some is put there, as ``merge_steps`` says. Raises CorruptError when
    what is mapped contradicts itself; in steps, UnmergeableError, too.
    """
    parts = list(reversed(active.parts()))
    merged, hinted = active.merged, active.hinted
    older: Columns | None = None
    if merged is not None and _ends_with(active.frozen, merged[0], last_lsn):
        older = merged[1]
        parts = parts[len(merged[0]) + (hinted is not None) :]
    elif hinted is not None and hinted.last_lsn <= last_lsn:
        older = hinted.columns()
        parts = parts[1:]
    try:
        if rows and len(parts) == 2 and not active.memory.last_lsn:
            some = parts[0].dump()  # one frozen part, which nobody adds to
        else:
            some = _collected(parts, last_lsn)
        newer = yield from _built(*some, metadata_of, rows)
        if older is None:
            return newer
        return (yield from merge_steps(older, newer, tails))
    except UnmergeableError:
        if rows:
            raise
        if tails:
            tails.clear()
        entries, commits = _collected(list(reversed(active.parts())), last_lsn)
        return build_columns(entries, commits, metadata_of)


def _ends_with(frozen: tuple[MemoryIndex, ...], merged: tuple[MemoryIndex, ...], last: int) -> bool:
    """Whether the oldest frozen parts are those that were merged, with no commit above *last*."""
    tail = frozen[len(frozen) - len(merged) :] if merged else ()
    same = len(tail) == len(merged) and all(map(is_, tail, merged))
    return same and bool(merged) and merged[0].last_lsn <= last


def _collected(
    parts: Sequence[IndexPart], last_lsn: int
) -> tuple[dict[bytes, list[Entry]], list[CommitRow]]:
    """The versions and commits <= *last_lsn* of these parts, oldest first."""
    entries: dict[bytes, list[Entry]] = {}
    commits: list[CommitRow] = []
    for part in parts:
        some, rows = part.dump()
        for key, versions in some.items():
            kept = versions[:]  # a copy, since the newest part may grow meanwhile
            if kept[-1].commit_lsn > last_lsn:
                kept = [entry for entry in kept if entry.commit_lsn <= last_lsn]
            if kept:
                entries.setdefault(key, []).extend(kept)
        commits.extend(row for row in rows if row.lsn <= last_lsn)
    return entries, commits


def _built(
    entries: dict[bytes, list[Entry]],
    commits: list[CommitRow],
    metadata_of: MetadataOf | None,
    rows: int,
) -> Steps:
    """Build columns *rows* versions at a time: the versions ascend by key, then by commit."""
    if not rows:
        return build_columns(entries, commits, metadata_of)
    yield
    columns: dict[str, Column] | None = None
    for piece in _pieces(entries, rows):
        built = yield from build_steps(piece, () if columns else commits, metadata_of)
        columns = built if columns is None else (yield from merge_steps(columns, built))
    return columns or build_columns({}, commits, metadata_of)


def _pieces(
    entries: dict[bytes, list[Entry]], rows: int
) -> Iterator[Mapping[bytes, Sequence[Entry]]]:
    """Split versions, ascending by key and then by commit, into pieces of so many; few pieces."""
    keys = sorted(entries)
    versions = list(map(entries.__getitem__, keys))
    ends = list(accumulate(map(len, versions)))
    total = ends[-1] if ends else 0
    if total <= rows:
        yield entries
        return
    rows = max(rows, total // _PIECES_MAX)
    for low in range(0, total, rows):
        high = min(low + rows, total)
        first, last = bisect_right(ends, low), bisect_left(ends, high)
        piece = dict(zip(keys[first : last + 1], versions[first : last + 1], strict=True))
        if high < ends[last]:
            piece[keys[last]] = versions[last][: high - ends[last]]
        begin = ends[first] - len(versions[first])
        if begin < low:
            piece[keys[first]] = piece[keys[first]][low - begin :]
        yield piece


def frame_of(
    active: Active,
    columns: Columns,
    last_lsn: int,
    durable: int,
    offset: int,
    tails: Columns = _NO_TAILS,
) -> list[Buffer]:
    """Return the buffers of the index frame with these columns; see :func:`index_frame`."""
    fields = {
        "end": active.cursor.offset,
        "lsn": last_lsn,
        "chain": active.cursor.chain,
        "durable": durable,
        "jumps": [jump for jump in active.jumps if jump[0] <= last_lsn],
    }
    return encode_index(image_of(columns, tails), fields, last_lsn, active.segment.seed, offset)


def encode_index(
    image: IndexImage, fields: Mapping[str, object], last_lsn: int, seed: int, offset: int
) -> list[Buffer]:
    """Return the buffers of an index frame for file offset *offset*; *fields* join the columns."""
    body = pack({"columns": image.directory, **fields})
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
        seed,
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
