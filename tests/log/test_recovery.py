"""Repair: a torn tail is saved, reported, never appended to; what was durable is not torn."""

from __future__ import annotations

import errno
import itertools
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mldb.errors import CorruptError, StorageFullError, StorageIOError
from mldb.log import format as fmt
from mldb.log.active import chain_start
from mldb.log.frame import decode_file_header, encode_file_header, is_zero
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.log import Log
from mldb.log.manifest import manifest_name, manifest_numbers
from mldb.log.recovery import Recovery
from mldb.log.scan import Cursor, scan
from mldb.log.segment import segment_name
from tests.support.faults import FaultFileSystem
from tests.support.files import append_to, contents_of, read_file, replace_file
from tests.support.logs import CLOCK, content, flip, open_log, store

SEGMENT = segment_name(1)


def killed(count: int, durability: str = "os") -> MemoryFileSystem:
    """A store with *count* commits whose process was killed."""
    fs = MemoryFileSystem()
    log = open_log(fs, durability=durability)
    for number in range(count):
        store(log, b"\x01%d" % number, b"value %d" % number * 20, number)
    fs.kill()
    return fs


def ends(fs: MemoryFileSystem) -> list[int]:
    """Where the batches of the first segment end; first, where the file header does."""
    data = memoryview(read_file(fs, SEGMENT))
    store_id = decode_file_header(bytes(data[: fmt.FILE_HEADER_SIZE]), SEGMENT).store_id
    cursor = Cursor(fmt.FILE_HEADER_SIZE, 0, chain_start(store_id, 1))
    batches = scan(data, cursor, fmt.file_seed(store_id, 1), 1)
    return [cursor.offset, *(cursor.offset for _ in batches)]


def expected(count: int) -> dict[bytes, bytes]:
    return {b"\x01%d" % number: b"value %d" % number * 20 for number in range(count)}


def saved_bytes(fs: MemoryFileSystem, report: Recovery) -> bytes:
    """What lost+found keeps, behind the file header that says where it comes from."""
    data = read_file(fs, report.saved_as)
    header = decode_file_header(data, report.saved_as)
    assert (header.kind, header.file_id) == (fmt.FILE_LOST, 1)
    return data[fmt.FILE_HEADER_SIZE :]


# --- torn tails -----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    count=st.integers(0, 4),
    cut=st.floats(0, 1),
    behind=st.sampled_from([b"", b"garbage", bytes(100), fmt.FRAME_MAGIC * 30]) | st.binary(),
)
def test_a_torn_tail_is_saved_and_reported_and_never_appended_to(
    count: int, cut: float, behind: bytes
) -> None:
    """Cut anywhere, with anything behind: the commits in front of the cut are there, and only they.

    The file keeps its bytes, the next LSN is far ahead, and the next opening has nothing to do.
    """
    fs = killed(count)
    whole = read_file(fs, SEGMENT)
    torn = whole[: fmt.FILE_HEADER_SIZE + round(cut * (len(whole) - fmt.FILE_HEADER_SIZE))] + behind
    replace_file(fs, SEGMENT, torn)
    places = ends(fs)
    left, offset = len(places) - 1, places[-1]
    log = open_log(fs, durability="os")
    report = log.recovery
    assert content(log) == expected(left)
    assert log.head().commit.epoch == max(left - 1, 0)
    tail = torn[offset:]
    if not tail:
        assert report == Recovery()
        return
    assert (report.clean, report.file, report.offset) == (False, SEGMENT, offset)
    assert report.dropped_bytes == len(tail)
    assert report.dropped_transactions >= 1
    assert report.reason
    if any(tail):
        assert saved_bytes(fs, report) == tail
        assert f"-{offset}-" in report.saved_as
    else:
        assert (report.saved_as, fs.list("lost+found")) == ("", [])
    last = log.head().commit.lsn
    assert store(log, b"\x01new", b"new", 9) > last + fmt.LSN_JUMP
    log.close()
    assert read_file(fs, SEGMENT) == torn
    again = open_log(fs)
    assert again.recovery == Recovery()
    assert content(again) == expected(left) | {b"\x01new": b"new"}
    assert again.head().commit.lsn < last + 2 * fmt.LSN_JUMP


