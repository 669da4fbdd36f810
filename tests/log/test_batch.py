"""Batches: both ways of writing one give the same bytes, and the index entries point at them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import LimitError
from mldb.log import batch as batch_module
from mldb.log import format as fmt
from mldb.log.active import chain_start
from mldb.log.batch import Place, place, place_all, write_batch, write_small
from mldb.log.checksum import digest128
from mldb.log.frame import TO_BE_HASHED, Draft, Record, decode_header, hash_record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import EMPTY_COMMIT, CommitRow
from tests.support.logs import CLOCK, STORE_ID, batches, build_segment, records

SEED = fmt.file_seed(STORE_ID, 1)
WHERE = Place(SEED, 1, chain_start(STORE_ID, 1), 0, 1, EMPTY_COMMIT, 0, CLOCK)


def copied(content: list[list[Record]]) -> list[list[Record]]:
    """The same records again; writing one fills in its checksums."""
    return [
        [
            Record(
                item.kind,
                list(item.drafts),
                list(item.payload),
                item.payload_length,
                item.extra,
                item.body_version,
                item.align_log2,
                item.block_log2,
            )
            for item in batch
        ]
        for batch in content
    ]


@given(batches)
def test_both_ways_of_writing_give_the_same(content: list[list[Record]]) -> None:
    small = build_segment(copied(content), small=True)
    placed = build_segment(copied(content), small=False)
    assert small.data == placed.data
    assert small.written == placed.written


@given(batches)
def test_entries_point_at_the_bytes_of_their_records(content: list[list[Record]]) -> None:
    built = build_segment(content)
    for batch, written in zip(content, built.written, strict=True):
        drafts = [(record, draft) for record in batch for draft in record.drafts]
        assert [key for key, _ in written.entries] == [draft.key for _, draft in drafts]
        for (record, draft), (_, entry) in zip(drafts, written.entries, strict=True):
            payload = b"".join(map(bytes, record.payload))
            stored = payload[draft.offset : draft.offset + draft.length]
            assert built.data[entry.offset : entry.offset + entry.length] == stored
            assert entry.commit_lsn == written.row.lsn
            frame = decode_header(built.data, entry.frame, built.seed, len(built.data))
            assert frame.payload_offset + draft.offset == entry.offset
            assert entry[5:] == (draft.attr, draft.flags, draft.encoding, draft.base, draft.digest)


@given(batches)
def test_lsns_and_places_follow_each_other(content: list[list[Record]]) -> None:
    built = build_segment(content)
    offset, lsn = fmt.FILE_HEADER_SIZE, 0
    for batch, written in zip(content, built.written, strict=True):
        lsn += len(batch) + 1
        assert (written.row.start, written.row.lsn) == (offset, lsn)
        offset = written.end
    assert offset == len(built.data)


@given(st.integers(0, 2**62), st.integers(0, 2**62))
def test_the_time_of_a_commit_is_never_before_its_parents(clock: int, parent_time: int) -> None:
    file = MemoryFileSystem().open("x", "create")
    parent = CommitRow(1, 0, 0, parent_time, 0, 0, 0)
    where = Place(SEED, 1, WHERE.chain, 0, 2, parent, 0, clock)
    row = write_small(file, [], 128, where).row
    assert (row.time, row.clock, row.parent) == (max(clock, parent_time), clock, 1)


@given(records(), st.integers(16, 1000).map(lambda number: number * 8))
def test_places_are_aligned_and_do_not_overlap(record: Record, offset: int) -> None:
    placed = place(record, offset)
    if record.payload_length:
        assert placed.payload % (1 << record.align_log2) == 0
    least = offset + fmt.FRAME_HEADER_SIZE + len(placed.body)
    assert least <= placed.payload
    assert (
        placed.payload + record.payload_length
        <= placed.end
        < placed.payload + record.payload_length + 8
    )
    assert placed.end % fmt.FRAME_ALIGN == 0


def tensor(data: Buffer, key: bytes = b"\x01t") -> Record:
    """A record of one tensor with a payload of its own."""
    drafts = [Draft(key, 0, 0, 0, len(data), TO_BE_HASHED, 0, b"")]
    return Record(16 | fmt.MUST_UNDERSTAND, drafts, [data], len(data), block_log2=12)


def test_large_payloads_are_hashed_behind_the_write(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a low border, small tensors take the path of large ones; the bytes are the same."""
    sizes = [0, 1, 100, 5000, 64, 20_000, 8]
    parts = [rng.bytes(size) for size in sizes]
    plain = build_segment([[tensor(part) for part in parts]], small=False)
    monkeypatch.setattr(batch_module, "OVERLAP_BYTES", 64)
    overlapped = build_segment([[tensor(part) for part in parts]], small=False)
    assert overlapped.data == plain.data
    assert overlapped.written == plain.written


