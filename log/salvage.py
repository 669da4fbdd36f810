"""Find what is whole in damaged segments, trusting neither manifest nor footer.

Every frame header is tied by its checksum to its store, its file and its offset. So a file can be
searched for frames: behind damage the next place is found at which a header checks out, and no
frame of another file, or copied into a payload, is ever taken for one of this. Of a frame whose
body is whole the names are known, and block by block which bytes of its payload are.

Opens files for reading alone. What is made of it is decided in ``mldb.tools.repair``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mldb.errors import MldbError
from mldb.log import format as fmt
from mldb.log.blocks import payload_checks
from mldb.log.checksum import check64
from mldb.log.file_header import decode_file_header
from mldb.log.frame import CommitBody, DamagedFrame, Frame, decode_commit, decode_header
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.address import CommitRow, Entry
from mldb.log.index.mapped import MappedIndex
from mldb.log.index.opened import open_index
from mldb.log.segment import Segment

_FIND_BYTES: Final = 1 << 20
_LOOKED_AT: Final = 64
"""Frames that are tried to find out whose file it is; the first that checks out decides."""


class FileDamage(NamedTuple):
    """Bytes that are not what was written; ``length`` is 0 where a file is missing or cut."""

    file: str
    offset: int
    length: int
    why: str


class Identity(NamedTuple):
    """Whose frames a file holds: what its frame headers are tied to, and its kind."""

    store_id: bytes
    segment_id: bytes
    kind: int


class FoundFrame(NamedTuple):
    """A frame whose header checks out. ``is_readable``: its body and block checksums, too.

    ``bad`` are the numbers of damaged blocks of its payload.
    """

    frame: Frame
    is_readable: bool
    bad: frozenset[int]

    @property
    def is_whole(self) -> bool:
        """Whether every byte of it is what was written."""
        return self.is_readable and not self.bad

    def has(self, offset: int, length: int) -> bool:
        """Whether these bytes of the payload are whole."""
        log2 = self.frame.header.block_log2
        if not self.bad or not length:
            return True
        return self.bad.isdisjoint(range(offset >> log2, ((offset + length - 1) >> log2) + 1))


@dataclass(slots=True)
class FoundCommit:
    """A commit as far as it was found. ``count`` is how many frames it had, None if not known."""

    lsn: int
    row: CommitRow | None = None
    body: CommitBody | None = None
    frames: list[FoundFrame] = field(default_factory=list)
    count: int | None = None
    stored: dict[bytes, Entry] | None = None
    """What an index says that it stored, None where no index says anything."""


@dataclass(slots=True)
class FoundFile:
    """A segment file and what was found in it. One thread; the mapping lives as long as this."""

    name: str
    identity: Identity
    data: memoryview
    published: int
    commits: dict[int, FoundCommit] = field(default_factory=dict)
    damage: list[FileDamage] = field(default_factory=list)
    index_offset: int | None = None
    has_index: bool = False


def salvage_file(
    fs: FileSystem, name: str, candidates: Sequence[Identity], indexes: Sequence[str] = ()
) -> FoundFile | None:
    """Search the file *name* for frames of one of the *candidates*, or of whom its header names.

    *indexes* are further files that may hold an index of it. None when it holds no frame of any
    candidate: it is foreign, or nothing is left. Raises StorageIOError, FormatVersionError.
    """
    file = fs.open(name, "r")
    try:
        data = file.map(file.size())
    finally:
        file.close()
    published, named = _header_of(data, name)
    if named is not None and any(named.store_id == each.store_id for each in candidates):
        candidates = [named, *candidates]
    identity = next((each for each in candidates if _has_frames(data, each)), None)
    if identity is None:
        if named not in candidates:
            return None
        identity = named  # it holds nothing, and nobody else's
    assert identity is not None
    found = FoundFile(name, identity, data, published)
    if named != identity:
        found.damage.append(FileDamage(name, 0, fmt.FILE_HEADER_SIZE, "the file header is damaged"))
    _collect(found)
    _read_indexes(fs, found, indexes)
    return found


def _header_of(data: memoryview, name: str) -> tuple[int, Identity | None]:
    try:
        header = decode_file_header(bytes(data[: fmt.FILE_HEADER_SIZE]), name)
    except (DamagedFrame, MldbError):
        return 0, None
    return header.published, Identity(header.store_id, header.segment_id, header.kind)


def _has_frames(data: memoryview, identity: Identity) -> bool:
    seed = fmt.file_seed(identity.store_id, identity.segment_id)
    if len(data) <= fmt.FILE_HEADER_SIZE:
        return False
    return next(_headers(data, fmt.FILE_HEADER_SIZE, seed, _LOOKED_AT), None) is not None


# --- frames ---------------------------------------------------------------------------------------


def _headers(data: memoryview, start: int, seed: int, tries: int = -1) -> Iterator[Frame]:
    """Yield the frames at or behind *start* whose header checks out, wherever they begin.

    A frame that would end behind the file is one all the same: the file was cut.
    """
    at = start
    while True:
        at = _find(data, at)
        if at < 0 or tries == 0:
            return
        tries -= 1
        frame = _frame_at(data, at, seed)
        if frame is not None:
            yield frame
        at += fmt.FRAME_ALIGN


def _find(data: memoryview, start: int) -> int:
    """The next place of a frame's magic at a multiple of 8, -1 for none."""
    step = _FIND_BYTES
    magic = fmt.FRAME_MAGIC
    while start < len(data):
        piece = bytes(data[start : start + step + len(magic)])
        at = piece.find(magic)
        while at >= 0 and (start + at) % fmt.FRAME_ALIGN:
            at = piece.find(magic, at + 1)
        if at >= 0:
            return start + at
        start += step
    return -1


