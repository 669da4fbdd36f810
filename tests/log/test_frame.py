"""Frames and file headers: what is written is read back, and nothing else is taken for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import FormatVersionError, MldbError
from mldb.log import format as fmt
from mldb.log.checksum import check64
from mldb.log.frame import (
    TO_BE_HASHED,
    DamagedFrame,
    Draft,
    Record,
    check_body,
    decode_commit,
    decode_entries,
    decode_file_header,
    decode_header,
    encode_body,
    encode_commit,
    encode_file_header,
    encode_head,
    hash_record,
    pack,
    unpack,
)
from mldb.log.index.address import CommitRow
from tests.support.logs import CLOCK, PLAIN, STORE_ID, flip, records

U64 = st.integers(0, 2**64 - 1)
LSN = st.integers(0, fmt.LSN_MAX)
OFFSETS = st.integers(0, 2**50).map(lambda number: number * fmt.FRAME_ALIGN)


def encoded(record: Record, lsn: int, commit_lsn: int, seed: int, offset: int) -> bytes:
    """The whole frame of a record, payload and padding included."""
    hash_record(record)
    head = encode_head(
        record.kind,
        record.body_version,
        fmt.FLAG_KEYED if record.drafts else 0,
        encode_body(record),
        record.checks or b"",
        record.payload_length,
        record.block_log2,
        record.align_log2,
        lsn,
        commit_lsn,
        seed,
        offset,
    )
    payload = b"".join(map(bytes, record.payload))
    return head + payload + bytes(-(len(head) + len(payload) + offset) % fmt.FRAME_ALIGN)


@given(records(), LSN, LSN, U64, OFFSETS)
def test_frames_come_back(
    record: Record, lsn: int, commit_lsn: int, seed: int, offset: int
) -> None:
    data = encoded(record, lsn, commit_lsn, seed, offset)
    frame = decode_header(data, offset, seed, offset + len(data), offset)
    header = frame.header
    assert (header.kind, header.lsn, header.commit_lsn) == (record.kind, lsn, commit_lsn)
    assert frame.end == offset + len(data)
    start = frame.payload_offset - offset
    assert data[start : start + header.payload_length] == b"".join(map(bytes, record.payload))
    if record.payload_length:
        assert frame.payload_offset % (1 << record.align_log2) == 0
    body = check_body(data, frame, offset)
    if not record.drafts:
        assert unpack(body) == record.extra
        return
    found, extra = decode_entries(body, frame)
    assert (found, extra) == (record.drafts, record.extra)
    assert TO_BE_HASHED not in [draft.digest for draft in found] or not record.payload_length


@given(records(), OFFSETS)
def test_lengths_are_those_that_the_layout_says(record: Record, offset: int) -> None:
    data = encoded(record, 1, 1, 0, offset)
    body = encode_body(record)
    length = record.payload_length
    payload = fmt.payload_offset(offset, len(body), length, record.block_log2, record.align_log2)
    assert len(data) == fmt.align_up(payload + length, 3) - offset


@given(records(60), st.data())
def test_every_flipped_bit_outside_the_payload_is_found(
    record: Record, data: st.DataObject
) -> None:
    raw = encoded(record, 5, 6, 99, 128)
    frame = decode_header(raw, 128, 99, 128 + len(raw), 128)
    payload = range(frame.payload_offset - 128, frame.payload_offset - 128 + record.payload_length)
    bit = data.draw(st.integers(0, 8 * len(raw) - 1).filter(lambda bit: bit // 8 not in payload))
    changed = flip(raw, bit)
    with pytest.raises(DamagedFrame):
        check_body(changed, decode_header(changed, 128, 99, 128 + len(raw), 128), 128)


def test_every_flipped_bit_of_a_header_is_found() -> None:
    record = Record(
        16 | fmt.MUST_UNDERSTAND, [Draft(b"k", 0, 0, 0, 3, TO_BE_HASHED, 0, b"a")], [b"abc"], 3
    )
    raw = encoded(record, 1, 2, 7, 128)
    for bit in range(8 * fmt.FRAME_HEADER_SIZE):
        with pytest.raises(DamagedFrame):
            decode_header(flip(raw, bit), 128, 7, 128 + len(raw), 128)


@given(records(60), st.data())
def test_every_cut_is_found(record: Record, data: st.DataObject) -> None:
    raw = encoded(record, 1, 1, 3, 0)
    length = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(DamagedFrame):
        decode_header(raw[:length], 0, 3, length)


@given(records(40), st.integers(1, 2**40), st.integers(1, 2**40))
def test_a_frame_counts_only_in_its_place_and_file(record: Record, moved: int, other: int) -> None:
    raw = encoded(record, 1, 1, 3, 0)
    with pytest.raises(DamagedFrame, match="header checksum"):
        decode_header(raw, 8 * moved, 3, 8 * moved + len(raw), 8 * moved)
    with pytest.raises(DamagedFrame, match="header checksum"):
        decode_header(raw, 0, 3 + other, len(raw))


def test_zeros_are_no_frame() -> None:
    with pytest.raises(DamagedFrame, match="magic"):
        decode_header(bytes(1000), 128, 1, 1000)


def head(**changes: int) -> bytes:
    """An empty frame with some header fields set, checksums right."""
    fields = {"kind": 16, "version": 1, "flags": 0, "payload": 0, "block": 20, "align": 6}
    fields |= {"lsn": 1, "commit": 1} | changes
    return encode_head(
        fields["kind"],
        fields["version"],
        fields["flags"],
        b"\xc0",
        bytes(8 * fmt.block_count(fields["payload"], fields["block"])),
        fields["payload"],
        fields["block"],
        fields["align"],
        fields["lsn"],
        fields["commit"],
        0,
        0,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": 0},
        {"kind": fmt.MUST_UNDERSTAND},
        {"flags": fmt.FLAG_EXTERNAL},
        {"flags": 0x80},
        {"payload": 8, "block": fmt.BLOCK_LOG2_MIN - 1},
        {"payload": 8, "block": fmt.BLOCK_LOG2_MAX + 1},
        {"payload": 8, "align": 2},
        {"payload": 8, "align": 22},
        {"lsn": fmt.LSN_MAX + 1},
        {"commit": fmt.LSN_MAX + 1},
    ],
)
def test_a_right_checksum_does_not_excuse_an_impossible_header(changes: dict[str, int]) -> None:
    data = head(**changes) + bytes(64)
    with pytest.raises(DamagedFrame):
        decode_header(data, 0, 0, len(data))


def test_lengths_beyond_the_limits_are_refused_before_they_are_used() -> None:
    for body, payload in ((fmt.BODY_BYTES_MAX + 1, 0), (1, fmt.PAYLOAD_BYTES_MAX + 1), (1, 2**48)):
        start = fmt.FRAME_HEADER.pack(
            fmt.FRAME_MAGIC, 16, 1, 0, body, 20, 6, 0, payload, 1, 1, 0, 0
        )[: fmt.FRAME_CHECKED_SIZE]
        data = start + check64(start, 0).to_bytes(8, "little") + bytes(1000)
        with pytest.raises(DamagedFrame, match=r"limit|valid part"):
            decode_header(data, 0, 0, len(data))


def test_a_newer_body_is_refused_by_name_when_it_must_be_understood() -> None:
    newer = head(kind=16 | fmt.MUST_UNDERSTAND, version=fmt.BODY_VERSION + 1)
    with pytest.raises(FormatVersionError, match="body version 2"):
        check_body(newer, decode_header(newer, 0, 0, len(newer)))
    optional = head(kind=16, version=fmt.BODY_VERSION + 1)
    assert check_body(optional, decode_header(optional, 0, 0, len(optional))) == b"\xc0"


# --- commits --------------------------------------------------------------------------------------

TIMES = st.integers(fmt.TIME_MIN, fmt.TIME_MAX)


@given(
    LSN,
    LSN,
    LSN,
    TIMES,
    TIMES,
    st.integers(0, fmt.FRAMES_MAX),
    st.binary(min_size=16, max_size=16),
    LSN,
)
def test_commits_come_back(
    lsn: int,
    parent: int,
    epoch: int,
    time: int,
    clock: int,
    count: int,
    digest: bytes,
    durable: int,
) -> None:
    row = CommitRow(lsn, parent, epoch, time, clock, 128, 256)
    data = encode_commit(row, count, digest, durable, 11)
    frame = decode_header(data, 256, 11, 256 + len(data), 256)
    assert frame.end == 256 + len(data)
    assert (frame.header.lsn, frame.header.commit_lsn) == (lsn, lsn)
    commit = decode_commit(check_body(data, frame, 256))
    assert commit == (parent, epoch, time, clock, count, digest, durable, {})


@pytest.mark.parametrize("place", range(8))
@given(value=PLAIN)
def test_a_commit_with_a_strange_field_is_taken_or_damaged(place: int, value: object) -> None:
    fields: list[object] = [1, 2, CLOCK, CLOCK, 3, bytes(16), 1, {}]
    fields[place] = value
    try:
        commit = decode_commit(pack(fields))
    except DamagedFrame:
        return
    assert type(value) is type([1, 2, CLOCK, CLOCK, 3, bytes(16), 1, {}][place])
    assert fmt.TIME_MIN <= commit.clock <= fmt.TIME_MAX
    assert 0 <= commit.durable <= fmt.LSN_MAX


# --- file headers ---------------------------------------------------------------------------------


@given(
    st.integers(1, 2**16 - 1),
    st.binary(min_size=16, max_size=16),
    U64,
    U64,
    st.integers(-(2**63), 2**63 - 1),
)
def test_file_headers_come_back(
    kind: int, store_id: bytes, file_id: int, base_lsn: int, created: int
) -> None:
    data = encode_file_header(kind, store_id, file_id, base_lsn, created)
    assert len(data) == fmt.FILE_HEADER_SIZE
    header = decode_file_header(data, "x")
    assert (header.kind, header.store_id, header.file_id) == (kind, store_id, file_id)
    assert (header.base_lsn, header.created) == (base_lsn, created)
    assert header.writer.rstrip(b"\0") == fmt.WRITER


def test_every_flipped_bit_and_cut_of_a_file_header_is_found() -> None:
    data = encode_file_header(fmt.FILE_SEGMENT, STORE_ID, 1, 1, CLOCK)
    for bit in range(8 * len(data)):
        with pytest.raises((DamagedFrame, FormatVersionError)):
            decode_file_header(flip(data, bit), "x")
    for length in range(len(data)):
        with pytest.raises(DamagedFrame):
            decode_file_header(data[:length], "x")


def header_with(**changes: int) -> bytes:
    """A file header with some fields changed and a right checksum."""
    header = decode_file_header(encode_file_header(fmt.FILE_SEGMENT, STORE_ID, 1, 1, CLOCK), "x")
    raw = fmt.FILE_HEADER.pack(*{**header._asdict(), **changes}.values())[:-8]
    return raw + check64(raw).to_bytes(8, "little")


def test_a_newer_format_is_refused_by_name() -> None:
    with pytest.raises(FormatVersionError) as caught:
        decode_file_header(header_with(version=fmt.FORMAT_VERSION + 1), "segments/x.seg")
    for part in ("segments/x.seg", "version 2", "up to 1", "mldb 0.1.0", "Nothing was changed"):
        assert part in str(caught.value)


@pytest.mark.parametrize("field", ["version", "kind"])
def test_version_0_and_kind_0_are_never_valid(field: str) -> None:
    with pytest.raises(DamagedFrame, match="never valid"):
        decode_file_header(header_with(**{field: 0}), "x")


@given(st.binary(max_size=200))
def test_foreign_bytes_are_no_file_header(data: bytes) -> None:
    with pytest.raises((DamagedFrame, FormatVersionError)):
        decode_file_header(data, "x")


@given(st.binary(max_size=100))
def test_unpack_gives_a_value_or_value_error(data: bytes) -> None:
    try:
        unpack(data)
    except ValueError as error:
        assert not isinstance(error, MldbError)


def test_a_map_key_that_cannot_be_hashed_is_invalid_msgpack() -> None:
    """It was a TypeError, which some callers did not expect."""
    with pytest.raises(ValueError, match="msgpack"):
        unpack(b"\x81\x90\xc0")