def test_payloads_written_before_stay_where_they_are(rng: np.random.Generator) -> None:
    """A pending segment has its payloads in place; the commit adds the rest around them."""
    sizes = [5000, 64, 3, 0, 4096]
    parts = [rng.bytes(size) for size in sizes]
    expected = build_segment([[tensor(part) for part in parts]], small=False)
    file = MemoryFileSystem().open("x", "create")
    file.pwritev([expected.data[: fmt.FILE_HEADER_SIZE]], 0)
    placed = place_all([tensor(part) for part in parts], fmt.FILE_HEADER_SIZE)
    for item in placed[::-1]:
        if item.record.payload_length:
            hash_record(item.record)
            file.pwritev(item.record.payload, item.payload)
            item.record.payload = ()
            item.written = True
    written = write_batch(file, placed, placed[-1].end, WHERE)
    assert file.pread(file.size(), 0) == expected.data
    assert written == expected.written[0]


class Counting:
    """Counts the writes of a batch."""

    name = "x"

    def __init__(self) -> None:
        self.writes: list[tuple[int, int]] = []

    def pwritev(self, buffers: list[Buffer], offset: int) -> int:
        count = sum(len(bytes(buffer)) for buffer in buffers)
        self.writes.append((offset, count))
        return count


def test_a_batch_is_one_gathered_write_that_ends_with_its_commit() -> None:
    content = [tensor(bytes(1000)), tensor(b""), tensor(bytes(77))]
    for file in (Counting(), Counting()):
        if not file.writes:
            written = write_small(file, content, 128, WHERE)  # type: ignore[arg-type]
        assert file.writes == [(128, written.end - 128)]
        file.writes.clear()
    file = Counting()
    placed = place_all(content, 128)
    written = write_batch(file, placed, placed[-1].end, WHERE)  # type: ignore[arg-type]
    assert file.writes == [(128, written.end - 128)]


def test_the_digest_is_the_chain_and_the_headers_of_the_frames() -> None:
    built = build_segment([[tensor(b"abc"), tensor(b"d")], [], [tensor(b"e")]])
    chain = chain_start(STORE_ID, 1)
    for written in built.written:
        heads, offset = [], written.row.start
        while offset < written.row.end:
            heads.append(built.data[offset : offset + fmt.FRAME_HEADER_SIZE])
            offset = decode_header(built.data, offset, built.seed, len(built.data)).end
        chain = digest128(chain + b"".join(heads))
        assert written.chain == chain


@pytest.mark.parametrize(
    "record",
    [
        Record(16, [Draft(b"k", 0, 0, 0, 0, b"", 0, b"")] * (fmt.ENTRIES_MAX + 1)),
        Record(16, [], extra=bytes(fmt.BODY_BYTES_MAX)),
        Record(16, [], [], fmt.PAYLOAD_BYTES_MAX + 1),
    ],
    ids=["entries", "body", "payload"],
)
def test_records_beyond_the_limits_are_refused_before_anything_is_written(record: Record) -> None:
    with pytest.raises(LimitError, match="Nothing was stored"):
        place(record, 128)
    file = Counting()
    record.checks = b""
    with pytest.raises(LimitError, match="Nothing was stored"):
        write_small(file, [record], 128, WHERE)  # type: ignore[arg-type]
    assert file.writes == []