def _frame_at(data: memoryview, at: int, seed: int) -> Frame | None:
    if at + fmt.FRAME_HEADER_SIZE > len(data):
        return None
    try:
        return decode_header(data, at, seed, fmt.PAYLOAD_BYTES_MAX)
    except DamagedFrame:
        return None


def _collect(found: FoundFile) -> None:
    """Go through the file from frame to frame; behind damage, to the next that can be found."""
    data, identity = found.data, found.identity
    seed = fmt.file_seed(identity.store_id, identity.segment_id)
    at = fmt.FILE_HEADER_SIZE
    while at < len(data):
        frame = _frame_at(data, at, seed)
        if frame is None:
            following = next(_headers(data, at + fmt.FRAME_ALIGN, seed), None)
            end = len(data) if following is None else following.offset
            why = _of_tail(data, at) if following is None else "no frame can be made out here"
            found.damage.append(FileDamage(found.name, at, end - at, why))
            at = end
            continue
        if frame.end > len(data):
            why = f"the file ends at {len(data)}, a frame at {frame.end}: it was cut, or torn"
            found.damage.append(FileDamage(found.name, at, len(data) - at, why))
            inside = next(_headers(data, at + fmt.FRAME_ALIGN, seed), None)
            if inside is None:
                readable = body_of(data, frame) is not None
                _note(found, FoundFrame(frame, readable, _all_blocks(frame)))
                return
            at = inside.offset
            continue
        kind = frame.header.kind & ~fmt.MUST_UNDERSTAND
        if kind == fmt.KIND_INDEX:
            found.index_offset = at
        else:
            _note(found, _checked(found, frame))
        at = frame.end


def _of_tail(data: memoryview, at: int) -> str:
    rest = bytes(data[at : at + fmt.FRAME_HEADER_SIZE])
    return "zeros behind the last frame" if not any(rest) else "no frame follows"


def _all_blocks(frame: Frame) -> frozenset[int]:
    header = frame.header
    return frozenset(range(fmt.block_count(header.payload_length, header.block_log2)))


