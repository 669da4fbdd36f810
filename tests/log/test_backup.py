"""Backups: one moment of a store that goes on, under an id of its own, sharing sealed segments."""

from __future__ import annotations

import itertools
import os
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import mldb
from mldb.errors import FormatVersionError, InvalidValueError, StorageError
from mldb.log import format as fmt
from mldb.log.backup import backup
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from mldb.log.manifest import manifest_numbers
from mldb.log.recovery import Recovery
from mldb.log.verify import verify
from tests.support.faults import FaultFileSystem
from tests.support.files import append_to, contents_of, replace_file
from tests.support.hooked import Hooked
from tests.support.logs import content, open_log, store
from tests.support.segments import segment_names


def contents(db: mldb.MLDatabase, lsn: mldb.Lsn) -> dict[str, object]:
    with db.at(lsn) as snapshot:
        return {name: snapshot[name].tolist() for name in snapshot}


def outline(db: mldb.MLDatabase) -> object:
    """Everything that a store holds, at every commit."""
    return [(event.lsn, event.epoch, event.time, contents(db, event.lsn)) for event in db.events()]


def test_a_backup_is_one_moment_of_a_store_that_is_written_to(tmp_path: Path) -> None:
    """Both tensors of every transaction, all transactions up to some moment, none behind it.

    The backup once scanned what a thread of its own handle had written and not yet published: that
    commit was then in the index twice, in the copy and in the store.
    """
    stop = threading.Event()
    begun = threading.Event()
    with mldb.open(tmp_path / "store", durability="os", segment_entries=40) as db:

        def write() -> None:
            for number in itertools.count():
                with db.transaction(epoch=number) as txn:
                    txn["a"], txn["b"] = [number], np.full(1000, number)
                begun.set()
                if stop.is_set():
                    return

        thread = threading.Thread(target=write)
        thread.start()
        begun.wait(30)
        try:
            before = []
            for turn in range(6):
                before.append(db.epoch)
                db.backup(tmp_path / f"copy {turn}")
        finally:
            stop.set()
            thread.join()
        written = [version.epoch for version in db.history("a")]
        assert written == list(range(db.epoch + 1))
        for turn, least in enumerate(before):
            with mldb.open(tmp_path / f"copy {turn}") as copy:
                last = copy.epoch
                assert least <= last <= db.epoch
                assert copy.recovery == Recovery()
                assert [int(copy["a"][0]), int(copy["b"][0])] == [last, last]
                assert [version.epoch for version in copy.history("a")] == list(range(last + 1))
                assert copy.verify().ok
        assert db.verify().ok


def files(path: Path) -> dict[str, int]:
    """The segments of a store with their inodes."""
    return {file.name: file.stat().st_ino for file in (path / "segments").iterdir()}


def test_sealed_segments_are_shared_and_both_stores_go_on_by_themselves(tmp_path: Path) -> None:
    with mldb.open(tmp_path / "store", segment_entries=3) as db:
        for number in range(8):
            db.store_tensor("a", [number], epoch=number)
        db.rewind(5)
        db.backup(tmp_path / "copy")
        known = outline(db)
        own, shared = files(tmp_path / "store"), files(tmp_path / "copy")
        *sealed, active = map(os.path.basename, segment_names(OsFileSystem(tmp_path / "store")))
        assert len(sealed) >= 2
        assert {name: shared[name] for name in sealed} == {name: own[name] for name in sealed}
        assert shared[active] != own[active]
        with mldb.open(tmp_path / "copy", segment_entries=3) as copy:
            assert outline(copy) == known
            assert copy.stats()["store_id"] != db.stats()["store_id"]
            for number in range(5):
                copy["only in the copy"] = number
                db["only in the store"] = number
            assert "only in the copy" not in db
            assert "only in the store" not in copy
            assert copy["a"].tolist() == db["a"].tolist() == [5]
            assert copy.verify().ok
            assert db.verify().ok
            copy.backup(tmp_path / "copy of the copy")
            expected = outline(copy)
        with mldb.open(tmp_path / "copy of the copy") as again:
            assert outline(again) == expected
            again["new"] = 1
            assert again.verify().ok


def test_a_folder_with_anything_in_it_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("precious")
    with mldb.open(tmp_path / "store") as db:
        with pytest.raises(InvalidValueError, match="not empty"):
            db.backup(tmp_path / "full")
        with pytest.raises(InvalidValueError, match="not empty"):
            db.backup(tmp_path / "store")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


# --- in memory: nothing is shared, everything is copied -------------------------------------------


