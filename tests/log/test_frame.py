"""Frames: what is written is read back, and nothing else is taken for it."""

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
    Frame,
    Record,
    check_body,
    decode_commit,
    decode_entries,
    decode_header,
    encode_body,
    encode_commit,
    encode_head,
    hash_record,
    is_zero,
    make_entries,
    pack,
    unpack,
)
from mldb.log.index.address import CommitRow
from tests.support.logs import CLOCK, PLAIN, SEGMENT_ID, flip, records

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
        16 | fmt.MUST_UNDERSTAND, [Draft(b"k", 0, 0, 0, 3, TO_BE_HASHED, 0, b"a", b"")], [b"abc"], 3
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


@pytest.mark.parametrize("flags", range(256))
def test_flags_that_are_not_known_are_read_over(flags: int) -> None:
    """What others must understand is named in the manifest's features, not by a flag."""
    data = head(flags=flags)
    frame = decode_header(data, 0, 0, len(data))
    assert frame.header.flags == flags
    assert check_body(data, frame) == b"\xc0"


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


def test_only_manifests_have_a_body_of_version_2() -> None:
    kind = fmt.KIND_MANIFEST | fmt.MUST_UNDERSTAND
    newest = head(kind=kind, version=fmt.MANIFEST_BODY_VERSION)
    assert check_body(newest, decode_header(newest, 0, 0, len(newest))) == b"\xc0"
    newer = head(kind=kind, version=fmt.MANIFEST_BODY_VERSION + 1)
    with pytest.raises(FormatVersionError, match=r"kind 3 and body version 3.*reads up to 2"):
        check_body(newer, decode_header(newer, 0, 0, len(newer)))


# --- entries --------------------------------------------------------------------------------------


def keyed(rows: object, payload: int = 100) -> tuple[bytes, Frame]:
    """The body of a frame with these entries, and the frame; its payload is not there."""
    body = pack((rows, ["extra"]))
    header = fmt.FrameHeader(
        fmt.FRAME_MAGIC, 16, 1, fmt.FLAG_KEYED, len(body), 20, 6, 0, payload, 1, 1, 0, 0
    )
    return body, Frame(header, 128, 184, 184 + len(body), 256, 256 + payload)


SOUND = [b"\x01k", 1, 7, 8, 9, bytes(16), 5, b"attr", b"\x01owner"]


def test_an_entry_of_version_1_has_no_owner() -> None:
    old, more = SOUND[:8], [b"\x01l", *SOUND[1:]]
    for rows in ([old], [old, old], [old, more], [more, old]):
        found, extra = decode_entries(*keyed(rows))
        assert found == [Draft._make([*row, b""][:9]) for row in rows]
        assert extra == ["extra"]


@given(st.lists(st.lists(PLAIN, max_size=3), max_size=4), st.lists(PLAIN, max_size=2))
def test_what_follows_in_an_entry_or_a_body_is_read_over(
    more: list[list[object]], behind: list[object]
) -> None:
    rows = [[*SOUND, *items] for items in more]
    body, frame = keyed(rows)
    longer = pack([*unpack(body), *behind])
    assert decode_entries(longer, frame) == ([Draft._make(SOUND)] * len(rows), ["extra"])


@given(st.integers(0, 255), st.integers(0, 255))
def test_flags_and_encodings_of_entries_that_are_not_known_are_read_over(
    flags: int, encoding: int
) -> None:
    (draft,), _ = decode_entries(*keyed([[SOUND[0], flags, encoding, *SOUND[3:]]]))
    assert (draft.flags, draft.encoding) == (flags, encoding)


@pytest.mark.parametrize(
    "rows",
    [
        7,
        None,
        [7],
        [[]],
        [SOUND[:7]],
        [SOUND, SOUND[:7]],
        [dict(enumerate(SOUND))],
        ["nine char"],
        [b"nine byte"],
        [[*SOUND[:4], 93, *SOUND[5:]]],
        [[*SOUND[:8], bytes(fmt.KEY_BYTES_MAX + 1)]],
        [[*SOUND[:8], "text"]],
        [[*SOUND[:8], None, "more"]],
    ],
)
def test_impossible_entries_are_damage(rows: object) -> None:
    with pytest.raises(DamagedFrame, match=r"cannot be decoded|out of range"):
        decode_entries(*keyed(rows))


