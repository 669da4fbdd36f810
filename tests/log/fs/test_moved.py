"""A folder that was moved, replaced or deleted: nobody writes into what stands there now.

A store was renamed under a live handle and a backup put in its place; the handle installed its
manifests in the backup, which then did not open.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from mldb.errors import StorageIOError, StoreMovedError
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import FileSystem
from tests.support.faults import FaultFileSystem


class Spot(Protocol):
    """A path where a store stands, and what people do to it."""

    def handle(self) -> FileSystem:
        """Open what stands there now."""

    def move_away(self) -> None: ...
    def move_back(self) -> None: ...
    def restore_a_copy(self) -> None: ...
    def content(self) -> dict[str, bytes]:
        """What stands at the path now."""


class OnDisk:
    def __init__(self, folder: Path) -> None:
        self.path, self.away = f"{folder}/store", f"{folder}/away"
        os.mkdir(self.path)

    def handle(self) -> FileSystem:
        return OsFileSystem(self.path)

    def move_away(self) -> None:
        os.rename(self.path, self.away)

    def move_back(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.rename(self.away, self.path)

    def restore_a_copy(self) -> None:
        self.move_away()
        shutil.copytree(self.away, self.path)

    def content(self) -> dict[str, bytes]:
        files = [path for path in Path(self.path).rglob("*") if path.is_file()]
        return {str(path.relative_to(self.path)): path.read_bytes() for path in files}


class InMemory:
    def __init__(self, _: Path) -> None:
        self.first = MemoryFileSystem()
        self.now: MemoryFileSystem | None = self.first

    def handle(self) -> FileSystem:
        assert self.now is not None
        return self.now

    def _put(self, other: MemoryFileSystem | None) -> None:
        self.first.replace(other)
        self.now = other

    def move_away(self) -> None:
        self._put(None)

    def move_back(self) -> None:
        self._put(self.first)

    def restore_a_copy(self) -> None:
        self._put(MemoryFileSystem(image=self.first.image()))

    def content(self) -> dict[str, bytes]:
        if self.now is None:
            return {}
        image = self.now.image()
        return {name: image.contents[number] for name, number in image.files.items()}


class Wrapped(InMemory):
    def handle(self) -> FileSystem:
        return FaultFileSystem(super().handle())


@pytest.fixture(params=[OnDisk, InMemory, Wrapped])
def spot(request: pytest.FixtureRequest, tmp_path: Path) -> Spot:
    made: Spot = request.param(tmp_path)
    fs = made.handle()
    fs.mkdir("segments")
    for name in ("segments/1", "MANIFEST", "LOCK"):
        fs.open(name, "create").pwritev([b"of the store"], 0)
    return made


def changes(fs: FileSystem) -> dict[str, Callable[[], object]]:
    """Every call that opens for writing, makes, links or renames."""
    return {
        "open rw": lambda: fs.open("segments/1", "rw"),
        "create": lambda: fs.open("segments/2", "create"),
        "mkdir": lambda: fs.mkdir("pending"),
        "mkdir of the folder": lambda: fs.mkdir(""),
        "link": lambda: fs.link("MANIFEST", "MANIFEST-2"),
        "rename": lambda: fs.rename("MANIFEST", "MANIFEST-2"),
        "lock": lambda: fs.lock("LOCK"),
        "new lock": lambda: fs.lock("GATE"),
    }


@pytest.mark.parametrize("happens", ["move_away", "restore_a_copy"])
def test_nothing_is_made_linked_or_opened_for_writing(spot: Spot, happens: str) -> None:
    fs = spot.handle()
    home = fs.identity("")
    before = {name: fs.list(name) for name in ("", "segments")}
    getattr(spot, happens)()
    there = spot.content()
    found = "another one" if there else "nothing"
    for call in changes(fs).values():
        with pytest.raises(StoreMovedError, match=rf"{fs.root} was moved.*: {found} stands there"):
            call()
    assert spot.content() == there
    assert {name: fs.list(name) for name in before} == before
    assert (fs.identity("") is None) == (there == {})
    assert fs.identity("") != home
    spot.move_back()
    assert fs.identity("") == home
    for call in changes(fs).values():
        call()


def test_identities_are_those_of_what_stands_there_now(spot: Spot) -> None:
    fs = spot.handle()
    names = ("", "LOCK", "segments", "segments/1")
    mine = [fs.identity(name) for name in names]
    spot.restore_a_copy()
    theirs = [fs.identity(name) for name in names]
    assert theirs == [spot.handle().identity(name) for name in names]
    assert None not in theirs
    assert not set(mine) & set(theirs)
    spot.move_back()
    spot.move_away()
    assert [fs.identity(name) for name in names] == [None] * 4


def test_what_is_open_goes_on_in_the_folder_that_was_opened(spot: Spot) -> None:
    fs = spot.handle()
    file = fs.open("segments/1", "rw")
    view = file.map(6)
    lock = fs.lock("LOCK")
    assert lock.try_acquire()
    spot.restore_a_copy()
    there = spot.content()
    file.pwritev([b"written"], 0)
    file.sync()
    fs.sync_dir("segments")
    fs.sync_dir("")
    assert bytes(view) == b"writte"
    assert fs.open("segments/1", "r").pread(7, 0) == b"written"
    assert fs.exists("segments/1")
    lock.release()
    fs.unlink("segments/1")
    assert fs.list("segments") == []
    assert spot.content() == there
    assert spot.handle().lock("LOCK").try_acquire(), "a lock of the other store"


def test_who_opens_later_has_the_other_store(spot: Spot) -> None:
    old = spot.handle()
    old.list("")  # a file system stands for what its first call found
    spot.restore_a_copy()
    new = spot.handle()
    new.open("only here", "create").pwritev([b"x"], 0)
    assert new.identity("") == old.identity("")
    assert (new.exists("only here"), old.exists("only here")) == (True, False)
    with pytest.raises(StoreMovedError):
        old.lock("LOCK")
    assert new.lock("LOCK").try_acquire()


def test_no_file_of_another_store_is_linked_into_what_stands_there(tmp_path: Path) -> None:
    spot = OnDisk(tmp_path)
    (tmp_path / "other").mkdir()
    fs, other = spot.handle(), OsFileSystem(tmp_path / "other")
    fs.open("a", "create")
    other.open("theirs", "create")
    spot.restore_a_copy()
    with pytest.raises(StoreMovedError):
        fs.link_from(other, "theirs", "copy")
    assert list(spot.content()) == ["a"]
    assert other.link_from(fs, "a", "ours"), "reading goes on in the folder that was opened"


def test_the_error_says_what_to_do_and_is_one_of_storage(spot: Spot) -> None:
    fs = spot.handle()
    fs.list("")
    spot.move_away()
    with pytest.raises(StorageIOError, match="open the store where it is") as info:
        fs.open("segments/2", "create")
    assert "open of segments/2 was not made" in str(info.value)
    assert not info.value.failed_sync


def test_a_folder_that_is_kept_open_lends_its_inode_to_no_other(tmp_path: Path) -> None:
    """Most file systems give the inode of a deleted folder to the next one that is made."""
    path = tmp_path / "store"
    path.mkdir()
    fs = OsFileSystem(path)
    fs.list("")
    home = fs.identity("")
    for _ in range(20):
        path.rmdir()
        assert fs.identity("") is None
        assert fs.list("") == []
        path.mkdir()
        assert fs.identity("") != home
        with pytest.raises(StoreMovedError, match="another one stands there"):
            fs.open("a", "create")
    assert os.listdir(path) == []


def test_a_path_with_a_file_in_the_middle_leads_nowhere(tmp_path: Path) -> None:
    fs = OsFileSystem(tmp_path / "folder" / "store")
    fs.mkdir("")
    shutil.rmtree(tmp_path / "folder")
    (tmp_path / "folder").write_bytes(b"")
    assert fs.identity("") is None
    assert fs.identity("LOCK") is None
    with pytest.raises(StoreMovedError, match="nothing stands there"):
        fs.mkdir("segments")
    assert (tmp_path / "folder").is_file()


def test_a_store_that_is_not_there_yet_is_not_a_moved_one(tmp_path: Path) -> None:
    fs = OsFileSystem(tmp_path / "store")
    assert fs.identity("") is None
    assert (fs.list(""), fs.exists("a"), fs.exists("")) == ([], False, False)
    for call in (lambda: fs.open("a", "create"), lambda: fs.lock("LOCK"), fs.free_bytes):
        with pytest.raises(StorageIOError, match="ENOENT"):
            call()
    (tmp_path / "store").mkdir()
    fs.open("a", "create")
    assert fs.list("") == ["a"]