def three_segments(fs: MemoryFileSystem) -> dict[bytes, bytes]:
    """A sealed segment, one closed in front of a torn tail, an active one; returns the content."""
    log = open_log(fs, durability="os", segment_entries=2)
    for number in range(3):
        store(log, b"\x01%d" % number, b"value %d" % number * 30, number)
    fs.kill()
    append_to(fs, segment_names(fs)[-1], b"torn")
    log = open_log(fs, durability="os")
    store(log, b"\x01last", b"last", 9)
    found = content(log)
    fs.kill()
    return found


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_copy_holds_what_the_store_does_whoever_makes_it(mode: str) -> None:
    fs, target = MemoryFileSystem(), MemoryFileSystem()
    known = three_segments(fs)
    before = contents_of(fs)
    log = open_log(fs, "r" if mode == "r" else "rw", durability="os")
    backup(log, target, None)
    assert {name: data for name, data in contents_of(fs).items() if name in before} == before
    assert manifest_numbers(target.list("")) == [1]
    copy = open_log(target)
    assert content(copy) == known
    assert list(copy.head().commits(0, fmt.LSN_MAX)) == list(log.head().commits(0, fmt.LSN_MAX))
    assert copy.recovery == Recovery()
    assert verify(copy).ok
    lsn = log.head().commit.lsn
    assert store(copy, b"\x01new", b"new", 9) > lsn
    copy.close()
    assert content(open_log(target)) == known | {b"\x01new": b"new"}


def test_an_empty_store_has_an_empty_copy() -> None:
    fs, target = MemoryFileSystem(), MemoryFileSystem()
    backup(open_log(fs), target, None)
    copy = open_log(target)
    assert (content(copy), copy.head().commit.lsn) == ({}, 0)
    store(copy, b"\x01a", b"1")
    assert verify(copy).ok


def test_until_it_is_whole_a_copy_is_no_store() -> None:
    """Whichever call fails: opening the target says that it is none, or finds all of it."""
    fs = MemoryFileSystem()
    known = three_segments(fs)
    log = open_log(fs, "r")
    outcomes = set()
    for number in itertools.count(1):
        target = MemoryFileSystem()
        fault = FaultFileSystem(target)
        fault.fail("any", at=number)
        try:
            backup(log, fault, None)
        except StorageError:
            failed = True
        else:
            failed = False
        target.kill()
        if manifest_numbers(target.list("")):
            assert content(open_log(target)) == known
            outcomes.add("whole")
        else:
            assert failed
            with pytest.raises(FormatVersionError, match="not an mldb store"):
                open_log(target, "r")
            outcomes.add("none")
        if fault.calls["any"] < number:
            break
    assert outcomes == {"none", "whole"}


def test_a_missing_segment_is_an_error_that_names_it() -> None:
    fs, target = MemoryFileSystem(), MemoryFileSystem()
    three_segments(fs)
    log = open_log(fs, "r")
    first = segment_names(fs)[0]
    fs.unlink(first)
    with pytest.raises(StorageError, match=first):
        backup(log, target, None)
    assert manifest_numbers(target.list("")) == []


def test_damage_is_copied_as_it_is_and_still_found() -> None:
    """A backup must not launder damage: nothing is encoded or checksummed anew."""
    fs, target = MemoryFileSystem(), MemoryFileSystem()
    three_segments(fs)
    first = segment_names(fs)[0]
    data = bytearray(contents_of(fs)[first])
    data[300] ^= 1
    replace_file(fs, first, bytes(data))
    backup(open_log(fs, "r"), target, None)
    [problem] = verify(open_log(target, "r")).problems
    assert (problem.file, problem.offset <= 300) == (first, True)


@pytest.mark.parametrize("entries", [1, 2, 100])
def test_a_backup_is_of_one_moment_whoever_seals_meanwhile(entries: int) -> None:
    """Another process commits, and perhaps rolls, before every call of it."""
    outcomes = set()
    for number in itertools.count(1):
        fs, target = MemoryFileSystem(), MemoryFileSystem()
        writer = open_log(fs, segment_entries=entries, durability="os")
        for place in range(4):
            store(writer, b"\x01%d" % place, b"value %d" % place * 30, place)
        hooked = Hooked(fs)
        log = open_log(hooked, "r")
        known = content(log)
        hooked.at(number, partial(store, writer, b"\x01new", b"x", 9))
        backup(log, target, None)
        copy = open_log(target)
        found = content(copy)
        assert found in (known, known | {b"\x01new": b"x"}), (number, hooked.happened)
        assert verify(copy).ok
        assert len(list(copy.head().commits(0, fmt.LSN_MAX))) == len(found)
        last = copy.head().commit.lsn
        assert store(copy, b"\x01more", b"y", 9) > last
        outcomes.add(len(found))
        if not hooked.happened:
            break
    assert number >= 4
    assert outcomes == {4, 5}
