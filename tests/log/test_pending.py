"""Spilled segments: published as they were written, or swept when nobody alive owns them."""

from __future__ import annotations

import errno
from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import StorageFullError
from mldb.log import format as fmt
from mldb.log.aside import OVERLAP_BYTES
from mldb.log.frame import TO_BE_HASHED, Draft, Record, decode_entries
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.memory_disk import MemoryFile
from mldb.log.log import Log
from mldb.log.manifest import PENDING
from mldb.log.pending import PendingSegment
from mldb.log.readers import READERS, sweep_dead
from mldb.log.segment import segment_name
from mldb.log.verify import verify
from mldb.options import Options
from tests.support.faults import FaultFileSystem
from tests.support.files import contents_of, read_file, replace_file
from tests.support.logs import content, open_log, records, store
from tests.support.parts import examples

STORED = 16 | fmt.MUST_UNDERSTAND


def record(key: bytes, data: bytes | bytearray) -> Record:
    return Record(
        STORED, [Draft(key, 0, 0, 0, len(data), TO_BE_HASHED, 0, b"attr")], [data], len(data)
    )


def publish(log: Log, pending: PendingSegment, *more: Record) -> int:
    return log.commit(list(more), lambda view: (view.commit.epoch, view.commit), pending).lsn


def events(log: Log) -> list[tuple[object, ...]]:
    """The last commit's frames: kinds, entries and payloads."""
    view = log.head()
    found: list[tuple[object, ...]] = []
    [(row, frames, file)] = log.batches(view, view.commit.lsn, view.commit.lsn)
    content = read_file(log.fs, file)
    for frame, body in frames:
        head = frame.header
        data = content[frame.payload_offset :][: head.payload_length]
        entries = decode_entries(body, frame) if head.flags & fmt.FLAG_KEYED else None
        found.append((head.kind, head.lsn - row.lsn, entries, bytes(data)))
    return found


@examples(40)
@given(st.lists(st.tuples(records(), st.booleans()), max_size=5))
def test_a_published_segment_holds_what_a_plain_commit_would(
    parts: list[tuple[Record, bool]],
) -> None:
    """Spilled records come first, those that were not spilled behind them."""
    fs = MemoryFileSystem()
    every_kind = frozenset(range(fmt.MUST_UNDERSTAND))
    log = Log(fs, Options(durability="os"), known=every_kind)
    store(log, b"\x01a", b"before")
    for number, (part, _) in enumerate(parts):  # a key has one version in a batch
        part.drafts = [
            draft._replace(key=draft.key + b"%d/%d" % (number, place))
            for place, draft in enumerate(part.named_drafts())
        ]
    spilled = [part for part, spills in parts if spills]
    others = [part for part, spills in parts if not spills]
    before = log.head().commit
    plain = [replace(part, drafts=list(part.drafts)) for part in [*spilled, *others]]
    log.commit(plain, lambda view: (1, view.commit))
    expected = events(log)
    pending = log.pending_segment()
    for part in spilled:
        pending.add([part])
    publish(log, pending, *others)
    assert events(log) == expected
    assert log.head().commit.parent > before.lsn
    assert fs.list(PENDING) == []
    assert verify(log).ok
    log.close()
    assert verify(Log(fs, Options(mode="r"), known=every_kind)).ok


def test_the_buffers_may_change_once_they_are_added() -> None:
    log = open_log(MemoryFileSystem())
    small, large = bytearray(b"small"), bytearray(b"large" * 1_000_000)
    pending = log.pending_segment()
    pending.add([record(b"\x01small", small), record(b"\x01large", large)])
    small[:], large[:5] = b"later", b"later"
    publish(log, pending)
    assert content(log) == {b"\x01small": b"small", b"\x01large": b"large" * 1_000_000}


def test_records_get_places_together_or_not_at_all() -> None:
    """A write that fails leaves bytes behind the last one, and what comes next is written there."""
    for at in (1, 2, 3):
        fs = FaultFileSystem(MemoryFileSystem())
        log = open_log(fs)
        pending = log.pending_segment()
        pending.add([record(b"\x01a", b"1" * 500)])
        fs.fail("pwritev", at=at, code=errno.ENOSPC, effect="half")
        more = [(b"\x01b", b"2" * 300), (b"\x01c", b"3" * OVERLAP_BYTES), (b"\x01d", b"4" * 700)]
        with pytest.raises(StorageFullError):
            pending.add([record(*item) for item in more])
        assert len(pending.placed) == 1
        assert pending.tail == pending.placed[0].end
        places = pending.add([record(*item) for item in more[::-1]])
        assert places == pending.placed[1:]
        publish(log, pending)
        assert content(log) == {b"\x01a": b"1" * 500} | dict(more)
        assert verify(log).ok


