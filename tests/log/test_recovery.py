"""Repair: a torn tail is saved, reported, never appended to; what was durable is not torn."""

from __future__ import annotations

import errno
import itertools
import logging
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import CorruptError, StorageFullError, StorageIOError
from mldb.log import format as fmt
from mldb.log.active import chain_start
from mldb.log.file_header import decode_file_header, encode_file_header
from mldb.log.frame import is_zero
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import CommitRow
from mldb.log.lock import LOCK
from mldb.log.log import Log
from mldb.log.manifest import manifest_name, manifest_numbers
from mldb.log.recovery import Recovery
from mldb.log.scan import Cursor, scan
from mldb.log.segment import segment_name
from mldb.log.view import View
from tests.support.faults import FaultFileSystem
from tests.support.files import append_to, contents_of, read_file, replace_file
from tests.support.logs import CLOCK, SEGMENT_ID, content, flip, open_log, store
from tests.support.parts import examples
from tests.support.segments import segment_ids, segment_names


def killed(count: int, durability: str = "os") -> MemoryFileSystem:
    """A store with *count* commits whose process was killed."""
    fs = MemoryFileSystem()
    log = open_log(fs, durability=durability)
    for number in range(count):
        store(log, b"\x01%d" % number, b"value %d" % number * 20, number)
    fs.kill()
    return fs


def first_segment(fs: MemoryFileSystem) -> str:
    """The file of the first segment."""
    return segment_names(fs)[0]


def ends(fs: MemoryFileSystem) -> list[int]:
    """Where the batches of the first segment end; first, where the file header does."""
    name, segment_id = first_segment(fs), segment_ids(fs)[0]
    data = memoryview(read_file(fs, name))
    store_id = decode_file_header(bytes(data[: fmt.FILE_HEADER_SIZE]), name).store_id
    cursor = Cursor(fmt.FILE_HEADER_SIZE, 0, chain_start(store_id, segment_id))
    batches = scan(data, cursor, fmt.file_seed(store_id, segment_id), segment_id)
    return [cursor.offset, *(cursor.offset for _ in batches)]


def on_head(view: View) -> tuple[int, CommitRow]:
    return view.commit.epoch, view.commit


def expected(count: int) -> dict[bytes, bytes]:
    return {b"\x01%d" % number: b"value %d" % number * 20 for number in range(count)}


def saved_bytes(fs: MemoryFileSystem, report: Recovery) -> bytes:
    """What lost+found keeps, behind the file header that says where it comes from."""
    data = read_file(fs, report.saved_as)
    header = decode_file_header(data, report.saved_as)
    assert (header.kind, segment_name(header.segment_id)) == (fmt.FILE_LOST, report.file)
    return data[fmt.FILE_HEADER_SIZE :]


# --- torn tails -----------------------------------------------------------------------------------


@examples(60)
@given(
    count=st.integers(0, 4),
    cut=st.floats(0, 1),
    behind=st.sampled_from([b"", b"garbage", bytes(100), fmt.FRAME_MAGIC * 30]) | st.binary(),
)
def test_a_torn_tail_is_saved_and_reported_and_never_appended_to(
    count: int, cut: float, behind: bytes
) -> None:
    """Cut anywhere, with anything behind: the commits in front of the cut are there, and only they.

    Opening reports it and changes nothing; the first commit repairs. The file keeps its bytes, the
    next LSN is at the ceiling, and the next opening has nothing to do.
    """
    fs = killed(count)
    name = first_segment(fs)
    whole = read_file(fs, name)
    torn = whole[: fmt.FILE_HEADER_SIZE + round(cut * (len(whole) - fmt.FILE_HEADER_SIZE))] + behind
    replace_file(fs, name, torn)
    places = ends(fs)
    left, offset = len(places) - 1, places[-1]
    before = contents_of(fs)
    log = open_log(fs, durability="os")
    report = log.recovery
    assert content(log) == expected(left)
    assert log.head().commit.epoch == max(left - 1, 0)
    assert contents_of(fs) == before
    tail = torn[offset:]
    if not tail:
        assert report == Recovery()
        return
    assert (report.clean, report.file, report.offset) == (False, name, offset)
    assert report.dropped_bytes == len(tail)
    assert report.dropped_transactions >= 1
    assert report.reason
    assert report.saved_as == ""
    last, ceiling = log.head().commit.lsn, log.state.manifest.lsn_ceiling
    assert store(log, b"\x01new", b"new", 9) == ceiling + 1
    assert replace(log.recovery, saved_as="") == report
    report = log.recovery
    if any(tail):
        assert saved_bytes(fs, report) == tail
        assert f"-{offset}-" in report.saved_as
    else:
        assert (report.saved_as, fs.list("lost+found")) == ("", [])
    log.close()
    assert read_file(fs, name) == torn
    again = open_log(fs)
    assert again.recovery == Recovery()
    assert content(again) == expected(left) | {b"\x01new": b"new"}
    assert again.head().commit.lsn < last + 2 * fmt.LSN_CEILING_STEP


