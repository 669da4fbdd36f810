"""How a store comes to exist: made once, whoever makes it at the same time, and whole or not."""

from __future__ import annotations

import contextlib
import itertools
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mldb
from mldb.errors import FormatVersionError, LockedError, StorageError
from mldb.log import format as fmt
from mldb.log.birth import FOLDERS, restore_folders
from mldb.log.file_header import decode_file_header
from mldb.log.fs.crash_states import crash_states
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.log import Log
from mldb.log.manifest import load_manifest, manifest_name, manifest_numbers
from mldb.log.verify import verify
from tests.support.faults import FaultFileSystem
from tests.support.files import contents_of, read_file, replace_file
from tests.support.hooked import Hooked
from tests.support.logs import content, open_log, store
from tests.support.processes import Child, Line
from tests.support.segments import segment_names
from tests.support.threads import in_thread


def test_the_first_manifest_names_one_empty_segment_and_its_session_has_begun() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs)
    manifest = load_manifest(fs, 1)
    [name] = segment_names(fs)
    header = decode_file_header(read_file(fs, name), name)
    assert (manifest.segments[:], manifest.kept, manifest.base is not None) == ((), None, True)
    assert (manifest.lsn_floor, manifest.lsn_ceiling) == (0, 1 + fmt.LSN_CEILING_STEP)
    assert (manifest.origins, manifest.predecessor) == ((log.store_id,), b"")
    assert (header.segment_id, header.published, header.base_lsn) == (manifest.active, 1, 1)
    assert header.store_id == manifest.store_id == log.store_id
    assert len(read_file(fs, name)) == fmt.FILE_HEADER_SIZE
    assert store(log, b"\x01a", b"1") == 2, "who made it needs no manifest for its first commit"
    assert manifest_numbers(fs.list("")) == [1]


# --- at once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", [False, True])
def test_two_that_make_a_store_at_once_share_one_at_every_call(writes: bool) -> None:
    """Looking for a manifest and looking for foreign names were two steps.

    What the other one made in between was taken for something foreign.
    """
    number = 0
    stored = 0
    while True:
        number += 1
        fs = MemoryFileSystem()
        hooked = Hooked(fs)
        others: list[Log] = []

        told: list[int] = []

        def come(
            fs: MemoryFileSystem = fs, others: list[Log] = others, told: list[int] = told
        ) -> None:
            with contextlib.suppress(LockedError):  # the other one is making it
                # In its own thread, as if another process: who waits for itself is told so.
                others.append(in_thread(open_log, fs, lock_timeout=0.0))
                if writes:
                    told.append(in_thread(store, others[0], b"\x01other", b"1"))

        hooked.at(number, come)
        log = open_log(hooked)
        store(log, b"\x01a", b"2")
        happened = hooked.happened
        hooked.at(0, come)  # never
        for other in others:
            assert other.store_id == log.store_id, (number, happened)
        stored += len(told)
        expected = {b"\x01a": b"2"} | ({b"\x01other": b"1"} if told else {})
        for handle in (log, *others, open_log(fs, "r")):
            assert content(handle) == expected, (number, happened)
        assert len(fs.list("segments")) == 1
        assert verify(log).ok
        if not happened:
            break
    assert number > 15
    assert (stored > 3) == writes


def test_one_that_only_reads_finds_no_store_or_a_whole_one_at_every_call() -> None:
    number = 0
    found: set[bool | None] = set()
    while True:
        number += 1
        fs = MemoryFileSystem()
        hooked = Hooked(fs)

        def look(fs: MemoryFileSystem = fs) -> None:
            try:
                found.add(content(open_log(fs, "r")) == {})
            except FormatVersionError as error:
                assert "not an mldb store" in str(error)
                found.add(None)

        hooked.at(number, look)
        open_log(hooked)
        if not hooked.happened:
            break
    assert found == {None, True}


def make_and_write(path: Path, who: int, line: Line) -> None:
    line.hear()
    with mldb.open(path, durability="os") as db:
        db[f"from {who}"] = who
        line.say(db.stats()["store_id"])


