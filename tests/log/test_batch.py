"""Batches: one encoder, whichever way the payloads go; the index entries point at the bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import LimitError
from mldb.log import batch as batch_module
from mldb.log import format as fmt
from mldb.log.active import chain_start
from mldb.log.batch import (
    LSN_ROOM,
    BatchStart,
    EncodedBatch,
    encode_batch,
    new_commit_id,
    place,
    place_all,
    write_ahead,
    write_batch,
    write_payloads,
)
from mldb.log.checksum import digest128
from mldb.log.frame import TO_BE_HASHED, Draft, Record, decode_header, encode_body, hash_record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.protocol import Buffer
from mldb.log.index.address import EMPTY_COMMIT, CommitRow
from mldb.log.scan import Cursor, scan
from tests.support.logs import (
    CLOCK,
    SEGMENT_ID,
    STORE_ID,
    batches,
    build_segment,
    counted_ids,
    encoded,
    records,
)
from tests.support.parts import examples

SEED = fmt.file_seed(STORE_ID, SEGMENT_ID)
START = BatchStart(
    SEED, SEGMENT_ID, chain_start(STORE_ID, SEGMENT_ID), 128, 1, 0, EMPTY_COMMIT, 0, CLOCK
)


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


def said(batch: EncodedBatch) -> object:
    """What the index and the next batch need to know of one."""
    return batch.row, batch.entries, batch.end, batch.chain


@given(batches)
def test_payloads_written_before_the_rest_give_the_same(content: list[list[Record]]) -> None:
    once = build_segment(copied(content))
    ahead = build_segment(copied(content), ahead=True)
    assert once.data == ahead.data
    assert list(map(said, once.written)) == list(map(said, ahead.written))


@given(batches)
def test_entries_point_at_the_bytes_of_their_records(content: list[list[Record]]) -> None:
    built = build_segment(content)
    for batch, written in zip(content, built.written, strict=True):
        drafts = [(record, draft) for record in batch for draft in record.named_drafts()]
        assert [key for key, _ in written.entries] == [draft.key for _, draft in drafts]
        for (record, draft), (_, entry) in zip(drafts, written.entries, strict=True):
            payload = b"".join(map(bytes, record.payload))
            stored = payload[draft.offset : draft.offset + draft.length]
            assert built.data[entry.offset : entry.offset + entry.length] == stored
            assert entry.commit_lsn == written.row.lsn
            frame = decode_header(built.data, entry.frame, built.seed, len(built.data))
            assert frame.payload_offset + draft.offset == entry.offset
            assert frame.header.commit_lsn == entry.commit_lsn
            assert entry[5:] == (
                *(draft.attr, draft.flags, draft.encoding, draft.base, draft.digest),
                draft.owner,
            )
            assert entry.segment == built.segment


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
    parent = CommitRow(1, 0, 0, parent_time, 0, 0, 0, b"")
    row = encoded([], START._replace(first_lsn=2, parent=parent, clock=clock)).row
    assert (row.time, row.clock, row.parent) == (max(clock, parent_time), clock, 1)


@given(records(), st.integers(16, 1000).map(lambda number: number * 8))
def test_places_are_aligned_and_do_not_overlap(record: Record, offset: int) -> None:
    placed = place(record, offset)
    if record.payload_length:
        assert placed.payload % (1 << record.align_log2) == 0
    least = offset + fmt.FRAME_HEADER_SIZE + len(encode_body(record))
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


def test_large_payloads_are_hashed_while_they_are_written(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a low border, small tensors take the path of large ones; the bytes are the same."""
    sizes = [0, 1, 100, 5000, 64, 20_000, 8]
    parts = [rng.bytes(size) for size in sizes]
    plain = build_segment([[tensor(part) for part in parts]])
    monkeypatch.setattr(batch_module, "OVERLAP_BYTES", 64)
    file = MemoryFileSystem().open("x", "create")
    file.pwritev([plain.data[: fmt.FILE_HEADER_SIZE]], 0)
    content = [tensor(part) for part in parts]
    write_ahead(file, content, fmt.FILE_HEADER_SIZE)
    assert [item.written for item in content] == [size >= 64 for size in sizes]
    with counted_ids():
        batch = encoded(content, START)
    assert batch.extents[0][0] == fmt.FILE_HEADER_SIZE
    assert len(batch.extents) == 1 + sum(size >= 64 for size in sizes)
    write_batch(file, batch)
    assert file.pread(file.size(), 0) == plain.data
    assert said(batch) == said(plain.written[0])


