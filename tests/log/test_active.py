"""The active segment: the right file, whole up to its mark, or an error that says what is there."""

from __future__ import annotations

import pytest

from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.active import Active, chain_start, hint_name, open_active
from mldb.log.checksum import digest128
from mldb.log.frame import encode_file_header
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.manifest import Manifest
from mldb.log.segment import segment_name
from mldb.log.state import load_newest
from tests.support.files import read_file, replace_file
from tests.support.logs import CLOCK, flip, open_log, store

NAME = segment_name(1)


def closed(count: int = 3) -> MemoryFileSystem:
    """A store with *count* commits, their mark and their hint."""
    fs = MemoryFileSystem()
    log = open_log(fs)
    for number in range(count):
        store(log, b"\x01%d" % number, b"x" * 20, number)
    log.close()
    return fs


def manifest_of(fs: MemoryFileSystem) -> Manifest:
    return load_newest(fs, [])


def opened(fs: MemoryFileSystem, distrusted: list[str] | None = None) -> Active:
    found = [] if distrusted is None else distrusted
    return open_active(fs, manifest_of(fs), writable=True, verify="first", distrusted=found)


def test_the_first_batch_continues_from_store_and_segment() -> None:
    """FORMAT.md section 4, and no two segments of any stores alike."""
    store_id = bytes(range(16))
    assert chain_start(store_id, 1) == digest128(store_id + b"\1\0\0\0\0\0\0\0")
    starts = {chain_start(bytes([own]) * 16, number) for own in range(4) for number in range(4)}
    assert len(starts) == 16


def test_names_sort_as_numbers_do() -> None:
    names = [hint_name(number) for number in (1, 9, 10, 4_000_000_000)]
    assert names == sorted(names)
    assert names[0] == "hints/0000000001.idx"


def test_it_starts_from_its_hint_or_from_its_first_batch_and_nothing_is_scanned() -> None:
    fs = closed()
    mark = manifest_of(fs).mark
    active = opened(fs)
    assert (active.cursor.offset, active.cursor.last_lsn) == (mark.offset, mark.lsn)
    assert (active.cursor.chain, active.cursor.durable) == (mark.chain, mark.lsn)
    assert (active.count, active.has_commits(), len(active.parts())) == (3, True, 2)
    fs.unlink(hint_name(1))
    active = opened(fs)
    assert (active.cursor.offset, active.cursor.last_lsn) == (fmt.FILE_HEADER_SIZE, 0)
    assert (active.cursor.durable, active.verify_after) == (mark.lsn, mark.lsn)
    assert (active.count, active.has_commits(), len(active.parts())) == (0, False, 1)
    assert active.verify_until == len(read_file(fs, NAME))


def test_a_hint_that_is_not_believed_leaves_no_trace_but_its_report() -> None:
    fs = closed()
    data = read_file(fs, hint_name(1))
    for place in range(0, len(data), 97):
        replace_file(fs, hint_name(1), flip(data, 8 * place))
        distrusted: list[str] = []
        active = opened(fs, distrusted)
        assert (active.hinted, active.jumps, active.count) == (None, [], 0)
        assert (active.cursor.offset, active.cursor.last_lsn) == (fmt.FILE_HEADER_SIZE, 0)
        [report] = distrusted
        assert report.startswith(hint_name(1))


def test_a_segment_shorter_than_its_mark_was_cut() -> None:
    fs = closed()
    mark = manifest_of(fs).mark
    data = read_file(fs, NAME)
    for size in (fmt.FILE_HEADER_SIZE, mark.offset - 1):
        replace_file(fs, NAME, data[:size])
        with pytest.raises(CorruptError, match=f"{mark.offset} bytes .*commit {mark.lsn}") as info:
            opened(fs)
        assert (info.value.file, info.value.offset) == (NAME, size)
    replace_file(fs, NAME, data + b"more")
    assert opened(fs).cursor.offset == mark.offset


@pytest.mark.parametrize("size", [0, 1, 127])
def test_a_segment_without_a_whole_header_is_damaged(size: int) -> None:
    fs = closed()
    replace_file(fs, NAME, read_file(fs, NAME)[:size])
    with pytest.raises(CorruptError, match="header of the active segment is damaged") as info:
        opened(fs)
    assert (info.value.file, info.value.offset) == (NAME, 0)


def test_every_flipped_bit_of_the_header_that_is_checked_is_found() -> None:
    fs = closed()
    data = read_file(fs, NAME)
    for place in range(8, fmt.FILE_HEADER_SIZE):
        replace_file(fs, NAME, flip(data, 8 * place + place % 8))
        with pytest.raises(CorruptError) as info:
            opened(fs)
        assert info.value.file == NAME


@pytest.mark.parametrize(
    ("kind", "own", "number", "problem"),
    [
        (fmt.FILE_SEGMENT, True, 2, "segment 2"),
        (fmt.FILE_SEGMENT, False, 1, "of store 0000"),
        (fmt.FILE_COMPACTED, True, 1, "compacted segment 1"),
        (fmt.FILE_HINT, True, 1, "hint 1"),
    ],
)
def test_another_file_in_its_place_is_refused(
    kind: int, own: bool, number: int, problem: str
) -> None:
    fs = closed()
    store_id = manifest_of(fs).store_id if own else bytes(16)
    header = encode_file_header(kind, store_id, number, 1, CLOCK)
    replace_file(fs, NAME, header + read_file(fs, NAME)[fmt.FILE_HEADER_SIZE :])
    with pytest.raises(CorruptError, match=f"this is .*{problem}") as info:
        opened(fs)
    assert (info.value.file, info.value.offset) == (NAME, 0)
    assert "Nothing was changed" in str(info.value)
