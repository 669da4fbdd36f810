"""What the tests of the log share: strategies for records, segments made of them, damaged bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal
from unittest import mock

from hypothesis import strategies as st

from mldb.log import batch as batch_module
from mldb.log import format as fmt
from mldb.log import scan_run
from mldb.log.active import chain_start
from mldb.log.batch import (
    BatchStart,
    EncodedBatch,
    encode_batch,
    place_all,
    write_batch,
    write_payloads,
)
from mldb.log.chain import Stored
from mldb.log.door import Door
from mldb.log.file_header import encode_file_header
from mldb.log.frame import TO_BE_HASHED, Draft, Record, hash_record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.protocol import FileSystem
from mldb.log.index.address import EMPTY_COMMIT, CommitRow, Entry, Intervals
from mldb.log.index.column_reader import ColumnReader
from mldb.log.index.columns import IndexImage
from mldb.log.index.lineage import Jump, Jumps
from mldb.log.index.memory import MemoryIndex
from mldb.log.log import Log
from mldb.log.scan import Batch, Cursor, scan
from mldb.log.view import View
from mldb.options import Options

STORE_ID = bytes(range(16))
SEGMENT_ID = bytes(range(16, 32))
OLD_SEGMENT_ID = fmt.number_id(1)
"""That of the first segment of a store of version 1."""
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
    encoding = draw(st.integers(0, fmt.ENCODING_MAX))
    if encoding in fmt.BUILT_ENCODINGS:  # they name a version, which verify looks for
        encoding += fmt.ENCODING_MAX >> 1
    whole = payload_length > 0 and draw(st.booleans())
    return Draft(
        draw(st.binary(min_size=1, max_size=12)),
        draw(st.integers(0, fmt.ENTRY_FLAGS_MAX)),
        encoding,
        0 if whole else offset,
        payload_length if whole else length,
        TO_BE_HASHED if whole else draw(digests),
        draw(st.integers(0, fmt.LSN_MAX)),
        draw(small_bytes),
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


@contextmanager
def counted_ids() -> Iterator[None]:
    """Make commit ids 1, 2, ... in place of random ones, so that bytes can be compared."""
    ids = (number.to_bytes(fmt.DIGEST_SIZE, "big") for number in count(1))
    with mock.patch.object(batch_module, "new_commit_id", side_effect=ids):
        yield


def encoded(content: Sequence[Record], start: BatchStart) -> EncodedBatch:
    """Encode a batch, and name the parts of what comes of it."""
    return EncodedBatch(*encode_batch(content, start))


@dataclass(frozen=True, slots=True)
class Built:
    """A segment file in memory and what the writer said about each batch."""

    data: bytes
    written: list[EncodedBatch]
    seed: int
    segment: bytes = SEGMENT_ID
    store_id: bytes = STORE_ID

    def cursor(self) -> Cursor:
        """A cursor in front of the first batch."""
        return Cursor(fmt.FILE_HEADER_SIZE, 0, chain_start(self.store_id, self.segment))

    def scan(
        self, data: bytes | None = None, *, verify_after: int | None = 0
    ) -> tuple[list[Batch], Cursor]:
        """Scan the segment, or other bytes in its place."""
        cursor = self.cursor()
        view = memoryview(self.data if data is None else data)
        found = list(scan(view, cursor, self.seed, self.segment, verify_after=verify_after))
        return found, cursor

    def scan_runs(
        self, data: bytes | None = None, *, verify_after: int | None = 0, until: int = fmt.LSN_MAX
    ) -> tuple[list[tuple[CommitRow, list[tuple[bytes, Entry]]]], Cursor]:
        """The commits and entries that a scan by runs finds, the shortest runs taken too."""
        cursor = self.cursor()
        view = memoryview(self.data if data is None else data)
        found: list[tuple[CommitRow, list[tuple[bytes, Entry]]]] = []
        wanted: dict[str, Any] = {"verify_after": verify_after, "until": until}
        with mock.patch.object(scan_run, "_BATCHES_MIN", 1):
            for item in scan_run.scan_runs(view, cursor, self.seed, self.segment, **wanted):
                if isinstance(item, scan_run.BatchRun):
                    found += item.taken_apart()
                else:
                    found.append((item.row, item.entries))
        return found, cursor


def build_segment(
    content: Sequence[Sequence[Record]],
    *,
    segment: bytes = SEGMENT_ID,
    store_id: bytes = STORE_ID,
    ahead: bool = False,
    epochs: Sequence[int] = (),
    parents: Sequence[CommitRow] = (),
    durable: Sequence[int] = (),
) -> Built:
    """Write these batches behind a file header, as the sequencer does.

    *ahead*: payloads are written before the rest, as large ones and those of spilled segments are.
    """
    fs = MemoryFileSystem()
    file = fs.open("segment", "create")
    header = encode_file_header(
        fmt.FILE_SEGMENT, store_id, CLOCK, segment_id=segment, base_lsn=1, published=1
    )
    file.pwritev([header], 0)
    seed = fmt.file_seed(store_id, segment)
    chain, offset, lsn, last = chain_start(store_id, segment), len(header), 1, EMPTY_COMMIT
    written: list[EncodedBatch] = []
    with counted_ids():
        for index, batch in enumerate(content):
            parent = parents[index] if parents else last
            epoch = epochs[index] if epochs else index
            mark = durable[index] if durable else 0
            clock = CLOCK + index
            start = BatchStart(seed, segment, chain, offset, lsn, mark, parent, epoch, clock)
            if ahead:
                placed = [item for item in place_all(batch, offset) if item.record.payload_length]
                write_payloads(file, placed)
            for record in batch:
                hash_record(record)
            done = encoded(batch, start)
            write_batch(file, done)
            written.append(done)
            chain, offset, lsn, last = done.chain, done.end, done.row.lsn + 1, done.row
    return Built(file.pread(file.size(), 0), written, seed, segment, store_id)


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
        return [(), *(Jumps.of(self.jumps).intervals_at(row.lsn) for row in self.rows)]


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
def histories(draw: st.DrawFn, segment: bytes = SEGMENT_ID) -> History:
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
            flags = draw(st.integers(0, fmt.ENTRY_FLAGS_MAX))
            encoding = draw(st.integers(0, fmt.ENCODING_MAX))
            base, owner = draw(st.integers(0, fmt.LSN_MAX)), draw(st.just(b"") | KEYS)
            form = (attr, flags, encoding, base, digest, owner)
            found.append((key, Entry(lsn, segment, place, offset, length, *form)))
            place += draw(st.integers(8, 1000))
        clock = draw(st.integers(fmt.TIME_MIN, fmt.TIME_MAX))
        commit_id = draw(st.sampled_from([b"", bytes(range(16)), bytes([255]) * 16]))
        rows.append(CommitRow(lsn, parent.lsn, epoch, time, clock, start, place, commit_id))
        entries.append(found)
    return History(rows, entries, jumps)


def open_log(fs: FileSystem, mode: Literal["r", "rw"] = "rw", **options: Any) -> Log:
    """Open the log of a store; *options* are those of a handle."""
    return Log(fs, Options(mode=mode, **options), known=frozenset({16}))


def store(log: Log, key: bytes, data: bytes, epoch: int = 0) -> int:
    """Commit one version of one key; return the LSN."""
    drafts = [Draft(key, 0, 0, 0, len(data), TO_BE_HASHED, 0, b"attr")]
    record = Record(16 | fmt.MUST_UNDERSTAND, drafts, [data], len(data))
    return log.commit([record], lambda view: (epoch, view.commit)).lsn


class _NoCache:
    """Keeps nothing: what these tests store is raw."""

    def get(self, key: object, nbytes: int, decode: Callable[[], memoryview]) -> memoryview:
        return decode()

    def find(self, key: object) -> None:
        return None

    def keeps(self, nbytes: int) -> bool:
        return False


def _no_codec(
    chain: list[Stored], size: int, key: str, base: memoryview | None = None, start: int = 0
) -> memoryview:
    raise AssertionError(f"{key} is stored in encoding {chain[-1].encoding}")


def door(log: Log) -> Door:
    """The door to the stored bytes of a log, all of which are raw."""
    return Door(log.head, log.options.verify, _no_codec, _NoCache(), str.encode)


def read(log: Log, view: View, key: bytes, entry: Entry) -> bytes:
    """The bytes of one version."""
    return bytes(door(log).version(view, key, entry, entry.length, key.decode("latin-1")))


def content(log: Log) -> dict[bytes, bytes]:
    """Every key at the head with its bytes."""
    view = log.head()
    return {key: read(log, view, key, entry) for key, entry in view.live(b"", view.intervals)}


def flat(image: IndexImage) -> memoryview:
    """The payload of a built index in one piece."""
    data = b"".join(map(bytes, image.payload))
    assert len(data) == image.length
    return memoryview(data)


def reader_of(image: IndexImage, touched: list[tuple[int, int]] | None = None) -> ColumnReader:
    """A reader; *touched* collects the ranges it was about to read."""
    ranges = [] if touched is None else touched
    return ColumnReader(
        flat(image), image.directory, "x", lambda low, high: ranges.append((low, high))
    )