def test_payloads_written_before_stay_where_they_are(rng: np.random.Generator) -> None:
    """A pending segment has its payloads in place; the commit adds the rest around them."""
    sizes = [5000, 64, 3, 0, 4096]
    parts = [rng.bytes(size) for size in sizes]
    expected = build_segment([[tensor(part) for part in parts]])
    file = MemoryFileSystem().open("x", "create")
    file.pwritev([expected.data[: fmt.FILE_HEADER_SIZE]], 0)
    placed = list(place_all([tensor(part) for part in parts], fmt.FILE_HEADER_SIZE))
    for item in placed[::-1]:
        hash_record(item.record)
        if item.record.payload_length:
            file.pwritev(item.record.payload, item.payload)
            item.record.payload = ()
            item.record.written = True
    with counted_ids():
        batch = encoded([item.record for item in placed], START)
    write_batch(file, batch)
    assert file.pread(file.size(), 0) == expected.data
    assert said(batch) == said(expected.written[0])


class Failing:
    """A file that takes nothing."""

    def pwritev(self, buffers: list[Buffer], offset: int) -> int:
        raise OSError("no room")


def test_payloads_are_not_read_any_more_once_a_failed_write_was_reported() -> None:
    """The caller may change its arrays then: no thread hashes them behind its back."""
    content = [tensor(bytes(1 << 22)) for _ in range(3)]
    placed = list(place_all(content, 128))
    with pytest.raises(OSError, match="no room"):
        write_payloads(Failing(), placed)  # type: ignore[arg-type]
    assert all(item.checks is not None for item in content)
    assert not any(item.written for item in content)


class Counting:
    """Counts the writes of a batch."""

    name = "x"

    def __init__(self) -> None:
        self.writes: list[tuple[int, int]] = []

    def pwritev(self, buffers: list[Buffer], offset: int) -> int:
        count = sum(len(bytes(buffer)) for buffer in buffers)
        self.writes.append((offset, count))
        return count


@pytest.mark.parametrize("size", [77, 1000, batch_module._JOIN_BYTES])
def test_a_batch_is_one_gathered_write_that_ends_with_its_commit(size: int) -> None:
    content = [tensor(bytes(size)), tensor(b""), tensor(bytes(77))]
    for record in content:
        hash_record(record)
    batch = encoded(content, START)
    file = Counting()
    write_batch(file, batch)  # type: ignore[arg-type]
    assert file.writes == [(128, batch.end - 128)]


def test_with_payloads_in_place_the_commit_is_still_the_last_write() -> None:
    content = [tensor(bytes(5000)), tensor(b""), tensor(bytes(77))]
    for record in content:
        hash_record(record)
        record.written = True
    batch = encoded(content, START)
    file = Counting()
    write_batch(file, batch)  # type: ignore[arg-type]
    ends = [at + count for at, count in file.writes]
    assert [at for at, _ in file.writes] == sorted(at for at, _ in file.writes)
    assert ends[-1] == batch.end
    assert file.writes[-1][0] <= batch.row.end < batch.end
    assert all(end <= batch.row.end for end in ends[:-1])


def test_the_digest_is_the_chain_and_the_headers_of_the_frames() -> None:
    built = build_segment([[tensor(b"abc"), tensor(b"d")], [], [tensor(b"e")]])
    chain = chain_start(STORE_ID, SEGMENT_ID)
    for written in built.written:
        heads, offset = [], written.row.start
        while offset < written.row.end:
            heads.append(built.data[offset : offset + fmt.FRAME_HEADER_SIZE])
            offset = decode_header(built.data, offset, built.seed, len(built.data)).end
        chain = digest128(chain + b"".join(heads))
        assert written.chain == chain


# --- limits ---------------------------------------------------------------------------------------


def edges(low: int, high: int) -> st.SearchStrategy[int]:
    """Numbers inside limits and just outside."""
    return st.sampled_from([low - 1, low, low + 1, high - 1, high, high + 1])


def sizes(limit: int) -> st.SearchStrategy[bytes]:
    """Bytes, mostly few, sometimes as many as the limit allows or one more."""
    few = st.integers(0, 20)
    return st.one_of(few, few, few, st.sampled_from([limit, limit + 1])).map(bytes)


