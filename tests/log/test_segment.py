"""A segment file: what is handed out was verified, damage names its place, views live on."""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import CorruptError, FormatVersionError, StorageIOError
from mldb.log import format as fmt
from mldb.log import segment as segment_module
from mldb.log.file_header import encode_file_header, header_of
from mldb.log.frame import Draft, Record, check_body
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.memory_disk import MemoryFile
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import File, OpenMode
from mldb.log.index.address import Entry
from mldb.log.index.opened import index_source, open_index
from mldb.log.segment import REMAP_BYTES, Segment, SegmentGoneError, segment_name
from mldb.options import Verify
from tests.support.files import replace_file
from tests.support.logs import (
    CLOCK,
    OLD_SEGMENT_ID,
    SEGMENT_ID,
    STORE_ID,
    Built,
    build_segment,
    flip,
)
from tests.support.parts import examples

NAME = segment_name(SEGMENT_ID)
BLOCK = 1 << fmt.BLOCK_LOG2_MIN


def segment_of(built: Built, data: bytes | None = None) -> tuple[MemoryFileSystem, Segment]:
    """The segment as a file of a store, perhaps with other bytes in it."""
    fs = MemoryFileSystem()
    fs.mkdir("segments")
    replace_file(fs, NAME, built.data if data is None else data)
    return fs, Segment(fs, SEGMENT_ID, STORE_ID, len(built.data))


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
                [Draft(b"\x01%d" % number, 0, 0, 0, len(data), b"", 0, b"", b"")],
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


@examples(60)
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


def test_threads_that_come_first_at_once_forget_nothing_of_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each had blocks of its own, and the last to note them took the place of the others."""
    stored = max(STORED, key=lambda one: len(one.data))
    size = len(stored.data)
    _, segment = segment_of(LARGE)
    together = threading.Barrier(2)
    real = check_body

    def both(*arguments: Any) -> bytes:
        together.wait(10)
        return real(*arguments)

    monkeypatch.setattr(segment_module, "check_body", both)
    half = size // 2
    threads = [
        threading.Thread(target=segment.payload, args=(stored.entry, low, high, "first"))
        for low, high in ((0, half), (half, size))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert size > 2 * BLOCK
    assert segment.is_verified(stored.entry, 0, size)


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
    segment = Segment(fs, SEGMENT_ID, STORE_ID, len(LARGE.data))
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
    with pytest.raises(SegmentGoneError, match="is missing") as info:
        segment.payload(STORED[0].entry, 0, 1, "first")
    assert info.value.file == NAME


def test_a_mapping_is_made_longer_when_the_segment_has_grown() -> None:
    fs, _ = segment_of(LARGE)
    end = LARGE.written[0].end
    segment = Segment(fs, SEGMENT_ID, STORE_ID, end)
    told: list[int] = []
    segment = Segment(
        fs, SEGMENT_ID, STORE_ID, end, on_map=lambda: told.append(segment.mapped_bytes)
    )
    first = segment.payload(STORED[0].entry, 0, 10, "first")
    assert segment.mapped_bytes == end
    segment.valid = len(LARGE.data)
    size = len(STORED[2].data)
    assert segment.payload(STORED[2].entry, 0, size, "first") == STORED[2].data
    assert first == STORED[0].data[:10]
    assert told == [end, len(LARGE.data)]


def header(kind: int, store_id: bytes, segment_id: bytes) -> bytes:
    return encode_file_header(kind, store_id, CLOCK, segment_id=segment_id, base_lsn=1)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (
            header(fmt.FILE_SEGMENT, STORE_ID, bytes([7]) * 16),
            "segment 07070707070707070707070707070707 of store 0001",
        ),
        (header(fmt.FILE_SEGMENT, bytes(16), SEGMENT_ID), "segment 1011.* of store 0000"),
        (header(fmt.FILE_SEGMENT, STORE_ID, OLD_SEGMENT_ID), "segment 0000000001 of store 0001"),
        (header(fmt.FILE_INDEX, STORE_ID, SEGMENT_ID), "index 1011"),
        (flip(LARGE.data[: fmt.FILE_HEADER_SIZE], 8 * 33), "header of segment 1011.* is damaged"),
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
    with pytest.raises(CorruptError, match=r"segment 1011.* of store"):
        index_source(fs, NAME, STORE_ID, SEGMENT_ID, fmt.FILE_INDEX)


def test_a_frame_behind_the_end_is_damage_and_not_a_cut_file() -> None:
    """An index that names it is wrong; the file has all that it should have."""
    end = len(LARGE.data)
    for offset in (end - 8, end, end + 8, 1 << 40):
        for grows in (False, True):
            _, segment = segment_of(LARGE)
            segment.grows = grows
            with pytest.raises(CorruptError, match="the frame is damaged"):
                segment.frame(offset)


# --- a segment that grows, and no room for mappings -----------------------------------------------


class Limited(MemoryFileSystem):
    """Counts mappings, and refuses them when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.mappings = 0
        self.code = 0

    def open(self, name: str, mode: OpenMode) -> MemoryFile:
        return cast("MemoryFile", Counted(super().open(name, mode), self))