def test_what_is_written_is_sent_to_the_disk_in_large_pieces() -> None:
    """Each byte once, so that the sync at the end finds little: that took half of the time."""
    asked: list[tuple[int, int]] = []
    fs = MemoryFileSystem()
    fs.mkdir(PENDING)
    pending = PendingSegment(fs, "owner")

    def note(self: MemoryFile, offset: int, count: int) -> None:
        asked.append((offset, count))

    with patch.object(MemoryFile, "start_writeback", note):
        for number in range(40):
            pending.add([record(b"\x01%d" % number, bytes(300_000))])
        pending.add([record(b"\x01large", bytes(9 << 20))])
    ends = [offset + count for offset, count in asked]
    assert [offset for offset, _ in asked] == [fmt.FILE_HEADER_SIZE, *ends[:-1]]
    assert all(count >= 4 << 20 for _, count in asked)
    assert ends[-1] == pending.tail
    pending.discard()


def test_nobody_sees_a_spilled_segment_before_it_is_published() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs)
    store(log, b"\x01a", b"1")
    pending = log.pending_segment()
    pending.add([record(b"\x01b", b"2" * 5000)])
    reader = open_log(fs, "r")
    assert content(reader) == {b"\x01a": b"1"}
    assert fs.list(PENDING) == [pending.name.removeprefix("pending/")]
    assert len(fs.list("segments")) == 1
    store(log, b"\x01c", b"3")  # others go on meanwhile
    publish(log, pending)
    assert content(reader) == content(log)
    assert sorted(content(log)) == [b"\x01a", b"\x01b", b"\x01c"]


def test_a_discarded_one_leaves_nothing_and_may_be_discarded_again() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs)
    before = contents_of(fs)
    pending = log.pending_segment()
    pending.add([record(b"\x01b", b"2" * 5000)])
    pending.discard()
    pending.discard()
    left = contents_of(fs).keys() - before.keys()
    assert left == {f"readers/{log.registration.name}"}


def test_discarding_behind_the_publication_takes_nothing_back() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs)
    pending = log.pending_segment()
    pending.add([record(b"\x01b", b"2" * 5000)])
    publish(log, pending)
    pending.discard()
    assert content(open_log(fs, "r")) == {b"\x01b": b"2" * 5000}
    assert log.state.active.id == pending.id
    assert fs.exists(segment_name(pending.id))


def test_a_file_that_cannot_be_removed_is_no_error() -> None:
    fs = MemoryFileSystem()
    fault = FaultFileSystem(fs)
    log = open_log(fault)
    pending = log.pending_segment()
    fault.fail("unlink")
    pending.discard()
    assert len(fs.list(PENDING)) == 1


def test_a_commit_that_is_refused_leaves_the_store_as_it_was() -> None:
    fs = MemoryFileSystem()
    fault = FaultFileSystem(fs)
    log = open_log(fault)
    store(log, b"\x01a", b"1")
    pending = log.pending_segment()
    pending.add([record(b"\x01b", b"2" * 5000)])
    fault.fail("link", code=errno.ENOSPC)
    with pytest.raises(StorageFullError):
        publish(log, pending)
    pending.discard()
    assert content(log) == {b"\x01a": b"1"}
    assert fs.list(PENDING) == []
    store(log, b"\x01c", b"3")
    assert content(open_log(fs, "r")) == content(log) == {b"\x01a": b"1", b"\x01c": b"3"}


def test_sweeping_removes_all_but_the_segments_of_the_living() -> None:
    """What a living process has in its hands starts with the name of its registration."""
    fs = MemoryFileSystem()
    for folder in (PENDING, READERS):
        fs.mkdir(folder)
    alive, dead, own = "a" * 32, "b" * 32, "c" * 32
    held = fs.lock(f"{READERS}/{alive}")
    assert held.try_acquire()
    keep = [f"{name}-{rest}" for name in (alive, own) for rest in ("1.seg", "12.tmp")]
    gone = [f"{dead}-1.seg", f"{alive}.idx", "MANIFEST-0000000009-x", "x.seg", dead]
    for name in [*keep, *gone]:
        replace_file(fs, f"{PENDING}/{name}", b"data")
    sweep_dead(fs, own, fmt.LSN_MAX)
    assert fs.list(PENDING) == sorted(keep)
    held.close()
    sweep_dead(fs, own, fmt.LSN_MAX)
    assert fs.list(PENDING) == sorted(name for name in keep if name.startswith(own))
    assert fs.list(READERS) == []


def test_a_handle_sweeps_before_it_spills_and_when_it_closes() -> None:
    """What a dead process left is gone then; what a living one spilled is not."""
    fs = MemoryFileSystem()
    open_log(fs).close()
    living = open_log(fs)
    kept = living.pending_segment()
    dead = f"{PENDING}/{'b' * 32}-1.seg"
    for closes in (False, True):
        replace_file(fs, dead, b"half")
        log = open_log(fs)
        assert fs.exists(dead)
        if closes:
            store(log, b"\x01a", b"1")
            log.close()
        else:
            log.pending_segment().discard()
        assert fs.list(PENDING) == [kept.name.removeprefix("pending/")]
    publish(living, kept)


def test_names_are_never_used_twice() -> None:
    fs = MemoryFileSystem()
    one, two = open_log(fs), open_log(fs)
    pending = [log.pending_segment().name for log in (one, two) for _ in range(3)]
    assert len(set(pending)) == 6
    for log, names in ((one, pending[:3]), (two, pending[3:])):
        assert all(name.startswith(f"{PENDING}/{log.registration.name}-") for name in names)
