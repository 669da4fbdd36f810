"""No descriptor left: the owner may give one back, and nobody reads a whole file instead.

At the limit a whole segment was copied into private memory per read, 2.5 GiB in ten reads, and a
folder that could not be opened to sync it closed the handle for writing.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mldb.errors import StorageIOError
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.posix_file import OsFile
from mldb.log.fs.protocol import File, FileSystem
from tests.support.processes import Child, Line

CALLS: dict[str, Callable[[FileSystem, File], Any]] = {
    "open r": lambda fs, _: fs.open("folder/a", "r"),
    "open rw": lambda fs, _: fs.open("folder/a", "rw"),
    "create": lambda fs, _: fs.open("folder/new", "create"),
    "lock": lambda fs, _: fs.lock("LOCK"),
    "list": lambda fs, _: fs.list("folder"),
    "list the folder": lambda fs, _: fs.list(""),
    "sync_dir": lambda fs, _: fs.sync_dir("folder"),
    "map": lambda _, file: file.map(3),
    "map_private": lambda _, file: file.map_private(1, 2),
}


class Relief:
    """Counts how often it is asked; gives back four of *spare*, and answers what it was told."""

    def __init__(self, answer: bool, spare: list[int] | None = None) -> None:
        self.count = 0
        self._answer = answer
        self._spare = spare

    def __call__(self) -> bool:
        self.count += 1
        for _ in range(4 if self._spare else 0):
            assert self._spare is not None
            os.close(self._spare.pop())
        return self._answer


def at_the_limit(path: Path, action: Callable[[OsFileSystem, OsFile, list[int]], None]) -> None:
    """Run *action* in a child that has no descriptor left but those in its list."""

    def child(_: Line) -> None:
        fs = OsFileSystem(path)
        fs.mkdir("folder")
        file = fs.open("folder/a", "create")
        file.pwritev([b"abc"], 0)
        # What the parent had open is inherited, whatever it was: leave room above it.
        limit = max(map(int, os.listdir("/dev/fd"))) + 20
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        spare: list[int] = []
        while True:
            try:
                spare.append(os.open("/dev/null", os.O_RDONLY))
            except OSError as error:
                assert error.errno == errno.EMFILE
                break
        action(fs, file, spare)

    with Child(child) as running:
        assert running.wait() == 0, "see the traceback of the child"


@pytest.mark.parametrize("kind", CALLS)
def test_a_call_is_made_once_more_after_relief(tmp_path: Path, kind: str) -> None:
    call = CALLS[kind]

    def action(fs: OsFileSystem, file: OsFile, spare: list[int]) -> None:
        def fails() -> None:
            with pytest.raises(StorageIOError, match="too many open files") as info:
                call(fs, file)
            assert (info.value.errno, info.value.failed_sync) == (errno.EMFILE, False)
            assert not fs.exists("folder/new")

        fails()
        for answer in (False, True):  # it has nothing; it gave something that did not help
            asked = Relief(answer)
            fs.relieve = asked
            fails()
            assert asked.count == 1

        asked = Relief(True, spare)
        fs.relieve = asked
        kept = call(fs, file)
        assert asked.count == 1
        del kept

    at_the_limit(tmp_path, action)


def test_a_map_without_a_descriptor_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def action(_: OsFileSystem, file: OsFile, __: list[int]) -> None:
        monkeypatch.setattr(os, "pread", lambda *_: pytest.fail("the file was read"))
        with pytest.raises(StorageIOError) as info:
            file.map(3)
        assert info.value.errno == errno.EMFILE
        monkeypatch.undo()
        assert file.pread(2, 1) == b"bc", "a range can be read instead"

    at_the_limit(tmp_path, action)


def test_the_folder_itself_is_synced_without_another_descriptor(tmp_path: Path) -> None:
    def action(fs: OsFileSystem, _: OsFile, __: list[int]) -> None:
        fs.sync_dir("")
        assert fs.exists("folder/a")
        fs.link("folder/a", "b")
        assert fs.identity("b") == fs.identity("folder/a")

    at_the_limit(tmp_path, action)


def test_mappings_that_are_used_up_are_relieved_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = OsFileSystem(tmp_path)
    file = fs.open("a", "create")
    file.pwritev([b"abc"], 0)
    real, refusals = mmap.mmap, [errno.ENOMEM, errno.ENOMEM]

    def scarce(*args: Any, **kwargs: Any) -> mmap.mmap:
        if refusals:
            raise OSError(refusals.pop(), "no room")
        return real(*args, **kwargs)

    monkeypatch.setattr(mmap, "mmap", scarce)
    asked = Relief(True)
    fs.relieve = asked
    with pytest.raises(StorageIOError) as info:
        file.map(3)
    assert (info.value.errno, asked.count) == (errno.ENOMEM, 1)
    refusals.append(errno.ENOMEM)
    assert bytes(file.map(3)) == b"abc"
    refusals.append(errno.EACCES)
    with pytest.raises(StorageIOError):
        file.map(3)
    assert asked.count == 2, "relief is for what can be used up"


def test_only_a_failing_fsync_of_a_folder_is_a_failed_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = OsFileSystem(tmp_path)
    fs.mkdir("folder")
    with pytest.raises(StorageIOError) as info:
        fs.sync_dir("none")
    assert not info.value.failed_sync

    def fails(_: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "fsync", fails)
    for folder in ("", "folder"):
        with pytest.raises(StorageIOError, match="fsync of the folder failed with EIO") as info:
            fs.sync_dir(folder)
        assert info.value.failed_sync
