"""A segment file: what is handed out was verified, damage names its place, views live on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mldb.errors import CorruptError, FormatVersionError
from mldb.log import format as fmt
from mldb.log.frame import Draft, Record, encode_file_header
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from mldb.log.index.address import Entry
from mldb.log.segment import Segment, Verify, index_source, open_index, segment_name
from tests.support.files import replace_file
from tests.support.logs import CLOCK, STORE_ID, Built, build_segment, flip

NAME = segment_name(1)
BLOCK = 1 << fmt.BLOCK_LOG2_MIN


def segment_of(built: Built, data: bytes | None = None) -> tuple[MemoryFileSystem, Segment]:
    """The segment as a file of a store, perhaps with other bytes in it."""
    fs = MemoryFileSystem()
    fs.mkdir("segments")
    replace_file(fs, NAME, built.data if data is None else data)
    return fs, Segment(fs, 1, STORE_ID, len(built.data))


@dataclass(frozen=True)
class Stored:
    """One version, where it is, and what it must read as."""

    key: bytes
    entry: Entry
    data: bytes


def build(sizes: list[int]) -> tuple[Built, list[Stored]]:
    """A segment with one commit for each payload, in blocks of the smallest size."""
    payloads = [bytes((7 * size + place) % 251 for place in range(size)) for size in sizes]
    batches = [
        [
            Record(
                16 | fmt.MUST_UNDERSTAND,
                [Draft(b"\x01%d" % number, 0, 0, 0, len(data), b"", 0, b"")],
                [data],
                len(data),
                block_log2=fmt.BLOCK_LOG2_MIN,
            )
        ]
        for number, data in enumerate(payloads)
    ]
    built = build_segment(batches)
    entries = [batch.entries[0] for batch in built.written]
    return built, [
        Stored(key, entry, data) for (key, entry), data in zip(entries, payloads, strict=True)
    ]


LARGE, STORED = build([3 * BLOCK + 100, 10, 2 * BLOCK])


@settings(max_examples=60)
@given(
    st.sampled_from(STORED),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["first", "always", "never"]),
)
def test_any_part_of_a_version_reads_as_it_was_written(
    stored: Stored, one: float, two: float, verify: Verify
) -> None:
    _, segment = segment_of(LARGE)
    low, high = sorted(round(part * len(stored.data)) for part in (one, two))
    for _ in range(2):
        found = segment.payload(stored.entry, low, high, verify)
        assert found == stored.data[low:high]
        assert found.readonly


@given(
    st.sampled_from(STORED), st.integers(0, 3 * BLOCK + 99), st.integers(0, 7), st.integers(0, 3)
)
def test_a_damaged_block_is_found_by_whoever_reads_it_and_by_nobody_else(
    stored: Stored, place: int, bit: int, block: int
) -> None:
    place %= len(stored.data)
    start = stored.entry.offset
    _, segment = segment_of(LARGE, flip(LARGE.data, 8 * (start + place) + bit))
    low = min(block * BLOCK, len(stored.data))
    high = min(low + BLOCK, len(stored.data))
    if low <= place < high:
        for _ in range(2):
            with pytest.raises(CorruptError) as info:
                segment.payload(stored.entry, low, high, "first", "the name")
            assert (info.value.file, info.value.key) == (NAME, "the name")
            damaged = start + place // BLOCK * BLOCK
            assert info.value.offset == damaged
            assert "the name" in str(info.value)
        assert segment.payload(stored.entry, low, high, "never") != stored.data[low:high]
    else:
        assert segment.payload(stored.entry, low, high, "first") == stored.data[low:high]
    for other in STORED:
        if other is not stored:
            whole = segment.payload(other.entry, 0, len(other.data), "first")
            assert whole == other.data


def test_verification_happens_once_or_always_as_asked() -> None:
    stored = STORED[0]
    for verify, notices in (("first", False), ("always", True)):
        fs, segment = segment_of(LARGE)
        size = len(stored.data)
        assert segment.payload(stored.entry, 0, size, verify) == stored.data  # type: ignore[arg-type]
        file = fs.open(NAME, "rw")
        file.pwritev([b"\xff"], stored.entry.offset + 5)
        if notices:
            with pytest.raises(CorruptError):
                segment.payload(stored.entry, 0, size, verify)  # type: ignore[arg-type]
        else:
            assert segment.payload(stored.entry, 0, size, verify)[5] == 255  # type: ignore[arg-type]


def test_the_head_of_a_frame_is_verified_before_its_checksums_are_believed() -> None:
    stored = STORED[1]
    frame = stored.entry.frame
    for place in range(frame, stored.entry.offset):
        _, segment = segment_of(LARGE, flip(LARGE.data, 8 * place + 3))
        with pytest.raises(CorruptError) as info:
            segment.payload(stored.entry, 0, 10, "first", "the name")
        assert (info.value.file, info.value.offset, info.value.key) == (NAME, frame, "the name")


def test_frames_come_back_checked_and_only_where_one_starts() -> None:
    _, segment = segment_of(LARGE)
    for stored in STORED:
        frame, body = segment.frame(stored.entry.frame)
        assert frame.payload_offset == stored.entry.offset
        assert stored.key in body
    for offset in (0, STORED[0].entry.frame + 8, len(LARGE.data), len(LARGE.data) - 8):
        with pytest.raises(CorruptError, match="frame is damaged") as info:
            segment.frame(offset)
        assert info.value.offset == offset


# --- private views --------------------------------------------------------------------------------


def test_writing_into_a_private_view_reaches_nobody() -> None:
    stored = STORED[0]
    fs, segment = segment_of(LARGE)
    private = segment.private(stored.entry, "first")
    assert bytes(private) == stored.data
    assert not private.readonly
    private[:] = bytes(len(private))
    assert segment.private(stored.entry, "first") == stored.data
    assert segment.payload(stored.entry, 0, len(stored.data), "always") == stored.data
    assert fs.open(NAME, "r").pread(len(LARGE.data), 0) == LARGE.data


def test_a_private_view_is_verified_as_asked() -> None:
    stored = STORED[0]
    _, segment = segment_of(LARGE, flip(LARGE.data, 8 * stored.entry.offset))
    with pytest.raises(CorruptError):
        segment.private(stored.entry, "first")
    assert segment.private(stored.entry, "never")[1:] == stored.data[1:]


def test_a_private_view_of_what_was_cut_is_refused() -> None:
    stored = STORED[2]
    fs, segment = segment_of(LARGE)
    segment.payload(stored.entry, 0, 10, "first")
    replace_file(fs, NAME, LARGE.data[: stored.entry.offset + 20])
    with pytest.raises(CorruptError, match="was cut") as info:
        segment.private(stored.entry, "first", "the name")
    assert (info.value.file, info.value.offset) == (NAME, stored.entry.offset + 20)


# --- the file -------------------------------------------------------------------------------------


def test_views_outlive_the_mapping_the_file_and_the_folder_entry(tmp_path: object) -> None:
    fs = OsFileSystem(str(tmp_path))
    fs.mkdir("segments")
    replace_file(fs, NAME, LARGE.data)
    segment = Segment(fs, 1, STORE_ID, len(LARGE.data))
    assert segment.mapped_bytes == 0
    views = [
        (segment.payload(stored.entry, 0, len(stored.data), "first"), stored.data)
        for stored in STORED
    ]
    assert segment.mapped_bytes == len(LARGE.data)
    segment.unmap()
    fs.unlink(NAME)
    assert segment.mapped_bytes == 0
    assert all(view == data for view, data in views)
    with pytest.raises(CorruptError, match="is missing") as info:
        segment.payload(STORED[0].entry, 0, 1, "first")
    assert info.value.file == NAME


def test_a_mapping_is_made_longer_when_the_segment_has_grown() -> None:
    fs, _ = segment_of(LARGE)
    end = LARGE.written[0].end
    segment = Segment(fs, 1, STORE_ID, end)
    told: list[int] = []
    segment = Segment(fs, 1, STORE_ID, end, on_map=lambda: told.append(segment.mapped_bytes))
    first = segment.payload(STORED[0].entry, 0, 10, "first")
    assert segment.mapped_bytes == end
    segment.valid = len(LARGE.data)
    size = len(STORED[2].data)
    assert segment.payload(STORED[2].entry, 0, size, "first") == STORED[2].data
    assert first == STORED[0].data[:10]
    assert told == [end, len(LARGE.data)]


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (encode_file_header(fmt.FILE_SEGMENT, STORE_ID, 2, 1, CLOCK), "segment 2 of store 0001"),
        (encode_file_header(fmt.FILE_SEGMENT, bytes(16), 1, 1, CLOCK), "segment 1 of store 0000"),
        (encode_file_header(fmt.FILE_INDEX, STORE_ID, 1, 1, CLOCK), "index 1"),
        (flip(LARGE.data[: fmt.FILE_HEADER_SIZE], 8 * 33), "header of segment 1 is damaged"),
    ],
)
def test_another_file_under_the_name_of_a_segment_is_refused(header: bytes, problem: str) -> None:
    _, segment = segment_of(LARGE, header + LARGE.data[fmt.FILE_HEADER_SIZE :])
    with pytest.raises(CorruptError, match=problem) as info:
        segment.payload(STORED[0].entry, 0, 10, "first")
    assert (info.value.file, info.value.offset) == (NAME, 0)


def test_a_newer_format_is_named_and_not_taken_for_damage() -> None:
    header = bytearray(LARGE.data[: fmt.FILE_HEADER_SIZE])
    header[:8] = b"another!"
    _, segment = segment_of(LARGE, bytes(header) + LARGE.data[fmt.FILE_HEADER_SIZE :])
    with pytest.raises(FormatVersionError, match=NAME):
        segment.frame(STORED[0].entry.frame)


@pytest.mark.parametrize("size", [0, 100, 128, len(LARGE.data) - 1])
def test_a_cut_segment_says_how_long_it_is_and_should_be(size: int) -> None:
    _, segment = segment_of(LARGE, LARGE.data[:size])
    with pytest.raises(CorruptError, match=f"is {size} bytes long") as info:
        segment.frame(STORED[0].entry.frame)
    assert str(len(LARGE.data)) in str(info.value)
    assert (info.value.file, info.value.offset) == (NAME, size)


def test_an_index_is_looked_for_where_one_is() -> None:
    fs, segment = segment_of(LARGE)
    with pytest.raises(CorruptError, match="no index frame here") as info:
        open_index(segment, STORED[0].entry.frame, "first")
    assert (info.value.file, info.value.offset) == (NAME, STORED[0].entry.frame)
    with pytest.raises(CorruptError, match="segment 1 of store"):
        index_source(fs, NAME, STORE_ID, 1, fmt.FILE_INDEX)
