"""A forked child changes nothing of what its parent opened; it reads, and it opens its own.

A child that left a ``with`` block rewrote the registration of its parent and unlinked its files.
"""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mldb.errors import ClosedError
from mldb.log.fs import posix_lock
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.process import CURRENT
from mldb.log.fs.protocol import File, FileSystem, KernelLock
from tests.support.faults import FaultFileSystem
from tests.support.processes import Child, Line

KINDS: dict[str, Callable[[Path], FileSystem]] = {
    "os": OsFileSystem,
    "memory": lambda _: MemoryFileSystem(),
    "faultless": lambda path: FaultFileSystem(OsFileSystem(path)),
}


@pytest.fixture(params=KINDS)
def fs(request: pytest.FixtureRequest, tmp_path: Path) -> FileSystem:
    made = KINDS[request.param](tmp_path)
    made.mkdir("folder")
    made.open("folder/a", "create").pwritev([b"of the parent"], 0)
    return made


def changes(fs: FileSystem, file: File, lock: KernelLock) -> dict[str, Callable[[], object]]:
    return {
        "open rw": lambda: fs.open("folder/a", "rw"),
        "create": lambda: fs.open("folder/b", "create"),
        "pwritev": lambda: file.pwritev([b"of the child"], 0),
        "sync": file.sync,
        "link": lambda: fs.link("folder/a", "c"),
        "rename": lambda: fs.rename("folder/a", "c"),
        "unlink": lambda: fs.unlink("folder/a"),
        "mkdir": lambda: fs.mkdir("d"),
        "sync_dir": lambda: fs.sync_dir("folder"),
        "sync_dir of the folder": lambda: fs.sync_dir(""),
        "lock": lambda: fs.lock("LOCK"),
        "acquire": lock.try_acquire,
    }


def everything(fs: FileSystem) -> list[Any]:
    data = fs.open("folder/a", "r").pread(99, 0)
    return [fs.list(""), fs.list("folder"), data, fs.identity("folder/a")]


def run_in_child(action: Callable[[], None]) -> None:
    def act(_: Line) -> None:
        action()

    with Child(act) as child:
        assert child.wait() == 0, "see the traceback of the child"


def test_every_change_is_refused_and_nothing_is_changed(fs: FileSystem) -> None:
    file, lock = fs.open("folder/a", "rw"), fs.lock("LOCK")
    before, parent = everything(fs), os.getpid()

    def child() -> None:
        for name, call in changes(fs, file, lock).items():
            with pytest.raises(ClosedError, match="open the store again in the child") as info:
                call()
            assert f"process {parent} " in str(info.value), name
            assert f"child {os.getpid()}," in str(info.value), name
        assert everything(fs) == before

    run_in_child(child)
    assert everything(fs) == before
    assert file.pwritev([b"by"], 0) == 2, "the parent goes on"
    assert lock.try_acquire()


def test_reading_goes_on_in_the_child(fs: FileSystem) -> None:
    file = fs.open("folder/a", "r")
    view = file.map(6)

    def child() -> None:
        assert (file.size(), file.pread(6, 0), bytes(view)) == (13, b"of the", b"of the")
        assert bytes(file.map(2)) == b"of"
        assert bytes(file.map_private(3, 3)) == b"the"
        assert fs.open("folder/a", "r").pread(99, 0) == b"of the parent"
        assert fs.exists("folder")
        assert fs.free_bytes() > 0

    run_in_child(child)


def test_what_the_child_closes_and_collects_is_silent_and_stays_the_parents(
    fs: FileSystem,
) -> None:
    file, lock, idle = fs.open("folder/a", "rw"), fs.lock("LOCK"), fs.lock("GATE")
    assert lock.try_acquire()
    kept: list[File | KernelLock] = [file, lock, idle]

    def child() -> None:
        heard: list[Any] = []
        sys.unraisablehook = heard.append
        for thing in kept:
            thing.close()
            thing.close()
        lock.release()
        kept.clear()
        gc.collect()
        assert heard == []

    run_in_child(child)
    assert file.pwritev([b"by the parent"], 0) == 13
    file.sync()
    assert not fs.lock("LOCK").try_acquire(), "the child let go of the parent's lock"
    lock.release()
    assert fs.lock("LOCK").try_acquire()
    assert idle.try_acquire()


def test_a_lock_let_go_before_the_child_could_abandon_it_stays_the_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a finalizer that runs right after the fork; the two share one lock of the kernel."""
    lock = OsFileSystem(tmp_path).lock("LOCK")
    assert lock.try_acquire()
    monkeypatch.setattr(posix_lock, "_locks", weakref.WeakSet())

    def child() -> None:
        lock.release()
        lock.close()

    run_in_child(child)
    assert not OsFileSystem(tmp_path).lock("LOCK").try_acquire()


def test_a_child_that_closed_every_number_itself_is_silent(tmp_path: Path) -> None:
    """As those do who become a daemon."""
    fs = OsFileSystem(tmp_path)
    kept = [fs.open("a", "create"), fs.lock("LOCK")]

    def child() -> None:
        heard: list[Any] = []
        sys.unraisablehook = heard.append
        numbers = [thing._fd for thing in kept if hasattr(thing, "_fd")]
        os.close(numbers[0])
        kept.clear()
        numbers.clear()
        gc.collect()
        assert heard == []

    run_in_child(child)


def test_the_child_has_its_own_by_opening_again(tmp_path: Path) -> None:
    fs = OsFileSystem(tmp_path)
    lock = fs.lock("LOCK")
    assert lock.try_acquire()

    def child() -> None:
        own = OsFileSystem(tmp_path)
        own.open("of the child", "create").pwritev([b"x"], 0)
        assert not own.lock("LOCK").try_acquire()
        assert own.lock("other").try_acquire()

    run_in_child(child)
    assert fs.exists("of the child")


def test_a_grandchild_is_another_process_again(tmp_path: Path) -> None:
    def child() -> None:
        fs = OsFileSystem(tmp_path)
        file = fs.open("a", "create")
        pid = os.getpid()

        def grandchild() -> None:
            with pytest.raises(ClosedError, match=f"process {pid} and"):
                file.pwritev([b"x"], 0)

        run_in_child(grandchild)
        file.pwritev([b"y"], 0)

    run_in_child(child)
    assert (tmp_path / "a").read_bytes() == b"y"
    assert CURRENT[0].pid == os.getpid()
