"""Numbers of descriptors: given back once, and never before the last call has left.

``close`` while another thread was inside a commit gave the number to the next file that was opened,
and a frame of ours landed in it.
"""

from __future__ import annotations

import errno
import gc
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mldb.errors import ClosedError
from mldb.log.fs.descriptor import CLOSED, Fd
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.posix_file import OsFile


@pytest.fixture
def fs(tmp_path: Path) -> OsFileSystem:
    return OsFileSystem(tmp_path)


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError as error:
        assert error.errno == errno.EBADF
        return False
    return True


def test_a_number_is_given_back_with_its_last_reference(tmp_path: Path) -> None:
    fd = Fd(os.open(tmp_path, os.O_RDONLY))
    number = int(fd)
    other = [fd]
    del fd
    assert is_open(number)
    other.clear()
    assert not is_open(number)


def test_a_number_is_given_back_once(tmp_path: Path) -> None:
    fd = Fd(os.open(tmp_path, os.O_RDONLY))
    number = int(fd)
    fd.give_back()
    assert os.open(tmp_path, os.O_RDONLY) == number, "the system gave it to another file"
    del fd
    gc.collect()
    assert is_open(number)
    os.close(number)


CALLS: dict[str, tuple[Any, str, Callable[[OsFile], Any]]] = {
    "pread": (os, "pread", lambda file: file.pread(5, 0)),
    "pwrite": (os, "pwrite", lambda file: file.pwritev([b"first"], 0)),
    "pwritev": (os, "pwritev", lambda file: file.pwritev([b"fi", b"rst"], 0)),
    "size": (os, "lseek", lambda file: file.size()),
    "sync": (os, "fdatasync", lambda file: file.sync()),
    "map": (mmap, "mmap", lambda file: bytes(file.map(5))),
}
EXPECTED = {"pread": b"first", "pwrite": 5, "pwritev": 5, "size": 5, "sync": None, "map": b"first"}


@pytest.mark.parametrize("kind", CALLS)
def test_a_call_inside_ends_on_its_own_file_whoever_closes_meanwhile(
    fs: OsFileSystem, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = fs.open("a", "create")
    file.pwritev([b"first"], 0)
    module, name, call = CALLS[kind]
    real = getattr(module, name)
    inside, closed = threading.Event(), threading.Event()

    def slow(fd: int, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is thread:
            inside.set()
            assert closed.wait(30)
        return real(fd, *args, **kwargs)

    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call(file)))
    monkeypatch.setattr(module, name, slow)
    thread.start()
    assert inside.wait(30)
    number = int(file._fd)
    file.close()
    others = [fs.open(f"other-{turn}", "create") for turn in range(8)]
    assert number not in [int(other._fd) for other in others]
    with pytest.raises(ClosedError, match="closed meanwhile"):
        file.size()
    closed.set()
    thread.join()
    assert found == [EXPECTED[kind]]
    assert not is_open(number), "the last one out closes"
    assert fs.open("a", "r").pread(9, 0) == b"first"
    assert {other.size() for other in others} == {0}


def test_writers_and_a_closer_never_meet_in_another_file(fs: OsFileSystem) -> None:
    """The same without a hook, many times."""
    wrong: list[BaseException] = []

    def write(file: OsFile) -> None:
        try:
            while True:
                file.pwritev([b"ours"], 0)
                file.pread(4, 0)
        except ClosedError:
            pass
        except BaseException as error:  # noqa: BLE001 - handed to the test
            wrong.append(error)

    for turn in range(60):
        file = fs.open(f"a-{turn}", "create")
        threads = [threading.Thread(target=write, args=(file,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        while file.size() == 0:
            pass
        file.close()
        others = [fs.open(f"other-{turn}-{number}", "create") for number in range(6)]
        for thread in threads:
            thread.join()
        assert {other.size() for other in others} == {0}
        assert fs.open(f"a-{turn}", "r").pread(9, 0) == b"ours"
    assert wrong == []


def test_a_failed_call_keeps_no_number_open(fs: OsFileSystem, tmp_path: Path) -> None:
    file = fs.open("a", "create")
    number = int(file._fd)
    with pytest.raises(Exception, match="mmap"):
        file.map(100)
    file.close()
    assert not is_open(number)
    assert file._fd == CLOSED
    before = len(os.listdir("/proc/self/fd"))
    os.mkfifo(tmp_path / "pipe")
    for _ in range(3):
        with pytest.raises(Exception, match="not a regular file"):
            fs.open("pipe", "rw")
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_folder_is_kept_while_a_file_of_it_lives_and_no_longer(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fs = OsFileSystem(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before, "opened at the first use"
    file = fs.open("a", "create")
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del fs
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del file
    assert len(os.listdir("/proc/self/fd")) == before


def test_two_threads_that_come_first_share_one_descriptor_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = OsFileSystem(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    real, both = os.fstat, threading.Barrier(2, timeout=30)

    def slow(fd: int) -> os.stat_result:
        if threading.current_thread() in threads:
            both.wait()
        return real(fd)

    monkeypatch.setattr(os, "fstat", slow)
    threads = [threading.Thread(target=fs.list, args=("",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(os.listdir("/proc/self/fd")) == before + 1
