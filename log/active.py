"""The active segment: the file that is appended to, and how it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mldb.deferred import dataclass
from mldb.errors import CorruptError, MldbError
from mldb.log import format as fmt
from mldb.log.checksum import digest128
from mldb.log.file_header import decode_file_header
from mldb.log.frame import DamagedFrame, check_body, decode_commit, decode_header
from mldb.log.fs.protocol import File, FileSystem
from mldb.log.index.address import CommitRow
from mldb.log.index.lineage import Jump, checked_jumps
from mldb.log.index.memory import IndexPart, MemoryIndex
from mldb.log.manifest import Manifest, Mark
from mldb.log.scan import Cursor
from mldb.log.segment import Segment
from mldb.options import Verify

if TYPE_CHECKING:
    from mldb.log.index.mapped import MappedIndex
    from mldb.log.index.merge import Columns

HINTS = "hints"
HALF_DONE = -2
"""``Active.seen`` while what is known of the log changes. What stays in it was interrupted."""
_COMMIT_BYTES_MAX = 1 << 16  # a commit frame is far smaller


def hint_name(segment_id: bytes) -> str:
    """The hint of an active segment."""
    return f"{HINTS}/{fmt.id_text(segment_id)}.idx"


@dataclass(slots=True)
class Active:
    """The segment that is appended to. Changed only while ``LogState.mutex`` is held."""

    segment: Segment
    file: File
    cursor: Cursor
    memory: MemoryIndex
    hinted: MappedIndex | None
    jumps: list[Jump]
    seen: int = -1
    """File length at the last look; a longer file has something new."""
    count: int = 0
    """Versions in this segment."""
    verify_after: int = 0
    """The LSN above which payloads are verified when they are scanned."""
    verify_until: int = 0
    """The offset from which they no longer are: what was appended since this process looked."""
    stop_lsn: int = 0
    """Below it, *stop_offset* and *stop_count* a batch needs no look at the manifest or options.

    Granted by the sequencer under one manifest, taken back when that changes.
    """
    stop_offset: int = 0
    stop_count: int = 0
    frozen: tuple[MemoryIndex, ...] = ()
    """Parts that get nothing more, newest first: on their way into a hint (mldb.log.saving)."""
    settled: int = 0
    """Versions in *frozen* and *hinted*."""
    merged: tuple[tuple[MemoryIndex, ...], Columns] | None = None
    """Some *frozen* and *hinted* as the columns of one index, while that is being saved."""

    @property
    def id(self) -> bytes:
        """The id of the segment."""
        return self.segment.id

    def parts(self) -> tuple[IndexPart, ...]:
        """Index parts, newest first."""
        hinted = () if self.hinted is None else (self.hinted,)
        return (self.memory, *self.frozen, *hinted)

    def freeze(self) -> None:
        """Let what comes from now on go to a new part. Only while the commit lock is held."""
        self.frozen = (self.memory, *self.frozen)
        self.memory = MemoryIndex()
        self.settled = self.count
        self.merged = None

    def start_from(self, index: MappedIndex) -> None:
        """Let *index* stand for the hint before and all that is frozen; as :meth:`freeze`."""
        self.hinted, self.frozen, self.merged = index, (), None

    def has_commits(self) -> bool:
        """Whether any batch is in this segment."""
        return any(part.last_lsn for part in self.parts())


def chain_start(store_id: bytes, segment_id: bytes) -> bytes:
    """The digest that the first batch of a segment continues from."""
    return digest128(store_id + segment_id)


def open_active(
    fs: FileSystem, manifest: Manifest, *, writable: bool, verify: Verify, distrusted: list[str]
) -> Active:
    """Open the active segment of *manifest*, from its hint when that fits; nothing is scanned yet.

    Raises CorruptError when the file is missing, another one, or shorter than what was durable.
    """
    segment_id = manifest.active
    text = fmt.id_text(segment_id)
    segment = Segment(fs, segment_id, manifest.active_origin, fmt.FILE_HEADER_SIZE, grows=True)
    file = segment.open_file("rw" if writable else "r")
    try:
        header = decode_file_header(file.pread(fmt.FILE_HEADER_SIZE, 0), segment.name)
    except DamagedFrame as error:
        file.close()
        raise CorruptError(
            f"the header of the active segment is damaged: {error}. Sealed segments are "
            "untouched; restore this file from a backup.",
            file=segment.name,
            offset=0,
        ) from None
    found = (header.kind, header.store_id, header.segment_id)
    if found != (fmt.FILE_SEGMENT, manifest.active_origin, segment_id):
        file.close()
        kind = fmt.FILE_KINDS.get(header.kind, "unknown file")
        raise CorruptError(
            f"this is {kind} {fmt.id_text(header.segment_id)} of store {header.store_id.hex()}, "
            f"expected segment {text} of store {manifest.active_origin.hex()}: files were swapped. "
            "Nothing was changed.",
            file=segment.name,
            offset=0,
        )
    segment.header_checked = True
    size = file.size()
    mark = manifest.mark
    if mark.segment == segment_id and size < mark.offset:
        file.close()
        raise CorruptError(
            f"the active segment is {size} bytes long, but {mark.offset} bytes (up to commit "
            f"{mark.lsn}) were durable: it was cut. Restore it from a backup; nothing was changed.",
            file=segment.name,
            offset=size,
        )
    first = max(header.base_lsn - 1, 0)
    cursor = Cursor(fmt.FILE_HEADER_SIZE, first, chain_start(header.store_id, segment_id))
    active = Active(segment, file, cursor, MemoryIndex(), None, [], verify_until=size)
    if mark.segment == segment_id:
        cursor.durable = active.verify_after = mark.lsn
        _try_hint(fs, active, mark, size, verify, distrusted)
    return active


def _try_hint(
    fs: FileSystem, active: Active, mark: Mark, size: int, verify: Verify, distrusted: list[str]
) -> None:
    """Start from the hint if it fits the log; otherwise distrust it."""
    name = hint_name(active.id)
    if not fs.exists(name):
        return
    from mldb.log.index.opened import index_source, open_index

    try:
        index, fields = open_index(
            index_source(fs, name, active.segment.store_id, active.id, fmt.FILE_HINT),
            fmt.FILE_HEADER_SIZE,
            verify,
            whole=True,  # damage found later would stop a read that the log itself could answer
        )
        end, lsn, durable, jumps = _hint_fields(fields)
        if end > size:
            raise CorruptError("the hint describes more than the log holds", file=name)
        row = index.commit_at(lsn)
        if row is None or lsn != index.last_lsn or not 0 < end - row.end <= _COMMIT_BYTES_MAX:
            raise CorruptError("the hint contradicts itself", file=name)
        chain = fields["chain"]
        # The mark vouches for the log up to itself; beyond it the log is asked.
        if (end, lsn, chain) != (mark.offset, mark.lsn, mark.chain) and chain != _commit_digest(
            active, row, end
        ):
            raise CorruptError("the hint describes another log", file=name)
        active.jumps = jumps
    except (MldbError, DamagedFrame, KeyError, TypeError, ValueError) as error:
        distrusted.append(f"{name}: {error}")
        active.jumps = []
        return
    active.hinted = index
    active.count = active.settled = index.entry_count()
    active.cursor = Cursor(end, lsn, chain, max(durable, active.cursor.durable))
    active.segment.valid = end


def _hint_fields(fields: dict[str, Any]) -> tuple[int, int, int, list[Jump]]:
    """Return end, lsn, durable and jumps of a hint.

    Raises ValueError or TypeError for impossible ones.
    """
    end, lsn, durable = fields["end"], fields["lsn"], fields["durable"]
    plain = type(end) is int and type(lsn) is int and type(durable) is int
    if plain and 0 <= durable <= lsn <= fmt.LSN_MAX and end > 0:
        return end, lsn, durable, list(checked_jumps(fields["jumps"]))
    raise ValueError("its fields are out of range")


def _commit_digest(active: Active, row: CommitRow, end: int) -> bytes:
    data = active.file.pread(end - row.end, row.end)
    frame = decode_header(data, row.end, active.segment.seed, end, row.end)
    if frame.end != end or frame.header.lsn != row.lsn:
        raise DamagedFrame("no such commit here")
    return decode_commit(check_body(data, frame, row.end)).digest
