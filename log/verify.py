"""Read and check every byte of a store. Changes nothing."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mldb.errors import MldbError, StorageIOError
from mldb.html import html_of, html_pairs, html_table
from mldb.log import format as fmt
from mldb.log.active import Active, chain_start
from mldb.log.blocks import Blocks, payload_checks
from mldb.log.compacted import check_compacted
from mldb.log.frame import DamagedFrame, check_body, decode_commit, decode_header
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.address import CommitRow
from mldb.log.index.mapped import MappedIndex
from mldb.log.log import Log
from mldb.log.manifest import load_manifest, manifest_name, manifest_numbers
from mldb.log.scan import Cursor
from mldb.log.scan_run import BatchRun, scan_runs
from mldb.log.sealed import SealedPart
from mldb.log.segment import Segment, SegmentGoneError
from mldb.log.verify_owners import unowned
from mldb.log.view import View
from mldb.printable import shown_bytes

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Problem:
    """One damage found. ``lsns`` are the commits it touches, when known."""

    file: str
    offset: int
    message: str
    lsns: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The outcome of a verification. ``ok`` when there is no problem."""

    segments: int = 0
    commits: int = 0
    bytes: int = 0
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every byte is as it was written."""
        return not self.problems

    def _repr_html_(self) -> str:
        """The form of notebooks: what was read, and the first problems."""
        return html_of(self, self._html)

    def _html(self) -> str:
        figures = html_pairs(
            {
                "segments": f"{self.segments:,}",
                "commits": f"{self.commits:,}",
                "bytes": shown_bytes(self.bytes),
                "problems": f"{len(self.problems):,}" if self.problems else "none",
            },
            caption="verification",
        )
        if self.ok:
            return figures
        return figures + html_table(
            ("file", "offset", "problem", "commits"),
            (
                (item.file, item.offset, item.message, ", ".join(map(str, item.lsns[:8])))
                for item in self.problems
            ),
            right=("offset",),
            rest=f"{len(self.problems):,} problems in all",
        )


@dataclass(slots=True)
class _Tally:
    commits: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)


def verify(log: Log, progress: Progress | None = None) -> VerifyReport:
    """Check every byte of every segment and every manifest, and report what is damaged.

    Covers headers, bodies, padding, payload blocks, digests, footers and indexes, and whether what
    has its bytes from another version finds it. *progress* is told the bytes checked and those
    there are, after each segment.
    """
    _, active, view = log.still()
    tally = _Tally()
    total = sum(part.info.length for part in view.sealed) + active.cursor.offset
    parts = list(view.sealed)
    known = {part.info.id for part in parts}

    def check(parts: Sequence[SealedPart]) -> None:
        for part in parts:
            known.add(part.info.id)
            gone = _check_sealed(part, tally)
            if gone is not None:
                newest = log.head()
                if part.info.id in newest.segments:
                    tally.problems.append(_problem(gone, part.segment.name))
                check([item for item in newest.sealed if item.info.id not in known])
            if progress is not None:
                progress(tally.bytes, total)

    check(parts)
    gone = _check_active(log.fs, active, view, tally)
    if gone is not None:
        newest = log.head()
        if active.id in newest.segments:
            tally.problems.append(_problem(gone, active.segment.name))
        check([item for item in newest.sealed if item.info.id not in known])
    _check_manifests(log.fs, tally)
    for found in unowned(log.head()):
        lsns = (found.entry.commit_lsn,)
        tally.problems.append(Problem(found.file, found.entry.frame, found.message, lsns))
    if progress is not None:
        progress(tally.bytes, total)
    return VerifyReport(len(view.sealed) + 1, tally.commits, tally.bytes, tuple(tally.problems))


def _check_manifests(fs: FileSystem, tally: _Tally) -> None:
    """Read every manifest again, also one that opening had to step over."""
    for number in manifest_numbers(fs.list("")):
        name = manifest_name(number)
        try:
            load_manifest(fs, number)
        except StorageIOError as error:
            if error.errno != errno.ENOENT:  # a writer replaced it meanwhile
                tally.problems.append(Problem(name, 0, str(error)))
        except MldbError as error:
            tally.problems.append(Problem(name, getattr(error, "offset", None) or 0, str(error)))


def _check_sealed(part: SealedPart, tally: _Tally) -> SegmentGoneError | None:
    """Check one sealed segment; returns the error when its file is not there."""
    info = part.info
    tally.bytes += info.length
    rows: list[CommitRow] = []
    try:
        data = part.segment.view(info.length)[: info.length]
        part.segment.check_file_header(bytes(data[: fmt.FILE_HEADER_SIZE]))
    except SegmentGoneError as error:
        return error
    except MldbError as error:
        tally.problems.append(_problem(error, part.segment.name))
        return None
    try:
        index = part.index
        if isinstance(index, MappedIndex):
            index.check()
        rows = list(index.commits(1, fmt.LSN_MAX))
        sound = True
    except MldbError as error:
        tally.problems.append(_problem(error, info.index_file or part.segment.name))
        sound = False  # the batches are checked all the same, up to the first that is damaged
    end = info.index_offset if not info.index_file else info.length
    if info.kind == fmt.FILE_COMPACTED:
        footer = part.index if sound else None
        mapped = footer if isinstance(footer, MappedIndex) else None
        for offset, message, lsn in check_compacted(part.segment, data[:end], mapped, info.chain):
            lsns = (lsn,) if any(row.lsn == lsn for row in rows) else ()
            tally.problems.append(Problem(part.segment.name, offset, message, lsns))
        tally.commits += len(rows)
    else:
        _check_batches(part.segment, data[:end], rows, tally)
    if sound and not info.index_file:
        _check_footer(part.segment, data, info.index_offset, tally)
    return None


def _problem(error: MldbError, name: str) -> Problem:
    """Describe damage by the file and the offset that its error names, if it names any."""
    file = getattr(error, "file", None) or name
    return Problem(file, getattr(error, "offset", None) or 0, str(error))


def _check_active(
    fs: FileSystem, active: Active, view: View, tally: _Tally
) -> StorageIOError | None:
    """Check the active segment through a file of its own: the handle may be closed meanwhile.

    Returns the error when its file is not there: it may have been sealed and compacted meanwhile.
    """
    end = active.cursor.offset
    tally.bytes += end
    rows = [row for part in reversed(active.parts()) for row in part.commits(1, view.commit.lsn)]
    try:
        file = fs.open(active.segment.name, "r")
        try:
            data = file.map(end)
        finally:
            file.close()
        active.segment.check_file_header(bytes(data[: fmt.FILE_HEADER_SIZE]))
    except MldbError as error:
        if isinstance(error, StorageIOError) and error.errno == errno.ENOENT:
            return error
        tally.problems.append(Problem(active.segment.name, 0, str(error)))
        return None
    _check_batches(active.segment, data, rows, tally)
    return None


def _check_batches(
    segment: Segment, data: memoryview, rows: list[CommitRow], tally: _Tally
) -> None:
    """Scan with full verification; after damage go on at the next commit that the index knows."""
    start = chain_start(segment.store_id, segment.id)
    cursor = Cursor(fmt.FILE_HEADER_SIZE, 0, start)
    known = {row.start: row for row in rows}
    found = 0
    while cursor.offset < len(data):
        for item in scan_runs(data, cursor, segment.seed, segment.id, verify_after=0):
            found += len(item.starts) if isinstance(item, BatchRun) else 1
        if cursor.offset >= len(data):
            break
        row = known.get(cursor.offset)
        lsns = () if row is None else (row.lsn,)
        tally.problems.append(Problem(segment.name, cursor.problem_offset, cursor.problem, lsns))
        following = next((item for item in rows if item.start > cursor.offset), None)
        if row is None or following is None:
            break
        found += 1
        cursor = Cursor(following.start, row.lsn, _chain_of(segment, data, row), problem="")
    tally.commits += found
    if found != len(rows) and not tally.problems:
        message = f"the index lists {len(rows)} commits, the segment holds {found}"
        tally.problems.append(Problem(segment.name, 0, message))


def _chain_of(segment: Segment, data: memoryview, row: CommitRow) -> bytes:
    """The digest stored in a commit whose batch is damaged; b"" when the commit frame is too."""
    try:
        frame = decode_header(data, row.end, segment.seed, len(data))
        return decode_commit(check_body(data, frame)).digest
    except DamagedFrame:
        return b""


def _check_footer(segment: Segment, data: memoryview, offset: int, tally: _Tally) -> None:
    try:
        frame = decode_header(data, offset, segment.seed, len(data))
        check_body(data, frame)
        blocks = Blocks(frame, payload_checks(data, frame), segment.name)
        blocks.touch(data, frame.payload_offset, frame.payload_offset + frame.header.payload_length)
        if frame.end != len(data):
            tally.problems.append(Problem(segment.name, frame.end, "bytes follow the footer"))
    except (DamagedFrame, MldbError) as error:
        tally.problems.append(Problem(segment.name, offset, f"the footer is damaged: {error}"))