@st.composite
def daring(draw: st.DrawFn, payload: int) -> Draft:
    """An entry of which up to two fields are at or beyond a limit."""
    draft = Draft(b"\x01k", 0, 0, 0, payload, bytes(16), 0, b"attr", b"")
    for _ in range(draw(st.integers(0, 2))):
        field = draw(st.sampled_from(Draft._fields))
        value: Any
        match field:
            case "key" | "owner":
                value = draw(sizes(fmt.KEY_BYTES_MAX))
            case "attr":
                value = draw(sizes(fmt.ATTR_BYTES_MAX))
            case "digest":
                value = draw(st.sampled_from([b"", bytes(15), bytes(16), bytes(17)]))
            case "flags":
                value = draw(edges(0, fmt.ENTRY_FLAGS_MAX))
            case "encoding":
                value = draw(edges(0, fmt.ENCODING_MAX))
            case "base":
                value = draw(edges(0, fmt.LSN_MAX))
            case _:
                value = draw(edges(0, payload))
        draft = draft._replace(**{field: value})
    return draft


@st.composite
def daring_records(draw: st.DrawFn) -> Record:
    """A record near and beyond the limits of its fields; its payload is there and is hashed."""
    payload = bytes(draw(st.sampled_from([0, 1, 8, 5000])))
    record = Record(
        draw(st.sampled_from([16, 17 | fmt.MUST_UNDERSTAND])),
        draw(st.lists(daring(len(payload)), max_size=10)),
        [payload],
        len(payload),
        extra=draw(st.sampled_from([None, [7], "text"])),
        align_log2=draw(st.sampled_from([2, 3, 6, 6, 6, 6, 12, 21, 22])),
        block_log2=draw(st.sampled_from([11, 12, 20, 20, 20, 20, 30, 31])),
    )
    hash_record(record)
    return record


STARTS = st.builds(
    lambda epoch, clock, lsn: START._replace(epoch=epoch, clock=clock, first_lsn=lsn),
    st.sampled_from([0, 3, 3, 3]) | edges(0, fmt.EPOCH_MAX),
    st.sampled_from([CLOCK] * 4) | edges(fmt.TIME_MIN, fmt.TIME_MAX),
    st.sampled_from([1, 1, 1, 7]) | edges(1, LSN_ROOM).filter(bool),
)


@examples(500)
@given(st.lists(daring_records(), max_size=3), STARTS)
def test_what_is_not_refused_is_read_back(content: list[Record], start: BatchStart) -> None:
    """No batch is stored that a reader would call damaged, whatever it is asked to store."""
    try:
        batch = encoded(content, start)
    except LimitError as error:
        assert "Nothing was stored" in str(error)
        return
    file = MemoryFileSystem().open("x", "create")
    write_batch(file, batch)
    cursor = Cursor(start.offset, start.first_lsn - 1, start.chain)
    data = memoryview(file.pread(file.size(), 0))
    found = list(scan(data, cursor, SEED, SEGMENT_ID, verify_after=0))
    assert cursor.problem == ""
    assert [(item.row, item.entries) for item in found] == [(batch.row, batch.entries)]
    assert cursor.offset == batch.end == len(data)


def plain(**changes: Any) -> Record:
    """A record of one small tensor, some of whose entry's fields are others."""
    draft = Draft(b"\x01k", 0, 0, 0, 8, bytes(16), 0, b"attr", b"")
    record = Record(16, [draft._replace(**changes)], [bytes(8)], 8)
    hash_record(record)
    return record


NO_PAYLOAD = Draft(b"\x01k", 0, 0, 0, 0, b"", 0, b"", b"")
HUGE = fmt.PAYLOAD_BYTES_MAX + 1
BEYOND: dict[str, Callable[[], Record]] = {
    "KEY_BYTES_MAX": lambda: plain(key=bytes(fmt.KEY_BYTES_MAX + 1)),
    "KEY_BYTES_MAX of an owner": lambda: plain(owner=bytes(fmt.KEY_BYTES_MAX + 1)),
    "no key": lambda: plain(key=b""),
    "ATTR_BYTES_MAX": lambda: plain(attr=bytes(fmt.ATTR_BYTES_MAX + 1)),
    "ENTRY_FLAGS_MAX": lambda: plain(flags=fmt.ENTRY_FLAGS_MAX + 1),
    "ENCODING_MAX": lambda: plain(encoding=fmt.ENCODING_MAX + 1),
    "LSN_MAX": lambda: plain(base=fmt.LSN_MAX + 1),
    "ENTRIES_MAX": lambda: Record(16, [NO_PAYLOAD] * (fmt.ENTRIES_MAX + 1)),
    "BODY_BYTES_MAX": lambda: Record(16, [], extra=bytes(fmt.BODY_BYTES_MAX)),
    "BODY_BYTES_MAX with entries": lambda: Record(16, [NO_PAYLOAD], extra=bytes(1 << 26)),
    "PAYLOAD_BYTES_MAX": lambda: Record(16, [], [], HUGE),
    "PAYLOAD_BYTES_MAX of one": lambda: Record(
        16, [NO_PAYLOAD._replace(length=HUGE, digest=bytes(16))], [], HUGE
    ),
    "bytes behind the payload": lambda: plain(length=9),
    "bytes in front of the payload": lambda: plain(offset=-1, length=1),
}