def test_transactions_that_are_dropped_with_a_tail_are_counted() -> None:
    fs = killed(6)
    places = ends(fs)
    name = first_segment(fs)
    data = read_file(fs, name)
    replace_file(fs, name, flip(data, 8 * (places[2] + 60)))
    log = open_log(fs)
    assert (log.recovery.dropped_transactions, log.recovery.offset) == (4, places[2])
    assert content(log) == expected(2)
    log.commit([], on_head)
    assert (log.recovery.dropped_transactions, log.recovery.offset) == (4, places[2])
    assert saved_bytes(fs, log.recovery) == flip(data, 8 * (places[2] + 60))[places[2] :]


def test_a_dropped_tail_is_one_warning_that_says_where_it_went(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fs = killed(2)
    name = first_segment(fs)
    append_to(fs, name, b"torn")
    with caplog.at_level(logging.WARNING, "mldb"):
        log = open_log(fs)
        log.commit([], on_head)
        report = log.recovery
    [message] = caplog.messages
    for part in (name, "4 bytes", f"offset {report.offset}", "never", report.saved_as):
        assert part in message


def test_a_tail_of_zeros_is_reported_and_not_kept() -> None:
    """What a file system leaves that had made the file longer and not written to it yet."""
    fs = killed(2)
    append_to(fs, first_segment(fs), bytes(5000))
    log = open_log(fs)
    log.commit([], on_head)
    report = log.recovery
    assert (report.clean, report.dropped_bytes, report.saved_as) == (False, 5000, "")
    assert fs.list("lost+found") == []


def test_reading_stops_in_front_of_a_torn_tail_and_changes_nothing() -> None:
    fs = killed(3)
    append_to(fs, first_segment(fs), b"torn")
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
    append_to(fs, first_segment(fs), fmt.FRAME_MAGIC + b"half a batch")
    assert content(log) == {b"\x01a": b"1"}
    assert log.recovery == Recovery()
    ceiling = log.state.manifest.lsn_ceiling
    assert ceiling > fmt.LSN_CEILING_STEP > first
    assert store(log, b"\x01b", b"2") == ceiling + 1
    assert log.recovery.dropped_bytes == len(fmt.FRAME_MAGIC + b"half a batch")
    assert content(log) == content(open_log(fs, "r")) == {b"\x01a": b"1", b"\x01b": b"2"}
    store(log, b"\x01c", b"3")
    assert log.recovery.dropped_bytes, "what happened stays readable"


def test_a_repair_that_fails_at_any_call_can_be_done_again() -> None:
    """The tail is dropped only once it is saved, whichever call of the repair fails."""
    torn = killed(2)
    tail = fmt.FRAME_MAGIC + b"torn"
    name = first_segment(torn)
    append_to(torn, name, tail)
    for number in itertools.count(1):
        fs = MemoryFileSystem(image=torn.image())
        fault = FaultFileSystem(fs)
        fault.fail("any", at=number, code=errno.ENOSPC)
        left = 2
        known = expected(left)
        try:
            store(open_log(fault, durability="os"), b"\x01first", b"first", 9)
            known[b"\x01first"] = b"first"
        except StorageFullError:
            pass
        except StorageIOError as error:  # a failed fsync is final: nothing here was durable
            if "closed behind commit 0" in str(error):
                left = 0
                known = {}
        fs.kill()
        log = open_log(fs)
        assert content(log) == known, number
        store(log, b"\x01new", b"new", 9)
        kept = [read_file(fs, f"lost+found/{saved}")[128:] for saved in fs.list("lost+found")]
        assert tail in kept, number
        log.close()
        assert read_file(fs, name) == read_file(torn, name)
        assert content(open_log(fs)) == known | {b"\x01new": b"new"}
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
    name = first_segment(fs)
    data = read_file(fs, name)
    first, behind = places[batch], places[batch + 1]
    for place in range(first + seed % 7, behind, 11):
        replace_file(fs, name, flip(data, 8 * place + seed % 8))
        error = refused(fs)
        assert error.file == name
        assert error.offset is not None
        assert first <= error.offset <= place, "the offset of the frame that is damaged"
        assert "was durable" in str(error)
    replace_file(fs, name, data)
    assert content(open_log(fs)) == expected(6)


def test_damage_in_the_last_commit_cannot_be_told_from_a_torn_write() -> None:
    """The limit of the rule: nothing behind it says that it was durable. It is kept aside."""
    fs = killed(3, "commit")
    place = ends(fs)[2]
    name = first_segment(fs)
    replace_file(fs, name, flip(read_file(fs, name), 8 * place + 100))
    log = open_log(fs)
    assert content(log) == expected(2)
    assert log.recovery.offset == place
    log.commit([], on_head)
    assert saved_bytes(fs, log.recovery)


def test_after_a_clean_close_every_byte_in_front_of_the_mark_counts() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    for number in range(3):
        store(log, b"\x01%d" % number, b"value %d" % number * 20, number)
    log.close()
    name = first_segment(fs)
    places, data = ends(fs), read_file(fs, name)
    for hint in fs.list("hints"):
        fs.unlink(f"hints/{hint}")
    for cut in (places[-1] - 1, places[2], places[0]):
        replace_file(fs, name, data[:cut])
        assert (refused(fs).file, refused(fs).offset) == (name, cut)
    for place in range(places[0], places[-1], 7):
        replace_file(fs, name, flip(data, 8 * place))
        try:
            log = open_log(fs)
        except CorruptError as error:
            found = error
        else:  # payloads in front of the mark are not verified before they are read
            with pytest.raises(CorruptError) as info:
                content(log)
            found = info.value
        fs.kill()
        assert found.file == name
        assert (found.offset or 0) <= place
    replace_file(fs, name, data + b"torn")
    log = open_log(fs)
    assert content(log) == expected(3)
    assert log.recovery.dropped_bytes == 4


def test_a_zeroed_page_in_front_of_durable_commits_is_corruption() -> None:
    fs = killed(8, "commit")
    name = first_segment(fs)
    data = bytearray(read_file(fs, name))
    places = ends(fs)
    data[places[2] : places[4]] = bytes(places[4] - places[2])
    replace_file(fs, name, bytes(data))
    error = refused(fs)
    assert error.offset == places[2]
    assert "offset" in str(error)


# --- a manifest that is gone ----------------------------------------------------------------------


def open_twice(fs: MemoryFileSystem) -> tuple[Log, Log]:
    return open_log(fs, "r"), open_log(fs)


def test_an_empty_segment_that_nobody_names_is_left_by_a_death_and_no_reason_to_refuse() -> None:
    fs = killed(1)
    store_id = open_log(fs, "r").store_id
    header = encode_file_header(
        fmt.FILE_SEGMENT, store_id, CLOCK, segment_id=SEGMENT_ID, base_lsn=1, published=2
    )
    for data in (b"", header[:50], header, flip(header, 77)):
        replace_file(fs, segment_name(SEGMENT_ID), data)
        fs.open(LOCK, "rw").pwritev([b"\0"], 1)  # announced, as by the one who died
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
    *_, older, newest = manifest_numbers(fs.list(""))
    later = segment_names(fs)[1:]
    known = content(log)
    fs.kill()
    fs.unlink(manifest_name(newest))  # the other one's, which only raised the ceiling
    assert content(open_log(fs, "r")) == known
    fs.unlink(manifest_name(older))
    error = refused(fs)
    assert error.file in later
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
