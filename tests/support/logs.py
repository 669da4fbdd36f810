"""What the tests of the log share: strategies for records, segments made of them, damaged bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hypothesis import strategies as st

from mldb.log import format as fmt
from mldb.log.active import chain_start
from mldb.log.batch import Place, Written, place_all, write_batch, write_small
from mldb.log.frame import TO_BE_HASHED, Draft, Record, encode_file_header
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.address import EMPTY_COMMIT, CommitRow, Entry, Intervals
from mldb.log.index.lineage import Jump, intervals_at
from mldb.log.index.memory import MemoryIndex
from mldb.log.log import Log, LogOptions
from mldb.log.scan import Batch, Cursor, scan
from mldb.log.sequencer import WriterOptions

STORE_ID = bytes(range(16))
CLOCK = 1_700_000_000_000_000_000


class _Large(bytes):
    """Several blocks of the smallest size, in a report that stays readable."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


_LARGE = _Large(bytes(range(256)) * 40)
small_bytes = st.binary(max_size=12)
digests = st.sampled_from([b"", bytes(range(16)), bytes([255]) * 16])


@st.composite
def drafts(draw: st.DrawFn, payload_length: int) -> Draft:
    """An index entry somewhere in a payload of this length."""
    offset = draw(st.integers(0, payload_length))
    length = draw(st.integers(0, payload_length - offset))
    whole = payload_length > 0 and draw(st.booleans())
    return Draft(
        draw(st.binary(min_size=1, max_size=12)),
        draw(st.integers(0, fmt.ENTRY_FLAGS_KNOWN)),
        draw(st.integers(0, 255)),
        0 if whole else offset,
        payload_length if whole else length,
        TO_BE_HASHED if whole else draw(digests),
        draw(st.integers(0, fmt.LSN_MAX)),
        draw(small_bytes),
    )


@st.composite
def records(draw: st.DrawFn, payload_max: int = 200) -> Record:
    """A record of any event kind; its payload comes in pieces and may span several blocks."""
    pieces = draw(st.lists(st.binary(max_size=payload_max), max_size=3))
    if draw(st.integers(0, 9)) == 0:
        pieces.append(_LARGE)
    length = sum(map(len, pieces))
    must = draw(st.sampled_from([0, fmt.MUST_UNDERSTAND]))
    return Record(
        must | draw(st.integers(fmt.KIND_FIRST_EVENT, fmt.MUST_UNDERSTAND - 1)),
        draw(st.lists(drafts(length), max_size=3)),
        pieces,
        length,
        extra=draw(st.sampled_from([None, [7], {"a": 1}, "text"])),
        align_log2=draw(st.sampled_from([3, fmt.PAYLOAD_ALIGN_LOG2, fmt.PAGE_ALIGN_LOG2])),
        block_log2=draw(st.sampled_from([fmt.BLOCK_LOG2_MIN, fmt.BLOCK_LOG2])),
    )


batches = st.lists(st.lists(records(), max_size=3), min_size=1, max_size=4)


@dataclass(frozen=True, slots=True)
class Built:
    """A segment file in memory and what the writer said about each batch."""

    data: bytes
    written: list[Written]
    seed: int
    number: int = 1
    store_id: bytes = STORE_ID

    def cursor(self) -> Cursor:
        """A cursor in front of the first batch."""
        return Cursor(fmt.FILE_HEADER_SIZE, 0, chain_start(self.store_id, self.number))

    def scan(
        self, data: bytes | None = None, *, verify_after: int | None = 0
    ) -> tuple[list[Batch], Cursor]:
        """Scan the segment, or other bytes in its place."""
        cursor = self.cursor()
        view = memoryview(self.data if data is None else data)
        found = list(scan(view, cursor, self.seed, self.number, verify_after=verify_after))
        return found, cursor


def build_segment(
    content: Sequence[Sequence[Record]],
    *,
    number: int = 1,
    store_id: bytes = STORE_ID,
    small: bool = True,
    epochs: Sequence[int] = (),
    parents: Sequence[CommitRow] = (),
) -> Built:
    """Write these batches behind a file header, as the writer does."""
    fs = MemoryFileSystem()
    file = fs.open("segment", "create")
    file.pwritev([encode_file_header(fmt.FILE_SEGMENT, store_id, number, 1, CLOCK)], 0)
    seed = fmt.file_seed(store_id, number)
    chain, offset, lsn, last = chain_start(store_id, number), fmt.FILE_HEADER_SIZE, 1, EMPTY_COMMIT
    written: list[Written] = []
    for index, batch in enumerate(content):
        parent = parents[index] if parents else last
        epoch = epochs[index] if epochs else index
        where = Place(seed, number, chain, 0, lsn, parent, epoch, CLOCK + index)
        if small:
            done = write_small(file, batch, offset, where)
        else:
            placed = place_all(batch, offset)
            done = write_batch(file, placed, placed[-1].end if placed else offset, where)
        written.append(done)
        chain, offset, lsn, last = done.chain, done.end, done.row.lsn + 1, done.row
    return Built(file.pread(file.size(), 0), written, seed, number, store_id)