@pytest.mark.parametrize("limit", BEYOND)
@pytest.mark.parametrize("others", [0, 20])
def test_records_beyond_a_limit_are_refused_before_anything_is_written(
    limit: str, others: int
) -> None:
    """Alone, and among entries that are sound: few and many are checked in different ways."""
    record = BEYOND[limit]()
    record.checks = record.checks or b""
    record.drafts = [
        *record.drafts,
        *(NO_PAYLOAD._replace(key=b"\x01%d" % at) for at in range(others)),
    ]
    with pytest.raises(LimitError, match="Nothing was stored"):
        encode_batch([plain(), record], START)
    with pytest.raises(LimitError, match="Nothing was stored"):
        place(record, 128)


@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (fmt.FRAMES_MAX + 1, {}),
        (0, {"epoch": -1}),
        (0, {"epoch": fmt.EPOCH_MAX + 1}),
        (0, {"clock": fmt.TIME_MAX + 1}),
        (0, {"clock": fmt.TIME_MIN - 1}),
        (0, {"first_lsn": LSN_ROOM + 1}),
    ],
)
def test_batches_beyond_a_limit_are_refused(count: int, changes: dict[str, Any]) -> None:
    with pytest.raises(LimitError, match="Nothing was stored"):
        encode_batch([plain()] * count, START._replace(**changes))


def test_what_a_commit_says_beside_the_rest_has_the_limit_of_a_body() -> None:
    with pytest.raises(LimitError, match="Nothing was stored"):
        encode_batch([], START, {"note": bytes(fmt.BODY_BYTES_MAX)})


def test_limits_themselves_are_stored_and_read() -> None:
    content = [
        plain(key=bytes(fmt.KEY_BYTES_MAX), owner=bytes(fmt.KEY_BYTES_MAX)),
        plain(attr=bytes(fmt.ATTR_BYTES_MAX), base=fmt.LSN_MAX),
        plain(flags=fmt.ENTRY_FLAGS_MAX, encoding=fmt.ENCODING_MAX, digest=b""),
        Record(16, [NO_PAYLOAD] * fmt.ENTRIES_MAX),
        Record(16, [], extra=bytes(fmt.BODY_BYTES_MAX - 5)),
    ]
    for record in content:
        hash_record(record)
    assert len(encode_body(content[-1])) == fmt.BODY_BYTES_MAX
    start = START._replace(epoch=fmt.EPOCH_MAX, first_lsn=LSN_ROOM)
    for clock in (fmt.TIME_MIN, fmt.TIME_MAX):
        batch = encoded(content, start._replace(clock=clock))
        file = MemoryFileSystem().open("x", "create")
        write_batch(file, batch)
        cursor = Cursor(128, LSN_ROOM - 1, START.chain)
        (found,) = scan(memoryview(file.pread(file.size(), 0)), cursor, SEED, SEGMENT_ID)
        assert (found.row, found.entries) == (batch.row, batch.entries)
        assert found.body.clock == clock


# --- commit ids -----------------------------------------------------------------------------------


def test_commit_ids_are_never_given_twice_not_even_in_a_forked_child() -> None:
    mine = {new_commit_id() for _ in range(1000)}
    assert len(mine) == 1000
    assert {len(item) for item in mine} == {16}
    ends, child_ends = os.pipe()
    child = os.fork()
    if not child:
        os.write(child_ends, b"".join(new_commit_id() for _ in range(300)))
        os._exit(0)
    os.close(child_ends)
    with os.fdopen(ends, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    theirs = {data[at : at + 16] for at in range(0, len(data), 16)}
    assert len(theirs) == 300
    assert not theirs & (mine | {new_commit_id() for _ in range(300)})