class Counted:
    """A file whose mappings are counted and may fail."""

    def __init__(self, inner: File, fs: Limited) -> None:
        self._inner = inner
        self._fs = fs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _count(self) -> None:
        if self._fs.code:
            raise StorageIOError("no room", errno=self._fs.code)
        self._fs.mappings += 1

    def map(self, length: int) -> memoryview:
        self._count()
        return self._inner.map(length)

    def map_private(self, offset: int, length: int) -> memoryview:
        self._count()
        return self._inner.map_private(offset, length)


def limited(built: Built, *, grows: bool = False) -> tuple[Limited, Segment]:
    fs = Limited()
    fs.mkdir("segments")
    replace_file(fs, NAME, built.data)
    return fs, Segment(fs, SEGMENT_ID, STORE_ID, len(built.data), grows=grows)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("verify", ["first", "always", "never"])
def test_without_room_for_a_mapping_the_range_asked_for_is_read(code: int, verify: Verify) -> None:
    """The whole segment was copied into private memory instead, for each read."""
    fs, segment = limited(LARGE)
    fs.code = code
    for stored in STORED:
        for low, high in ((0, len(stored.data)), (3, 9), (5, 5)):
            found = segment.payload(stored.entry, low, high, verify)
            assert found == stored.data[low:high]
            assert found.nbytes == high - low
            assert memoryview(found.obj).nbytes <= high - low + 2 * BLOCK
        private = segment.private(stored.entry, verify)
        assert private == stored.data
        assert not private.readonly
        frame, body = segment.frame(stored.entry.frame)
        assert (frame.payload_offset, stored.key in body) == (stored.entry.offset, True)
    assert (segment.mapped_bytes, fs.mappings) == (0, 0)


def test_damage_is_found_without_a_mapping_too() -> None:
    stored = STORED[0]
    for place, message in ((stored.entry.offset, "stored block"), (stored.entry.frame, "damaged")):
        fs, segment = limited(replace(LARGE, data=flip(LARGE.data, 8 * place)))
        fs.code = errno.ENOMEM
        with pytest.raises(CorruptError, match=message):
            segment.payload(stored.entry, 0, 10, "first", "the name")
        assert segment.payload(stored.entry, 0, 10, "never").nbytes == 10


def test_another_error_than_no_room_is_told() -> None:
    fs, segment = limited(LARGE)
    fs.code = errno.EIO
    with pytest.raises(StorageIOError, match="no room"):
        segment.payload(STORED[0].entry, 0, 10, "first")
    with pytest.raises(StorageIOError, match="no room"):
        segment.private(STORED[0].entry, "never")


def test_a_file_cut_below_what_is_read_is_told_without_a_mapping() -> None:
    stored = STORED[2]
    fs, segment = limited(replace(LARGE, data=LARGE.data[: stored.entry.offset + 20]))
    fs.code = errno.ENOMEM
    segment.valid = len(LARGE.data)
    with pytest.raises(CorruptError, match="was cut"):
        segment.payload(stored.entry, 0, 100, "never")


