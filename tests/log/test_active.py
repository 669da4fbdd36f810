"""The active segment: the right file, whole up to its mark, or an error that says what is there."""

from __future__ import annotations

import pytest

from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.active import Active, chain_start, hint_name, open_active
from mldb.log.checksum import digest128
from mldb.log.file_header import encode_file_header
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.manifest import Manifest
from mldb.log.newest import load_newest
from tests.support.files import read_file, replace_file
from tests.support.logs import CLOCK, OLD_SEGMENT_ID, SEGMENT_ID, flip, open_log, store
from tests.support.segments import segment_names


def closed(count: int = 3) -> MemoryFileSystem:
    """A store with *count* commits, their mark and their hint."""
    fs = MemoryFileSystem()
    log = open_log(fs)
    for number in range(count):
        store(log, b"\x01%d" % number, b"x" * 20, number)
    log.close()
    return fs


def name_of(fs: MemoryFileSystem) -> str:
    """The file of the active segment."""
    return segment_names(fs)[-1]


def hint_of(fs: MemoryFileSystem) -> str:
    return hint_name(manifest_of(fs).active)


def manifest_of(fs: MemoryFileSystem) -> Manifest:
    return load_newest(fs, [])


def opened(fs: MemoryFileSystem, distrusted: list[str] | None = None) -> Active:
    found = [] if distrusted is None else distrusted
    return open_active(fs, manifest_of(fs), writable=True, verify="first", distrusted=found)


def test_the_first_batch_continues_from_store_and_segment() -> None:
    """FORMAT.md section 4, and no two segments of any stores alike."""
    store_id = bytes(range(16))
    assert chain_start(store_id, SEGMENT_ID) == digest128(store_id + SEGMENT_ID)
    assert chain_start(store_id, OLD_SEGMENT_ID) == digest128(store_id + b"\1\0\0\0\0\0\0\0")
    ids = [
        make(number)
        for make in (fmt.number_id, lambda own: bytes([own]) * 16)
        for number in range(4)
    ]
    starts = {chain_start(bytes([own]) * 16, segment) for own in range(4) for segment in ids}
    assert len(starts) == 32


def test_hints_are_named_by_their_segment_and_those_of_version_1_sort_as_numbers_do() -> None:
    assert hint_name(SEGMENT_ID) == "hints/101112131415161718191a1b1c1d1e1f.idx"
    names = [hint_name(fmt.number_id(number)) for number in (1, 9, 10, 4_000_000_000)]
    assert names == sorted(names)
    assert names[0] == "hints/0000000001.idx"


def test_it_starts_from_its_hint_or_from_its_first_batch_and_nothing_is_scanned() -> None:
    fs = closed()
    mark = manifest_of(fs).mark
    active = opened(fs)
    assert (active.cursor.offset, active.cursor.last_lsn) == (mark.offset, mark.lsn)
    assert (active.cursor.chain, active.cursor.durable) == (mark.chain, mark.lsn)
    assert (active.count, active.has_commits(), len(active.parts())) == (3, True, 2)
    fs.unlink(hint_of(fs))
    active = opened(fs)
    assert (active.cursor.offset, active.cursor.last_lsn) == (fmt.FILE_HEADER_SIZE, 0)
    assert (active.cursor.durable, active.verify_after) == (mark.lsn, mark.lsn)
    assert (active.count, active.has_commits(), len(active.parts())) == (0, False, 1)
    assert active.verify_until == len(read_file(fs, name_of(fs)))


def test_a_hint_that_is_not_believed_leaves_no_trace_but_its_report() -> None:
    fs = closed()
    data = read_file(fs, hint_of(fs))
    for place in range(0, len(data), 97):
        replace_file(fs, hint_of(fs), flip(data, 8 * place))
        distrusted: list[str] = []
        active = opened(fs, distrusted)
        assert (active.hinted, active.jumps, active.count) == (None, [], 0)
        assert (active.cursor.offset, active.cursor.last_lsn) == (fmt.FILE_HEADER_SIZE, 0)
        [report] = distrusted
        assert report.startswith(hint_of(fs))


def test_a_segment_shorter_than_its_mark_was_cut() -> None:
    fs = closed()
    mark = manifest_of(fs).mark
    data = read_file(fs, name_of(fs))
    for size in (fmt.FILE_HEADER_SIZE, mark.offset - 1):
        replace_file(fs, name_of(fs), data[:size])
        with pytest.raises(CorruptError, match=f"{mark.offset} bytes .*commit {mark.lsn}") as info:
            opened(fs)
        assert (info.value.file, info.value.offset) == (name_of(fs), size)
    replace_file(fs, name_of(fs), data + b"more")
    assert opened(fs).cursor.offset == mark.offset


@pytest.mark.parametrize("size", [0, 1, 127])
def test_a_segment_without_a_whole_header_is_damaged(size: int) -> None:
    fs = closed()
    replace_file(fs, name_of(fs), read_file(fs, name_of(fs))[:size])
    with pytest.raises(CorruptError, match="header of the active segment is damaged") as info:
        opened(fs)
    assert (info.value.file, info.value.offset) == (name_of(fs), 0)


def test_every_flipped_bit_of_the_header_that_is_checked_is_found() -> None:
    fs = closed()
    data = read_file(fs, name_of(fs))
    for place in range(8, fmt.FILE_HEADER_SIZE):
        replace_file(fs, name_of(fs), flip(data, 8 * place + place % 8))
        with pytest.raises(CorruptError) as info:
            opened(fs)
        assert info.value.file == name_of(fs)


@pytest.mark.parametrize(
    ("kind", "own", "same", "problem"),
    [
        (fmt.FILE_SEGMENT, True, False, "segment 1011"),
        (fmt.FILE_SEGMENT, False, True, "of store 0000"),
        (fmt.FILE_COMPACTED, True, True, "compacted segment "),
        (fmt.FILE_HINT, True, True, "hint "),
    ],
)
def test_another_file_in_its_place_is_refused(
    kind: int, own: bool, same: bool, problem: str
) -> None:
    fs = closed()
    manifest = manifest_of(fs)
    header = encode_file_header(
        kind,
        manifest.store_id if own else bytes(16),
        CLOCK,
        segment_id=manifest.active if same else SEGMENT_ID,
        base_lsn=1,
        published=1,
    )
    replace_file(fs, name_of(fs), header + read_file(fs, name_of(fs))[fmt.FILE_HEADER_SIZE :])
    with pytest.raises(CorruptError, match=f"this is .*{problem}") as info:
        opened(fs)
    assert (info.value.file, info.value.offset) == (name_of(fs), 0)
    assert "Nothing was changed" in str(info.value)
