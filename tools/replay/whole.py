"""Replay without a filter: segments go over as they are, each frame checked, under new footers.

A commit keeps every byte: its LSN, epoch, time, id, and how its tensors are stored. Segments of
batches are scanned, block by block verified, copied up to the last commit wanted, and get a footer
made of what was scanned, so that nothing derived is taken over. A compacted segment holds no
batches; it is compared with its footer and copied with it. One that was compacted meanwhile, or
holds commits beyond the last one wanted, goes over commit by commit.
"""

from __future__ import annotations

from collections.abc import Callable

from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.compacted import check_compacted
from mldb.log.rebuild import StoreBuilder
from mldb.log.sealed import SealedPart
from mldb.log.segment import SegmentGoneError
from mldb.tools.replay.records import replay_commits
from mldb.tools.replay.source import ReplaySource

ReplayProgress = Callable[[int, int], None]


def replay_whole(
    source: ReplaySource, builder: StoreBuilder, until: int, advance: ReplayProgress
) -> None:
    """Write every commit up to *until* that *builder* has not yet. Raises CorruptError."""
    while builder.last_lsn < until:
        before = builder.last_lsn
        try:
            for part in source.view.between(before + 1, until):
                if part.info.last_lsn > builder.last_lsn:
                    _sealed(source, builder, part, until)
                    advance(builder.last_lsn, until)
            if builder.last_lsn < until:
                _active(source, builder, until)
                advance(builder.last_lsn, until)
        except SegmentGoneError:
            # Replaced by compaction since the view was taken; if not, it is lost.
            if source.newest() and builder.last_lsn == before and _is_named(source, before):
                raise
        else:
            source.newest()


def _is_named(source: ReplaySource, after: int) -> bool:
    """Whether the newest manifest still names a segment that is not there."""
    for part in source.view.between(after + 1, after + 1):
        return not source.fs.exists(part.segment.name)
    return False


def _sealed(source: ReplaySource, builder: StoreBuilder, part: SealedPart, until: int) -> None:
    info, segment = part.info, part.segment
    last = min(info.last_lsn, until)
    is_fresh = info.first_lsn > builder.last_lsn
    if info.kind == fmt.FILE_SEGMENT and is_fresh:
        builder.carry(segment, segment.view(info.length)[: info.length], last)
    elif info.kind == fmt.FILE_COMPACTED and is_fresh and last == info.last_lsn:
        _copy_compacted(source, builder, part)
    else:
        replay_commits(source, builder, last)


def _active(source: ReplaySource, builder: StoreBuilder, until: int) -> None:
    """Carry the segment that is appended to, or what is in another one by now."""
    _, active, view = source.log.still()
    source.view = view
    if view.between(builder.last_lsn + 1, until):
        return  # sealed meanwhile: it is carried as the others are
    end = active.cursor.offset
    rows = [row for part in reversed(active.parts()) for row in part.commits(1, 1 << 62)]
    if not rows or rows[0].lsn <= builder.last_lsn or rows[-1].lsn < until:
        replay_commits(source, builder, until)
        return
    file = source.fs.open(active.segment.name, "r")
    try:
        data = file.map(end)
    finally:
        file.close()
    builder.carry(active.segment, data, until)


def _copy_compacted(source: ReplaySource, builder: StoreBuilder, part: SealedPart) -> None:
    info, segment = part.info, part.segment
    data = segment.view(info.length)[: info.length]
    segment.check_file_header(bytes(data[: fmt.FILE_HEADER_SIZE]))
    index = part.own_index()
    index.check()
    for found in check_compacted(segment, data[: info.index_offset], index, info.chain):
        raise CorruptError(
            f"{found.message}. Nothing of the source was changed; mldb repair salvages what is "
            "readable.",
            file=segment.name,
            offset=found.offset,
        )
    jumps = source.jumps(info.first_lsn, info.last_lsn)
    builder.copy(info, data, jumps, index.commit_count())
