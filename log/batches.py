"""The one iterator over the batches of the log, whatever kind of segment they lie in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from mldb.log import format as fmt
from mldb.log.compacted import FramesOfCommits
from mldb.log.frame import Frame
from mldb.log.index.address import CommitRow
from mldb.log.segment import Segment, SegmentGoneError
from mldb.log.view import View


class StoredBatch(NamedTuple):
    """One commit with its checked frames and their bodies, and the file that holds them."""

    row: CommitRow
    frames: list[tuple[Frame, bytes]]
    file: str


def read_batches(
    view: View, head: Callable[[], View], low: int, high: int
) -> Iterator[StoredBatch]:
    """Yield every commit with low <= LSN <= high and its frames, in log order, all lineages.

    Of a compacted segment they are the frames that are left of each commit: all of a commit that
    retention left, perhaps none of another. *head* returns the newest view. Raises CorruptError.
    """
    known: tuple[bytes, FramesOfCommits | None] = (b"", None)  # of the segment asked last
    for segment_id, row in view.commits(low, high):
        try:
            if known[0] != segment_id:
                known = segment_id, _frames_of(segment_id, row, view, head)
            segment = view.segments.get(segment_id) or head().segments[segment_id]
            batch = _batch_of(segment, row, known[1])
        except (SegmentGoneError, KeyError):
            newest = head()
            [(now, row)] = newest.commits(row.lsn, row.lsn)
            if now == segment_id:
                raise  # the manifest still names the file, so it is lost
            batch = _batch_of(newest.segments[now], row, _frames_of(now, row, newest, head))
        yield batch


def _frames_of(
    segment_id: bytes, row: CommitRow, view: View, head: Callable[[], View]
) -> FramesOfCommits | None:
    """Where the frames of commits lie in a compacted segment; None for one of batches."""
    for each in (view, head()) if segment_id not in view.segments else (view,):
        for part in each.between(row.lsn, row.lsn):
            if part.info.id == segment_id and part.info.kind == fmt.FILE_COMPACTED:
                return FramesOfCommits(part.own_index())
    return None


def _batch_of(segment: Segment, row: CommitRow, places: FramesOfCommits | None) -> StoredBatch:
    frames = list(_run(segment, row.start, row.end))
    if places is not None:
        frames += map(segment.frame, places.of(row.lsn))
        frames.sort(key=lambda item: item[0].header.lsn)
    return StoredBatch(row, frames, segment.name)


def _run(segment: Segment, start: int, stop: int) -> Iterator[tuple[Frame, bytes]]:
    """The frames that follow each other from one offset to another."""
    while start < stop:
        frame, body = segment.frame(start)
        yield frame, body
        start = frame.end