def body_of(data: memoryview, frame: Frame) -> bytes | None:
    """The body of a frame, None when it or the block checksums are damaged."""
    header = frame.header
    count = fmt.block_count(header.payload_length, header.block_log2)
    end = frame.checks_offset + 8 * count
    if end > len(data):
        return None
    tail = bytes(data[frame.body_offset : end])
    return tail[: header.body_length] if check64(tail) == header.body_check else None


def _checked(found: FoundFile, frame: Frame) -> FoundFrame:
    """Check body and payload of a frame, and note what is damaged."""
    data, name = found.data, found.name
    if body_of(data, frame) is None:
        found.damage.append(
            FileDamage(name, frame.offset, frame.end - frame.offset, "the body is damaged")
        )
        return FoundFrame(frame, False, frozenset())
    checks = payload_checks(data, frame)
    size = 1 << frame.header.block_log2
    stop = frame.payload_offset + frame.header.payload_length
    bad = []
    for number in range(len(checks) // 8):
        low = frame.payload_offset + number * size
        stored = int.from_bytes(checks[8 * number : 8 * number + 8], "big")
        if check64(data[low : min(low + size, stop)]) != stored:
            bad.append(number)
            count = min(size, stop - low)
            found.damage.append(FileDamage(name, low, count, "a block of a payload is damaged"))
    return FoundFrame(frame, True, frozenset(bad))


def _note(found: FoundFile, frame: FoundFrame) -> None:
    """Put a frame to its commit."""
    header = frame.frame.header
    commit = found.commits.setdefault(header.commit_lsn, FoundCommit(header.commit_lsn))
    if header.kind & ~fmt.MUST_UNDERSTAND != fmt.KIND_COMMIT:
        commit.frames.append(frame)
        return
    content = body_of(found.data, frame.frame)
    if content is None:
        return
    try:
        body = decode_commit(content)
    except DamagedFrame as error:
        found.damage.append(FileDamage(found.name, frame.frame.offset, 0, str(error)))
        return
    commit.body, commit.count = body, body.frames
    fields = (body.parent, body.epoch, body.time, body.clock)
    commit.row = CommitRow(header.lsn, *fields, 0, frame.frame.offset, body.id)


# --- indexes --------------------------------------------------------------------------------------


def _read_indexes(fs: FileSystem, found: FoundFile, names: Sequence[str]) -> None:
    """Learn from whatever index of the file is sound which commits and names there were."""
    store_id, segment_id, kind = found.identity
    places = [] if found.index_offset is None else [(found.name, found.index_offset)]
    places += [(name, fmt.FILE_HEADER_SIZE) for name in names if fs.exists(name)]
    for name, offset in places:
        kinds = (kind, fmt.FILE_INDEX, fmt.FILE_HINT)
        source = Segment(fs, segment_id, store_id, 0, name, kinds)
        source.header_checked = True  # it may be damaged, and the frame is tied to the file
        try:
            source.map_whole()
            index, _ = open_index(source, offset, "first")
        except MldbError as error:
            found.damage.append(FileDamage(name, offset, 0, f"the index is damaged: {error}"))
            continue
        _learn(found, index, name, offset)


def _learn(found: FoundFile, index: MappedIndex, name: str, offset: int) -> None:
    try:
        rows = list(index.commits(1, fmt.LSN_MAX))
    except MldbError as error:
        found.damage.append(FileDamage(name, offset, 0, f"the index is damaged: {error}"))
        return
    for row in rows:
        commit = found.commits.setdefault(row.lsn, FoundCommit(row.lsn))
        commit.row = commit.row or row
    try:
        entries, _ = index.dump()
    except MldbError as error:
        found.damage.append(FileDamage(name, offset, 0, f"the index is damaged: {error}"))
        return
    found.has_index = True
    for row in rows:
        commit = found.commits[row.lsn]
        commit.stored = commit.stored or {}
    for key, versions in entries.items():
        for entry in versions:
            of = found.commits.get(entry.commit_lsn)
            if of is not None and of.stored is not None:
                of.stored[key] = entry