def test_a_growing_segment_is_mapped_anew_only_when_it_grew_by_half() -> None:
    """Each array that was kept had a mapping of its own, since every commit made the file longer.

    10,000 arrays of a store that grows by their size keep at most a handful of mappings.
    """
    count = 10_000
    batches = [
        [
            Record(
                16 | fmt.MUST_UNDERSTAND,
                [Draft(b"\x01k", 0, 0, 0, 400, b"", 0, b"", b"")],
                [number.to_bytes(4, "big") * 100],
                400,
            )
        ]
        for number in range(count)
    ]
    built = build_segment(batches)
    fs = Limited()
    fs.mkdir("segments")
    header = built.data[: fmt.FILE_HEADER_SIZE]
    replace_file(fs, NAME, header)
    writer = MemoryFileSystem.open(fs, NAME, "rw")
    segment = Segment(fs, SEGMENT_ID, STORE_ID, len(header), grows=True)
    kept: list[memoryview] = []
    for written in built.written:
        start = written.row.start
        writer.pwritev([built.data[start : written.end]], start)
        segment.valid = written.end
        ((_, entry),) = written.entries
        kept.append(segment.payload(entry, 0, entry.length, "first"))
    assert all(bytes(view[:4]) == number.to_bytes(4, "big") for number, view in enumerate(kept))
    assert len(built.data) > 4 * REMAP_BYTES
    assert fs.mappings <= 16, fs.mappings


def test_a_sealed_segment_is_mapped_once() -> None:
    fs, segment = limited(LARGE)
    for stored in STORED:
        segment.payload(stored.entry, 0, len(stored.data), "first")
        segment.frame(stored.entry.frame)
    assert fs.mappings == 1
    segment.unmap()
    segment.payload(STORED[0].entry, 0, 1, "first")
    assert fs.mappings == 2


@pytest.mark.parametrize("size", [1, 1000, BLOCK, 1 << 30])
def test_pieces_are_the_stored_bytes_whatever_is_mapped(size: int) -> None:
    _, segment = segment_of(LARGE)
    for stored in STORED:
        assert b"".join(segment.pieces(stored.entry, size)) == stored.data
        assert all(len(piece) <= size for piece in segment.pieces(stored.entry, size))
    fs, cut = segment_of(LARGE)
    replace_file(fs, NAME, LARGE.data[: STORED[0].entry.offset + 20])
    with pytest.raises(CorruptError, match="it was cut"):
        b"".join(cut.pieces(STORED[0].entry, size))


# --- what a file says of itself -------------------------------------------------------------------


def test_the_header_of_a_file_is_there_or_not() -> None:
    fs, _ = segment_of(LARGE)
    found = header_of(fs, NAME)
    assert found is not None
    assert (found.segment_id, found.store_id, found.published) == (SEGMENT_ID, STORE_ID, 1)
    for data in (b"", LARGE.data[:127], flip(LARGE.data, 99), b"foreign" * 30):
        replace_file(fs, NAME, data)
        assert header_of(fs, NAME) is None
    fs.unlink(NAME)
    with pytest.raises(StorageIOError):
        header_of(fs, NAME)


def test_a_segment_of_version_1_is_found_by_its_number() -> None:
    old = build_segment([[]], segment=OLD_SEGMENT_ID)
    fs = MemoryFileSystem()
    fs.mkdir("segments")
    replace_file(fs, "segments/0000000001.seg", old.data)
    segment = Segment(fs, OLD_SEGMENT_ID, STORE_ID, len(old.data))
    frame, _ = segment.frame(fmt.FILE_HEADER_SIZE)
    assert frame.end == len(old.data)
    assert segment_name(OLD_SEGMENT_ID) == "segments/0000000001.seg"
    assert segment_name(SEGMENT_ID) == f"segments/{SEGMENT_ID.hex()}.seg"
