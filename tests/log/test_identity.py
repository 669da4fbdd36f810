"""The folder of an open store is moved, replaced or deleted: what stands there is not touched."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import ClosedError, MldbError, StoreMovedError
from mldb.log import format as fmt
from mldb.log.backup import backup
from mldb.log.frame import TO_BE_HASHED, Draft, Record
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.log import Log
from mldb.log.verify import verify
from tests.support.files import contents_of
from tests.support.hooked import Hooked
from tests.support.logs import content, open_log, store
from tests.support.seen import listing

LARGE = np.arange(3000, dtype=np.int64)


def record(key: bytes, data: bytes) -> Record:
    drafts = [Draft(key, 0, 0, 0, len(data), TO_BE_HASHED, 0, b"")]
    return Record(16 | fmt.MUST_UNDERSTAND, drafts, [data], len(data))


# --- in memory ------------------------------------------------------------------------------------


def spill(log: Log) -> None:
    """Store something large by way of a pending segment."""
    pending = log.pending_segment()
    pending.add([record(b"\x01large", b"x" * 5000)])
    log.commit([], lambda view: (view.commit.epoch, view.commit), pending)


def seal(log: Log) -> None:
    """Store enough for the next segment."""
    for number in range(9):
        store(log, b"\x01sealed %d" % number, b"x")


ACTS: dict[str, Callable[[Log], object]] = {
    "commit": lambda log: store(log, b"\x01new", b"2"),
    "spill": spill,
    "seal": seal,
    "sync": lambda log: log.sync(),
    "close": lambda log: log.close(),
}


def other_store(kind: str, fs: MemoryFileSystem) -> MemoryFileSystem | None:
    """What stands at the path afterwards."""
    if kind == "nothing":
        return None
    if kind == "an empty folder":
        return MemoryFileSystem()
    if kind == "a copy":
        return MemoryFileSystem(image=fs.image())
    other = MemoryFileSystem()
    if kind == "a backup":
        backup(open_log(fs, "r"), other, None)
    else:
        log = open_log(other, segment_entries=3)
        for number in range(7):
            store(log, b"\x01other %d" % number, b"y")
        log.close()
    return other


ADDED = {"commit": 1, "spill": 1, "seal": 9}

KINDS = ["nothing", "an empty folder", "a copy", "a backup", "another store"]


def started(durability: Any) -> tuple[MemoryFileSystem, Hooked, Log, dict[bytes, bytes]]:
    fs = MemoryFileSystem()
    hooked = Hooked(fs)
    log = open_log(hooked, durability=durability, segment_entries=5)
    for number in range(7):
        store(log, b"\x01%d" % number, b"1")
    return fs, hooked, log, content(log)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("durability", ["commit", "os"])
def test_what_stands_at_the_path_now_is_not_touched_whatever_is_done(
    kind: str, act: str, durability: Any
) -> None:
    """Handles installed their manifests in the store that was put there; it did not open again."""
    fs, _, log, known = started(durability)
    other = other_store(kind, fs)
    before = None if other is None else contents_of(other)
    own = contents_of(fs)
    fs.replace(other)
    with pytest.raises(StoreMovedError, match=r"moved|no longer|another") as info:
        ACTS[act](log)
    assert not info.value.retryable
    assert (None if other is None else contents_of(other)) == before
    # What was read stays readable, and the store goes on where it is.
    if act != "close":
        assert content(log) == known
        with pytest.raises(StoreMovedError):
            store(log, b"\x01again", b"3")
    with contextlib.suppress(MldbError):
        log.close()
    assert (None if other is None else contents_of(other)) == before
    assert {name for name in own if name.startswith(("segments/", "MANIFEST"))} <= set(
        contents_of(fs)
    )
    fs.replace(fs)
    fs.kill()
    again = open_log(fs)
    assert content(again) == known
    store(again, b"\x01again", b"3")
    assert verify(again).ok
    if other is not None and kind != "an empty folder":
        assert verify(open_log(MemoryFileSystem(image=other.image()))).ok


@pytest.mark.parametrize("act", ["commit", "spill", "seal"])
@pytest.mark.parametrize("kind", ["nothing", "a copy", "another store"])
def test_at_whatever_call_the_folder_goes_nothing_is_acknowledged_that_is_not_in_it(
    act: str, kind: str
) -> None:
    """It is replaced before every call of a commit, which is whole in the old one, or refused."""
    number = 0
    told = set()
    while True:
        number += 1
        fs, hooked, log, known = started("commit")
        other = other_store(kind, fs)
        before = None if other is None else contents_of(other)
        hooked.at(number, partial(fs.replace, other))
        try:
            ACTS[act](log)
            stored = True
        except MldbError as error:
            assert isinstance(error, StoreMovedError | ClosedError), (number, hooked.happened)
            stored = False
        happened = hooked.happened
        told.add(stored)
        with contextlib.suppress(MldbError):
            log.close()
        assert (None if other is None else contents_of(other)) == before, (number, happened)
        fs.replace(fs)
        fs.kill()
        again = open_log(fs)
        found = content(again)
        assert found.items() >= known.items(), (number, happened)
        if stored:
            assert len(found) == len(known) + ADDED[act], (number, happened)
        store(again, b"\x01again", b"3")
        assert verify(again).ok, (number, happened)
        if not happened:
            break
    assert number > 8
    assert told == {True, False}


def test_a_folder_that_comes_back_is_the_same_store() -> None:
    fs, _, log, known = started("commit")
    fs.replace(None)
    with pytest.raises(StoreMovedError):
        store(log, b"\x01new", b"2")
    fs.replace(fs)
    store(log, b"\x01new", b"2")
    assert content(log) == content(open_log(fs, "r")) == known | {b"\x01new": b"2"}


def test_a_failed_sync_in_a_moved_folder_touches_nothing_and_is_not_forgotten() -> None:
    """The folder goes right before the sync that fails."""
    for number in itertools.count(1):
        fs, hooked, log, _ = started("commit")
        other = other_store("a copy", fs)
        assert other is not None
        before = contents_of(other)
        hooked.at(number, partial(fs.replace, other))
        hooked.fail("sync")
        with pytest.raises(MldbError) as info:
            store(log, b"\x01new", b"2")
        if hooked.happened != "sync":
            continue
        assert "Whether later commits are stored is not known" in str(info.value)
        with pytest.raises(ClosedError, match="fsync failed"):
            store(log, b"\x01newer", b"3")
        with contextlib.suppress(MldbError):
            log.close()
        assert contents_of(other) == before
        break


# --- real folders ---------------------------------------------------------------------------------


def swap_in(path: Path, kind: str, tmp_path: Path) -> None:
    """Move the store away, or delete it, and put something else there."""
    if kind == "deleted":
        shutil.rmtree(path)
        return
    if kind == "deleted, another store":
        shutil.rmtree(path)
    else:
        os.rename(path, tmp_path / "moved")
    if kind == "renamed, a copy":
        shutil.copytree(tmp_path / "moved", path)
    elif kind.endswith("another store"):
        os.rename(tmp_path / "other", path)
    elif kind == "renamed, a backup":
        os.rename(tmp_path / "backup", path)


FOLDERS = [
    "renamed",
    "renamed, a copy",
    "renamed, a backup",
    "renamed, another store",
    "deleted",
    "deleted, another store",
]


def create(db: mldb.MLDatabase) -> None:
    """Write a tensor in blocks."""
    with db.create_tensor("new", (200_000,), "f8") as writer:
        writer[:] = np.ones(200_000)


USES: dict[str, Callable[[mldb.MLDatabase], object]] = {
    "commit": lambda db: db.store_tensor("new", [1]),
    "transaction": lambda db: db.transact(lambda txn: txn.store_tensor("new", LARGE)),
    "spill": lambda db: db.transact(lambda txn: txn.store_tensor("new", np.zeros(200_000))),
    "create": create,
    "tag": lambda db: db.tag("t"),
    "rewind": lambda db: db.rewind(1),
    "checkpoint": lambda db: db.checkpoint({"w": np.arange(9)}, epoch=9),
    "close": lambda db: db.close(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", FOLDERS)
def test_another_folder_at_the_path_stays_byte_for_byte_what_it_is(
    tmp_path: Path, kind: str, use: str
) -> None:
    path = tmp_path / "store"
    with mldb.open(tmp_path / "other", segment_entries=3) as db:
        for epoch in range(5):
            db.store_tensor("other", np.full(50, epoch), epoch=epoch)
    db = mldb.open(path, segment_entries=4, spill_bytes=1 << 20, map_bytes=0)
    for epoch in range(7):
        db.store_tensor("x", LARGE + epoch, epoch=epoch)
    db.backup(tmp_path / "backup")
    array = db["x"]
    swap_in(path, kind, tmp_path)
    there = path.exists()
    before = listing(path) if there else None
    with pytest.raises(StoreMovedError, match=str(path)):
        USES[use](db)
    assert array.tolist() == (LARGE + 6).tolist()
    if use != "close":
        assert db["x"][0] == 6
        assert int(db.query_tensor("x", as_of=2)[0]) == 2 or kind.startswith("deleted")
    with contextlib.suppress(MldbError):
        db.close()
    assert path.exists() == there
    if before is not None:
        assert listing(path) == before
        with mldb.open(path) as found:
            assert found.verify().ok
            found["new"] = 1
    if kind.startswith("renamed"):
        with mldb.open(tmp_path / "moved") as moved:
            assert moved.verify().ok
            assert moved["x"][0] == 6
            assert "new" not in moved


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_backup_is_of_the_store_that_was_opened_or_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    with mldb.open(tmp_path / "other", segment_entries=3) as db:
        for epoch in range(5):
            db.store_tensor("other", np.full(50, epoch), epoch=epoch)
    db = mldb.open(path, segment_entries=4)
    for epoch in range(7):
        db.store_tensor("x", LARGE + epoch, epoch=epoch)
    db.backup(tmp_path / "backup")
    swap_in(path, kind, tmp_path)
    before = listing(path) if path.exists() else None
    with contextlib.suppress(MldbError):
        db.backup(tmp_path / "copy")
    with pytest.raises(StoreMovedError):
        db.close()
    assert (listing(path) if path.exists() else None) == before
    if (tmp_path / "copy" / "MANIFEST-0000000001").exists():
        with mldb.open(tmp_path / "copy", mode="r") as copy:
            assert list(copy) == ["x"]
            assert [int(copy.query_tensor("x", as_of=epoch)[0]) for epoch in range(7)] == [
                *range(7)
            ]
            assert copy.verify().ok
    else:
        assert kind.startswith("deleted")


def test_a_folder_that_goes_before_the_first_call_is_said_to_be_gone(tmp_path: Path) -> None:
    """Nothing of the store is made anew in its place."""
    path = tmp_path / "store"
    db = mldb.open(path)
    shutil.rmtree(path)
    for use in (lambda: db.store_tensor("x", 1), lambda: db.at(None).close(), db.sync, db.close):
        with contextlib.suppress(StoreMovedError):
            use()
        assert not path.exists()
        if use != db.close:
            with pytest.raises(StoreMovedError):
                db.store_tensor("x", 1)
    assert not path.exists()