def test_a_body_that_is_no_array_of_two_is_damage() -> None:
    frame = keyed([])[1]
    values: list[object] = [None, 7, [], [[]], {}, "ab", b"ab"]
    for value in values:
        with pytest.raises(DamagedFrame):
            decode_entries(pack(value), frame)


def test_more_entries_than_the_limit_are_damage() -> None:
    assert len(decode_entries(*keyed([SOUND] * fmt.ENTRIES_MAX))[0]) == fmt.ENTRIES_MAX
    with pytest.raises(DamagedFrame, match="65537 entries"):
        decode_entries(*keyed([SOUND] * (fmt.ENTRIES_MAX + 1)))


def test_entries_lie_where_their_payload_does() -> None:
    draft = Draft._make(SOUND)
    ((key, entry),) = make_entries([draft], 3, SEGMENT_ID, 128, 256)
    assert (key, entry.commit_lsn, entry.segment, entry.frame) == (b"\x01k", 3, SEGMENT_ID, 128)
    assert (entry.offset, entry.length, entry.owner) == (264, 9, b"\x01owner")


@given(st.binary(max_size=100))
def test_zeros_are_told_from_everything_else(data: bytes) -> None:
    assert is_zero(data) == is_zero(memoryview(data)) == (not any(data))


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
    st.sampled_from([b"", bytes(range(16))]),
    st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=2),
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
    commit_id: bytes,
    extra: dict[str, object],
) -> None:
    row = CommitRow(lsn, parent, epoch, time, clock, 128, 256, commit_id)
    data = encode_commit(row, count, digest, durable, 11, extra)
    frame = decode_header(data, 256, 11, 256 + len(data), 256)
    assert frame.end == 256 + len(data)
    assert (frame.header.lsn, frame.header.commit_lsn) == (lsn, lsn)
    commit = decode_commit(check_body(data, frame, 256))
    assert commit == (
        *(parent, epoch, time, clock, count, digest, durable, extra),
        *(commit_id, []),
    )


COMMIT: list[object] = [1, 2, CLOCK, CLOCK, 3, bytes(16), 1, {}, bytes(16), []]


def test_a_commit_of_version_1_has_no_id() -> None:
    commit = decode_commit(pack(COMMIT[:8]))
    assert list(commit) == [*COMMIT[:8], b"", []]
    for length in (*range(8), 9):
        with pytest.raises(DamagedFrame):
            decode_commit(pack(COMMIT[:length]))


@given(st.lists(PLAIN, min_size=1, max_size=3), st.dictionaries(st.text(max_size=3), PLAIN))
def test_what_follows_in_a_commit_and_what_else_it_says_is_read_over(
    more: list[object], extra: dict[str, object]
) -> None:
    commit = decode_commit(pack([*COMMIT[:7], extra, bytes(16), [5, 6], *more]))
    assert repr(commit.extra) == repr(extra)
    assert (commit.id, commit.merged) == (bytes(16), [5, 6])


@pytest.mark.parametrize("place", range(10))
@given(value=PLAIN)
def test_a_commit_with_a_strange_field_is_taken_or_damaged(place: int, value: object) -> None:
    fields = list(COMMIT)
    fields[place] = value
    try:
        commit = decode_commit(pack(fields))
    except DamagedFrame:
        return
    assert type(value) is type(COMMIT[place])
    assert len(commit.id) in (0, 16)
    assert fmt.TIME_MIN <= commit.clock <= fmt.TIME_MAX
    assert 0 <= commit.durable <= fmt.LSN_MAX


# --- MessagePack ----------------------------------------------------------------------------------


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