@pytest.mark.parametrize("turn", range(10))
def test_processes_that_make_a_store_at_once_make_one(store_path: Path, turn: int) -> None:
    children = [Child(partial(make_and_write, store_path, who)) for who in range(6)]
    for child in children:
        child.say("go")
    ids = set()
    for child in children:
        with child:
            ids |= set(child.hear())
            assert child.wait() == 0
    assert len(ids) == 1
    with mldb.open(store_path) as db:
        assert {name: int(db[name]) for name in db} == {f"from {who}": who for who in range(6)}
        assert db.verify().ok


# --- cut off --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies", [False, True])
def test_a_creation_that_fails_at_any_call_is_made_good_by_the_next(dies: bool) -> None:
    for number in itertools.count(1):
        fs = MemoryFileSystem()
        fault = FaultFileSystem(fs)
        fault.fail("any", at=number, forever=dies)
        with contextlib.suppress(StorageError):
            open_log(fault)
        if dies:
            fs.kill()
        log = open_log(fs)
        store(log, b"\x01a", b"1")
        assert content(open_log(fs, "r")) == {b"\x01a": b"1"}, number
        assert len(fs.list("segments")) == 1, "what was begun is cleared away"
        assert verify(log).ok
        if fault.calls["any"] < number:
            break
    assert number > 20


@pytest.mark.parametrize("model", ["posix", "ordered", "process"])
def test_power_may_fail_at_any_moment_of_it(model: Any, seed: int) -> None:
    """A store is there as soon as its first manifest is, and then it is whole."""
    fs = MemoryFileSystem(record=True)
    open_log(fs)
    fs.mark("made")
    outcomes = set()
    for state in crash_states(fs, model=model, seed=seed, limit=400):
        there = bool(manifest_numbers(state.list("")))
        outcomes.add(there)
        assert there or not state.marks, state.description
        log = open_log(state)
        assert content(log) == {}
        store(log, b"\x01a", b"1")
        state.kill()
        again = open_log(state)
        assert content(again) == {b"\x01a": b"1"}, state.description
        assert verify(again).ok
    assert outcomes == {True, False}


# --- what is there --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data.csv", "segment", "LOCK2", "MANIFEST-1", ".git"])
@pytest.mark.parametrize("begun", [False, True])
def test_what_is_not_its_own_is_never_taken_for_an_unfinished_store(name: str, begun: bool) -> None:
    fs = MemoryFileSystem()
    if begun:
        for folder in FOLDERS:
            fs.mkdir(folder)
        replace_file(fs, "LOCK", b"")
    replace_file(fs, name, b"precious")
    before = contents_of(fs)
    with pytest.raises(FormatVersionError, match=rf"holds '{name}'.*Nothing was changed"):
        open_log(fs)
    assert contents_of(fs) == before


def test_folders_that_a_copy_lost_are_made_again_and_nothing_else() -> None:
    fs = MemoryFileSystem()
    log = open_log(fs)
    store(log, b"\x01a", b"1")
    log.close()
    image = fs.image()
    lost = {"pending", "readers", "lost+found"}
    folders = {name: names for name, names in image.folders.items() if name not in lost}
    folders[""] = folders[""] - lost
    copy = MemoryFileSystem(image=image._replace(folders=folders))
    before = contents_of(copy)
    restore_folders(copy)
    assert set(copy.list("")) == set(fs.list(""))
    assert contents_of(copy) == before
    again = open_log(copy)
    store(again, b"\x01b", b"2")
    assert content(again) == {b"\x01a": b"1", b"\x01b": b"2"}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_its_files_are_as_open_as_the_umask_says(store_path: Path, mask: int, mode: int) -> None:
    """Two users of a group share a store; LOCK, GATE and the manifests were 0644 for everybody."""
    before = os.umask(mask)
    try:
        with mldb.open(store_path, segment_entries=2) as db:
            for number in range(9):  # one of them passes the gate
                db["x"] = number
            with db.at():
                pass
    finally:
        os.umask(before)
    names = {
        path.name: path.stat().st_mode & 0o777 for path in store_path.rglob("*") if path.is_file()
    }
    assert {"LOCK", "GATE", manifest_name(1)} <= names.keys()
    assert set(names.values()) == {mode}
    folders = {path.stat().st_mode & 0o777 for path in store_path.rglob("*") if path.is_dir()}
    assert folders == {0o777 & ~mask}