def test_transactions_that_are_dropped_with_a_tail_are_counted() -> None:
    fs = killed(6)
    places = ends(fs)
    data = read_file(fs, SEGMENT)
    replace_file(fs, SEGMENT, flip(data, 8 * (places[2] + 60)))
    log = open_log(fs)
    assert (log.recovery.dropped_transactions, log.recovery.offset) == (4, places[2])
    assert content(log) == expected(2)
    assert saved_bytes(fs, log.recovery) == flip(data, 8 * (places[2] + 60))[places[2] :]


def test_a_dropped_tail_is_one_warning_that_says_where_it_went(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fs = killed(2)
    append_to(fs, SEGMENT, b"torn")
    with caplog.at_level(logging.WARNING, "mldb"):
        report = open_log(fs).recovery
    [message] = caplog.messages
    for part in (SEGMENT, "4 bytes", f"offset {report.offset}", "never", report.saved_as):
        assert part in message


def test_a_tail_of_zeros_is_reported_and_not_kept() -> None:
    """What a file system leaves that had made the file longer and not written to it yet."""
    fs = killed(2)
    append_to(fs, SEGMENT, bytes(5000))
    report = open_log(fs).recovery
    assert (report.clean, report.dropped_bytes, report.saved_as) == (False, 5000, "")
    assert fs.list("lost+found") == []


def test_reading_stops_in_front_of_a_torn_tail_and_changes_nothing() -> None:
    fs = killed(3)
    append_to(fs, SEGMENT, b"torn")
    before = contents_of(fs)
    reader = open_log(fs, "r")
    assert content(reader) == expected(3)
    assert reader.recovery == Recovery()
    assert contents_of(fs) == before
    writer = open_log(fs)
    store(writer, b"\x01new", b"new", 9)
    assert content(reader) == content(writer) == expected(3) | {b"\x01new": b"new"}


def test_a_live_writer_repairs_what_another_one_died_in_the_middle_of() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    first = store(log, b"\x01a", b"1")
    append_to(fs, SEGMENT, fmt.FRAME_MAGIC + b"half a batch")
    assert content(log) == {b"\x01a": b"1"}
    assert log.recovery == Recovery()
    assert store(log, b"\x01b", b"2") > first + fmt.LSN_JUMP
    assert log.recovery.dropped_bytes == len(fmt.FRAME_MAGIC + b"half a batch")
    assert content(log) == content(open_log(fs, "r")) == {b"\x01a": b"1", b"\x01b": b"2"}
    store(log, b"\x01c", b"3")
    assert log.recovery.dropped_bytes, "what happened stays readable"


def test_a_repair_that_fails_at_any_call_can_be_done_again() -> None:
    """The tail is dropped only once it is saved, whichever call of the repair fails."""
    torn = killed(2)
    tail = fmt.FRAME_MAGIC + b"torn"
    append_to(torn, SEGMENT, tail)
    for number in itertools.count(1):
        fs = MemoryFileSystem(image=torn.image())
        fault = FaultFileSystem(fs)
        fault.fail("any", at=number, code=errno.ENOSPC)
        left = 2
        try:
            open_log(fault)
        except StorageFullError:
            pass
        except StorageIOError as error:  # a failed fsync is final: nothing here was durable
            assert "closed behind commit 0" in str(error)
            left = 0
        fs.kill()
        log = open_log(fs)
        assert content(log) == expected(left)
        kept = [read_file(fs, f"lost+found/{name}")[128:] for name in fs.list("lost+found")]
        assert tail in kept, number
        store(log, b"\x01new", b"new", 9)
        log.close()
        assert read_file(fs, SEGMENT) == read_file(torn, SEGMENT)
        if fault.calls["any"] < number:
            break
    assert number > 30


# --- corruption -----------------------------------------------------------------------------------


def refused(fs: MemoryFileSystem) -> CorruptError:
    """Opening raises in both modes and changes nothing; return the error."""
    before = contents_of(fs)
    errors = []
    for mode in ("r", "rw"):
        with pytest.raises(CorruptError) as info:
            open_log(fs, mode)
        fs.kill()
        errors.append(info.value)
        assert contents_of(fs) == before
    assert str(errors[0]) == str(errors[1])
    assert "nothing was" in str(errors[0]).lower()
    return errors[0]


@pytest.mark.parametrize("batch", range(5))
def test_damage_in_front_of_a_durable_mark_is_corruption_and_nothing_is_dropped(
    batch: int, seed: int
) -> None:
    """Each commit says that the one before it was durable: only the last may be torn."""
    fs = killed(6, "commit")
    places = ends(fs)
    data = read_file(fs, SEGMENT)
    first, behind = places[batch], places[batch + 1]
    for place in range(first + seed % 7, behind, 11):
        replace_file(fs, SEGMENT, flip(data, 8 * place + seed % 8))
        error = refused(fs)
        assert error.file == SEGMENT
        assert error.offset is not None
        assert first <= error.offset <= place, "the offset of the frame that is damaged"
        assert "was durable" in str(error)
    replace_file(fs, SEGMENT, data)
    assert content(open_log(fs)) == expected(6)


def test_damage_in_the_last_commit_cannot_be_told_from_a_torn_write() -> None:
    """The limit of the rule: nothing behind it says that it was durable. It is kept aside."""
    fs = killed(3, "commit")
    place = ends(fs)[2]
    replace_file(fs, SEGMENT, flip(read_file(fs, SEGMENT), 8 * place + 100))
    log = open_log(fs)
    assert content(log) == expected(2)
    assert log.recovery.offset == place
    assert saved_bytes(fs, log.recovery)


def test_after_a_clean_close_every_byte_in_front_of_the_mark_counts() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    for number in range(3):
        store(log, b"\x01%d" % number, b"value %d" % number * 20, number)
    log.close()
    places, data = ends(fs), read_file(fs, SEGMENT)
    for name in fs.list("hints"):
        fs.unlink(f"hints/{name}")
    for cut in (places[-1] - 1, places[2], places[0]):
        replace_file(fs, SEGMENT, data[:cut])
        assert (refused(fs).file, refused(fs).offset) == (SEGMENT, cut)
    for place in range(places[0], places[-1], 7):
        replace_file(fs, SEGMENT, flip(data, 8 * place))
        try:
            log = open_log(fs)
        except CorruptError as error:
            found = error
        else:  # payloads in front of the mark are not verified before they are read
            with pytest.raises(CorruptError) as info:
                content(log)
            found = info.value
        fs.kill()
        assert found.file == SEGMENT
        assert (found.offset or 0) <= place
    replace_file(fs, SEGMENT, data + b"torn")
    log = open_log(fs)
    assert content(log) == expected(3)
    assert log.recovery.dropped_bytes == 4


def test_a_zeroed_page_in_front_of_durable_commits_is_corruption() -> None:
    fs = killed(8, "commit")
    data = bytearray(read_file(fs, SEGMENT))
    places = ends(fs)
    data[places[2] : places[4]] = bytes(places[4] - places[2])
    replace_file(fs, SEGMENT, bytes(data))
    error = refused(fs)
    assert error.offset == places[2]
    assert "offset" in str(error)


# --- a manifest that is gone ----------------------------------------------------------------------


def open_twice(fs: MemoryFileSystem) -> tuple[Log, Log]:
    return open_log(fs, "r"), open_log(fs)


def test_an_empty_segment_behind_the_active_one_is_left_by_a_death_and_no_reason_to_refuse() -> (
    None
):
    fs = killed(1)
    store_id = open_log(fs, "r").store_id
    header = encode_file_header(fmt.FILE_SEGMENT, store_id, 2, 1, CLOCK)
    for data in (b"", header[:50], header, flip(header, 77)):
        replace_file(fs, segment_name(2), data)
        for log in open_twice(fs):
            assert content(log) == expected(1)
            log.close()


def test_the_deletion_of_the_newest_manifest_is_noticed_by_what_it_named() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, segment_entries=1, durability="os")
    for number in range(3):
        store(log, b"\x01%d" % number, b"x", number)
    store_more = open_log(fs, durability="os")
    for number in range(2):
        store(store_more, b"\x01more%d" % number, b"x", 5)
    newest = manifest_numbers(fs)[-1]
    fs.kill()
    fs.unlink(manifest_name(newest))
    error = refused(fs)
    assert error.file == segment_name(3)
    assert "MANIFEST" in str(error)


# --- bytes ----------------------------------------------------------------------------------------


@given(st.integers(0, 100), st.integers(0, 99) | st.none())
def test_only_zeros_are_zero(length: int, place: int | None) -> None:
    data = bytearray(length)
    if place is not None and place < length:
        data[place] = 1
    assert is_zero(memoryview(data)) == (place is None or place >= length)


def test_one_bit_far_behind_is_not_zero() -> None:
    data = bytearray(17 << 20)
    assert is_zero(memoryview(data))
    data[-1] = 128
    assert not is_zero(memoryview(data))
