"""Sealing: a footer says what its segment holds, and no crash in between loses or doubles it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.errors import StorageError, StorageIOError
from mldb.log import format as fmt
from mldb.log.active import chain_start, hint_name
from mldb.log.file_header import decode_file_header
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.index.address import EMPTY_COMMIT
from mldb.log.log import Log
from mldb.log.manifest import install_manifest, manifest_numbers
from mldb.log.sealed import SealedPart
from mldb.log.segment import segment_name
from mldb.log.verify import verify
from tests.support.faults import FaultFileSystem
from tests.support.files import contents_of, read_file
from tests.support.logs import content, open_log, store
from tests.support.parts import examples
from tests.support.segments import segment_names


def outline(log: Log) -> object:
    """What the index says of everything that was committed."""
    view = log.head()
    versions = {key: view.versions(key) for key in view.keys(b"")}
    return view.commit, view.jumps, view.intervals, versions, list(view.commits(0, fmt.LSN_MAX))


def seal(log: Log) -> None:
    """Seal the active segment, as a commit does that no longer fits."""
    with writing(log):
        log.sequencer.catch_up()
        log.sequencer.seal()


@contextmanager
def writing(log: Log) -> Iterator[None]:
    """Be the one who writes, as a commit is."""
    with log.sequencer.lock.hold() as guard:
        log.state.begin_writing(guard.key)
        try:
            yield
        finally:
            log.state.end_writing()


def rewind(log: Log, lsn: int) -> None:
    """Commit nothing on an older parent."""
    row = log.head().commit_at(lsn) or EMPTY_COMMIT
    log.commit([], lambda view: (row.epoch, row))


@examples(60)
@given(st.lists(st.sampled_from(["store", "store", "seal", "rewind", "open"]), max_size=12))
def test_the_index_says_the_same_before_and_after_sealing(steps: list[str]) -> None:
    """In memory, in a footer, and read back from the file by another process."""
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    for number, step in enumerate(steps):
        lsns = [0, *(row.lsn for _, row in log.head().commits(0, fmt.LSN_MAX))]
        before = outline(log)
        if step == "store":
            store(log, b"\x01%d" % (number % 3), b"%d" % number, log.head().commit.epoch + 1)
        elif step == "rewind":
            rewind(log, lsns[len(lsns) // 2])
        elif step == "seal" and log.state.active.has_commits():
            seal(log)
            assert not log.state.active.has_commits()
            assert outline(log) == before
        elif step == "open":
            log.close()
            log = open_log(fs, durability="os")
            assert outline(log) == before
    assert outline(open_log(fs, "r")) == outline(log)
    assert verify(log).ok


def test_a_sealed_segment_is_described_by_the_manifest_and_never_changes() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs)
    lsns = [store(log, b"\x01%d" % number, b"x", 3 + number) for number in range(4)]
    seal(log)
    manifest = log.state.manifest
    [info] = manifest.segments
    name = segment_name(info.id)
    data = read_file(fs, name)
    assert (len(info.id), info.kind, info.origin) == (16, fmt.FILE_SEGMENT, log.store_id)
    assert decode_file_header(data, name).segment_id == info.id
    assert (info.length, info.index_file) == (len(data), "")
    assert (info.first_lsn, info.last_lsn) == (lsns[0], lsns[-1])
    assert (info.first_epoch, info.last_epoch) == (3, 6)
    active = manifest.active
    assert manifest.mark.segment == active != info.id
    assert (manifest.mark.lsn, manifest.mark.offset) == (lsns[-1], fmt.FILE_HEADER_SIZE)
    assert manifest.mark.chain == chain_start(log.store_id, active)
    header = decode_file_header(read_file(fs, segment_name(active)), segment_name(active))
    assert (header.segment_id, header.published) == (active, manifest.number)
    assert (header.file_id, header.base_lsn, header.store_id) == (0, lsns[-1] + 1, log.store_id)
    part = SealedPart(fs, info, "always", log.state.mappings)
    assert [row.lsn for row in part.index.commits(0, fmt.LSN_MAX)] == lsns
    assert part.index.entry_count() == 4
    store(log, b"\x01more", b"y", 9)
    log.close()
    assert read_file(fs, name) == data


def test_the_hint_of_a_segment_goes_when_it_is_sealed() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs)
    store(log, b"\x01a", b"1")
    log.close()
    assert fs.exists(hint_name(log.state.active.id))
    log = open_log(fs)
    seal(log)
    assert fs.list("hints") == []
    assert fs.list("pending") == []
    store(log, b"\x01b", b"2")
    log.close()
    assert fs.list("hints") == [hint_name(log.state.active.id).removeprefix("hints/")]


def test_a_seal_that_fails_at_any_call_loses_nothing_and_the_next_writer_finishes() -> None:
    """By an error, after which the same handle goes on, or by a death, after which others do."""
    for dies in (False, True):
        for number in itertools.count(1):
            fs = MemoryFileSystem()
            fault = FaultFileSystem(fs)
            log = open_log(fault, segment_entries=2)
            known = {b"\x01a": b"1", b"\x01b": b"2"}
            for key, data in known.items():
                store(log, key, data)
            fault.fail("any", at=number, forever=dies)
            try:
                store(log, b"\x01c", b"3")
                stored = True
            except StorageError:
                stored = False
            fault.heal()
            reader = open_log(fs, "r")
            assert content(reader).items() >= known.items(), number
            if dies:
                fs.kill()
                log = open_log(fs, segment_entries=2)
                reader = open_log(fs, "r")
            found = content(log)
            assert found.items() >= known.items(), number
            assert b"\x01c" in found or not stored
            if log.sequencer.syncing.failed is None:
                store(log, b"\x01d", b"4")
                assert content(reader) == content(log) == found | {b"\x01d": b"4"}
            found = content(log)
            log.close()
            fs.kill()
            again = open_log(fs)
            assert content(again) == found
            assert verify(again).ok, number
            assert again.recovery.dropped_bytes == 0
            if stored and fault.calls["any"] < number:
                break
        assert number > 20


def test_a_footer_without_its_manifest_is_taken_over_by_the_next_writer() -> None:
    fs = MemoryFileSystem()
    fault = FaultFileSystem(fs)
    log = open_log(fault)
    store(log, b"\x01a", b"1")
    fault.fail("link", forever=True)
    with pytest.raises(StorageError):
        seal(log)
    fs.kill()
    [name] = segment_names(fs)
    size = len(read_file(fs, name))
    reader = open_log(fs, "r")
    assert content(reader) == {b"\x01a": b"1"}
    assert manifest_numbers(fs.list("")) == [1]
    writer = open_log(fs)
    assert manifest_numbers(fs.list("")) == [1], "opening repairs nothing"
    store(writer, b"\x01b", b"2")
    assert writer.state.manifest.segments[0].length == size
    assert content(reader) == content(writer) == {b"\x01a": b"1", b"\x01b": b"2"}
    assert segment_names(fs)[0] == name
    assert len(read_file(fs, name)) == size


def test_a_manifest_that_appears_under_the_lock_is_another_machine_at_work() -> None:
    """flock over a network may lock nothing; then put-if-absent is what is left."""
    fs = MemoryFileSystem()
    log = open_log(fs)
    store(log, b"\x01a", b"1")
    before = contents_of(fs)
    with writing(log):
        log.sequencer.catch_up()
        manifest = log.state.manifest
        assert install_manifest(fs, replace(manifest, number=log.state.next_number), "x")
        with pytest.raises(StorageIOError, match="appeared although this process holds"):
            log.sequencer._sealer.install(manifest)
    [name] = segment_names(fs)
    assert contents_of(fs)[name] == before[name]


def test_a_segment_is_closed_in_front_of_what_is_given_up() -> None:
    """The index goes to a file of its own, and the LSNs of the rest are never used again."""
    fs = MemoryFileSystem()
    log = open_log(fs, durability="os")
    lsns = [store(log, b"\x01%d" % (number % 2), b"%d" % number, number) for number in range(6)]
    [name] = segment_names(fs)
    data = read_file(fs, name)
    ceiling = log.state.manifest.lsn_ceiling
    with writing(log):
        log.sequencer.catch_up()
        log.sequencer._sealer.close_at(lsns[2], lsns[2])
    assert content(log) == {b"\x010": b"2", b"\x011": b"1"}
    assert log.head().commit.epoch == 2
    [info] = log.state.manifest.segments
    assert info.index_file == name.replace(".seg", ".idx")
    assert info.length < len(data)
    assert info.last_lsn == lsns[2]
    assert store(log, b"\x01new", b"new", 2) == ceiling + 1 > lsns[-1]
    assert read_file(fs, name) == data
    assert content(open_log(fs, "r")) == content(log)
    assert verify(log).ok