def flip(data: bytes, bit: int) -> bytes:
    """Return *data* with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=17),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 3), inner, max_size=3)
    ),
    max_leaves=8,
)
"""Any value that MessagePack can say."""


@st.composite
def mutated(draw: st.DrawFn, value: object) -> object:
    """Return *value*, of lists and dicts, with one part somewhere replaced by something else."""
    if isinstance(value, dict) and value and draw(st.integers(0, 7)):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: draw(mutated(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 7)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(mutated(value[place])), *value[place + 1 :]]
    edge = st.sampled_from([-1, 0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, b"", bytes(16), [], {}])
    return draw(edge | PLAIN)


@dataclass(frozen=True, slots=True)
class History:
    """Commits of one segment as an index stores them, and the jumps of their lineages."""

    rows: list[CommitRow]
    entries: list[list[tuple[bytes, Entry]]]
    jumps: list[Jump]

    def memory(self) -> MemoryIndex:
        """The history in the index of an active segment."""
        index = MemoryIndex()
        for row, entries in zip(self.rows, self.entries, strict=True):
            index.add(row, entries)
        return index

    def heads(self) -> list[Intervals]:
        """What the snapshot at each commit sees, and that of nothing."""
        return [(), *(intervals_at(self.jumps, row.lsn) for row in self.rows)]


KEYS = st.binary(max_size=3).map(lambda raw: b"\x01" + raw) | st.sampled_from(
    [
        b"\x00",
        b"\x01",
        b"\x01a",
        b"\x01ab",
        b"\x01\xff",
        b"\x01\xff\xff",
        b"\x02",
        b"\xff",
        b"\xff\xff",
    ]
)


@st.composite
def histories(draw: st.DrawFn, segment: int = 1) -> History:
    """Commits with rewinds; epochs and times do not decrease along a lineage."""
    rows: list[CommitRow] = []
    entries: list[list[tuple[bytes, Entry]]] = []
    jumps: list[Jump] = []
    lsn, place = draw(st.integers(0, 5)), fmt.FILE_HEADER_SIZE
    for _ in range(draw(st.integers(0, 8))):
        last = rows[-1] if rows else EMPTY_COMMIT
        lsn += draw(st.integers(1, 3))
        rewinds = draw(st.integers(0, 3)) == 0
        parent = draw(st.sampled_from([EMPTY_COMMIT, *rows])) if rewinds else last
        if parent is not last:
            jumps.append((lsn, parent.lsn))
        epoch = parent.epoch + draw(st.integers(0, 2))
        time = parent.time + draw(st.integers(0, 2))
        found: list[tuple[bytes, Entry]] = []
        start = place
        for key in draw(st.lists(KEYS, max_size=4, unique=True)):
            attr, digest = draw(small_bytes), draw(digests)
            offset, length = draw(st.integers(0, 2**40)), draw(st.integers(0, 2**40))
            flags, encoding = draw(st.integers(0, 1)), draw(st.integers(0, 255))
            base = draw(st.integers(0, fmt.LSN_MAX))
            version = (lsn, segment, place, offset, length, attr, flags, encoding, base, digest)
            found.append((key, Entry(*version)))
            place += draw(st.integers(8, 1000))
        clock = draw(st.integers(fmt.TIME_MIN, fmt.TIME_MAX))
        rows.append(CommitRow(lsn, parent.lsn, epoch, time, clock, start, place))
        entries.append(found)
    return History(rows, entries, jumps)


def open_log(fs: FileSystem, mode: Literal["r", "rw"] = "rw", **options: Any) -> Log:
    """Open the log of a store; *options* are those of the writer."""
    known = frozenset({16})
    return Log(fs, LogOptions(mode, writer=WriterOptions(**options), known=known))


def store(log: Log, key: bytes, data: bytes, epoch: int = 0) -> int:
    """Commit one version of one key; return the LSN."""
    drafts = [Draft(key, 0, 0, 0, len(data), TO_BE_HASHED, 0, b"attr")]
    record = Record(16 | fmt.MUST_UNDERSTAND, drafts, [data], len(data))
    return log.commit([record], lambda view: (epoch, view.commit)).lsn


def content(log: Log) -> dict[bytes, bytes]:
    """Every key at the head with its bytes."""
    view = log.head()
    return {
        key: bytes(log.payload(view, entry, 0, entry.length))
        for key, entry in view.live(b"", view.intervals)
    }
