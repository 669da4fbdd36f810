"""Opening an index frame: only one that stands there whole, in the file it is asked of."""

from __future__ import annotations

import pytest

from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.active import Active, chain_start
from mldb.log.checksum import checks_and_digest
from mldb.log.file_header import encode_file_header
from mldb.log.frame import encode_head, pack
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import CommitRow, Entry
from mldb.log.index.footer import index_frame
from mldb.log.index.memory import MemoryIndex
from mldb.log.index.opened import index_source, open_index
from mldb.log.scan import Cursor
from mldb.log.segment import Segment
from tests.support.files import replace_file
from tests.support.logs import CLOCK, OLD_SEGMENT_ID, SEGMENT_ID, STORE_ID, flip

NAME = "segments/x.idx"
ROWS = [CommitRow(lsn, lsn - 1, lsn, CLOCK, CLOCK, 128, 200, bytes([lsn]) * 16) for lsn in (1, 2)]
ENTRIES = [
    (b"\x01%d" % row.lsn, Entry(row.lsn, SEGMENT_ID, 128, 192, 4, b"a" * 9, 0, 0, 0, b"", b""))
    for row in ROWS
]


def index_file(segment_id: bytes, kind: int = fmt.FILE_INDEX) -> bytes:
    """A side index of two commits."""
    memory = MemoryIndex()
    for row, entry in zip(ROWS, ENTRIES, strict=True):
        memory.add(row, [entry])
    fs = MemoryFileSystem()
    segment = Segment(fs, segment_id, STORE_ID, 128)
    cursor = Cursor(1000, 2, chain_start(STORE_ID, segment_id))
    active = Active(segment, fs.open("x", "create"), cursor, memory, None, [])
    header = encode_file_header(kind, STORE_ID, CLOCK, segment_id=segment_id)
    return b"".join([header, *index_frame(active, 2, 1, fmt.FILE_HEADER_SIZE, None)])


def opened(data: bytes, segment_id: bytes, kind: int = fmt.FILE_INDEX) -> Segment:
    fs = MemoryFileSystem()
    fs.mkdir("segments")
    replace_file(fs, NAME, data)
    return index_source(fs, NAME, STORE_ID, segment_id, kind)


@pytest.mark.parametrize("segment_id", [SEGMENT_ID, OLD_SEGMENT_ID], ids=["random", "numbered"])
@pytest.mark.parametrize("kind", [fmt.FILE_INDEX, fmt.FILE_HINT])
def test_a_side_index_comes_back(segment_id: bytes, kind: int) -> None:
    source = opened(index_file(segment_id, kind), segment_id, kind)
    index, fields = open_index(source, fmt.FILE_HEADER_SIZE, "first", whole=True)
    index.check()
    assert list(index.commits(0, 9)) == ROWS
    found = [index.newest(key, ((1, 2),)) for key, _ in ENTRIES]
    assert found == [entry._replace(segment=segment_id) for _, entry in ENTRIES]
    assert (fields["lsn"], fields["end"], fields["durable"]) == (2, 1000, 1)


def test_an_index_of_another_segment_is_refused() -> None:
    """The seed of its frame is made of the segment's id, as its header is."""
    for mine, other in ((SEGMENT_ID, bytes(16)), (SEGMENT_ID, OLD_SEGMENT_ID)):
        with pytest.raises(CorruptError, match="files were swapped"):
            opened(index_file(other), mine)
        moved = index_file(mine)[: fmt.FILE_HEADER_SIZE] + index_file(other)[128:]
        with pytest.raises(CorruptError, match="header checksum"):
            open_index(opened(moved, mine), fmt.FILE_HEADER_SIZE, "first")


def test_every_flipped_bit_is_found_when_the_whole_is_verified() -> None:
    data = index_file(SEGMENT_ID)
    for offset in range(fmt.FILE_HEADER_SIZE, len(data)):
        source = opened(flip(data, 8 * offset + offset % 8), SEGMENT_ID)
        with pytest.raises(CorruptError):
            open_index(source, fmt.FILE_HEADER_SIZE, "first", whole=True)


def test_unverified_pages_are_found_when_they_are_touched() -> None:
    data = index_file(SEGMENT_ID)
    place = data.rindex(b"a" * 9)
    source = opened(flip(data, 8 * place), SEGMENT_ID)
    with pytest.raises(CorruptError, match="stored block is damaged"):
        open_index(source, fmt.FILE_HEADER_SIZE, "first")[0].dump()
    index, _ = open_index(source, fmt.FILE_HEADER_SIZE, "never")
    attrs = [entry.attr for versions in index.dump()[0].values() for entry in versions]
    assert attrs == [b"`" + b"a" * 8] * 2


@pytest.mark.parametrize("body", [7, [], {"columns": []}, {}, {"columns": None}])
def test_a_body_without_a_directory_is_corrupt(body: object) -> None:
    header = encode_file_header(fmt.FILE_INDEX, STORE_ID, CLOCK, segment_id=SEGMENT_ID)
    kind = fmt.KIND_INDEX | fmt.MUST_UNDERSTAND
    log2 = fmt.INDEX_BLOCK_LOG2
    checks, _ = checks_and_digest([bytes(8)], log2)
    seed = fmt.file_seed(STORE_ID, SEGMENT_ID)
    frame = encode_head(kind, 1, 0, pack(body), checks, 8, log2, 6, 2, 2, seed, len(header))
    source = opened(header + frame + bytes(8), SEGMENT_ID)
    with pytest.raises(CorruptError, match="index directory is damaged") as info:
        open_index(source, fmt.FILE_HEADER_SIZE, "first")
    assert (info.value.file, info.value.offset) == (NAME, fmt.FILE_HEADER_SIZE)
