"""What the kernel is asked of mappings: it is done, or refused without harm."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mldb.log.fs import advice
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import FileSystem
from tests.support.faults import FaultFileSystem

SIZE = 1_000_001
DATA = random.Random(6).randbytes(SIZE)


def refusing(folder: Path) -> FileSystem:
    fs = FaultFileSystem(OsFileSystem(folder))
    fs.refuses_advice = True
    return fs


KINDS: dict[str, Callable[[Path], FileSystem]] = {
    "os": OsFileSystem,
    "memory": lambda _: MemoryFileSystem(),
    "faultless": lambda folder: FaultFileSystem(OsFileSystem(folder)),
    "refusing": refusing,
}


@pytest.fixture(params=KINDS)
def fs(request: pytest.FixtureRequest, tmp_path: Path) -> FileSystem:
    return KINDS[request.param](tmp_path)


@pytest.fixture
def mapped(fs: FileSystem) -> memoryview:
    file = fs.open("a", "create")
    file.pwritev([DATA], 0)
    return file.map(SIZE)


def touched_kibibytes(view: memoryview) -> int:
    """How much of the mapping that *view* begins is in the page tables of this process."""
    address = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.startswith(f"{address:x}-"):
            break
    return int(next(line for line in lines if line.startswith("Rss:")).split()[1])


@pytest.mark.parametrize("low", [0, 1, 4095, 4096, 70_000, SIZE - 1])
@pytest.mark.parametrize("count", [1, 4096, 300_000, SIZE])
def test_the_bytes_are_the_same_after_it(
    fs: FileSystem, mapped: memoryview, low: int, count: int
) -> None:
    part = mapped[low : low + count]
    want = not getattr(fs, "refuses_advice", False) and sys.platform == "linux"
    assert fs.read_ahead(part) is want
    fs.populate(part)
    assert bytes(part) == DATA[low : low + count]


def test_nothing_is_asked_of_no_bytes() -> None:
    assert not advice.populate(memoryview(b""))
    assert not advice.read_ahead(memoryview(b"a")[1:])


@pytest.mark.skipif(sys.platform != "linux", reason="page tables are shown by Linux alone")
@pytest.mark.parametrize("private", [False, True])
def test_all_faults_are_taken_at_once_and_nothing_is_copied(tmp_path: Path, private: bool) -> None:
    fs = OsFileSystem(tmp_path)
    file = fs.open("a", "create")
    file.pwritev([DATA], 0)
    view = file.map_private(0, SIZE) if private else file.map(SIZE)
    assert touched_kibibytes(view) == 0
    if not fs.populate(view):
        pytest.skip("this kernel has no MADV_POPULATE_READ")
    assert touched_kibibytes(view) == -(-SIZE // 4096) * 4
    if private:
        view[10_000:10_003] = b"new"
        assert file.pread(3, 10_000) == DATA[10_000:10_003]
    assert bytes(view[20_000:]) == DATA[20_000:]


def test_where_a_file_became_shorter_it_is_refused(tmp_path: Path) -> None:
    """Touching what is gone is a signal that ends the process; asking for it is none."""
    fs = OsFileSystem(tmp_path)
    file = fs.open("a", "create")
    file.pwritev([DATA], 0)
    view = file.map(SIZE)
    (tmp_path / "a").write_bytes(DATA[:5000])
    assert not fs.populate(view)
    assert bytes(view[:5000]) == DATA[:5000]


@pytest.mark.parametrize("answer", [None, -1], ids=["no such call", "an error"])
def test_a_kernel_that_refuses_changes_nothing(
    mapped: memoryview, answer: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = None if answer is None else lambda *_: answer
    monkeypatch.setattr(advice, "_madvise", lambda: made)
    assert not advice.populate(mapped)
    assert not advice.read_ahead(mapped)
    assert bytes(mapped) == DATA


def test_what_is_in_memory_is_told(fs: FileSystem, mapped: memoryview) -> None:
    assert fs.is_resident(mapped)  # it was just written
    assert fs.is_resident(mapped[5000:5001])
    assert fs.is_resident(mapped[:0])


@pytest.mark.skipif(sys.platform != "linux", reason="pages are dropped and shown on Linux alone")
def test_what_was_dropped_is_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = OsFileSystem(tmp_path)
    file = fs.open("a", "create")
    file.pwritev([DATA], 0)
    file.sync()
    view = file.map(SIZE)
    with (tmp_path / "a").open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if fs.is_resident(view):
        pytest.skip("this file system keeps its pages")
    with monkeypatch.context() as patch:
        patch.setattr(advice, "_mincore", lambda: None)
        assert fs.is_resident(view), "where nobody knows"
        patch.setattr(advice, "_mincore", lambda: lambda *_: -1)
        assert fs.is_resident(view), "where the kernel does not say"
    assert fs.read_ahead(view)
    assert bytes(view) == DATA
    assert fs.is_resident(view)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are dropped and shown on Linux alone")
def test_what_was_dropped_is_read_in_huge_pages_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice is taken back; of what is in memory none is given."""
    given: list[int] = []
    advise = advice._advise

    def noted(view: memoryview, what: int) -> bool:
        given.append(what)
        return advise(view, what)

    fs = OsFileSystem(tmp_path)
    file = fs.open("a", "create")
    file.pwritev([DATA], 0)
    file.sync()
    view = file.map(SIZE)
    monkeypatch.setattr(advice, "_advise", noted)
    if not fs.populate(view):
        pytest.skip("this kernel takes no faults at once")
    assert given == [advice._POPULATE_READ]
    monkeypatch.setattr(advice, "is_resident", lambda _: False)
    assert fs.populate(view)
    wanted = [advice._HUGE, advice._POPULATE_READ, advice._NO_HUGE]
    assert given[1:] in (wanted, wanted[:2]), "a kernel without huge pages refuses the first"
    assert bytes(view) == DATA


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked on Linux alone")
def test_a_private_page_that_was_written_to_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = OsFileSystem(tmp_path)
    file = fs.open("a", "create")
    file.pwritev([DATA], 0)
    view = file.map_private(0, SIZE)
    assert fs.is_unwritten(view[:0])
    if not fs.is_unwritten(view):
        pytest.skip("this kernel does not say")
    assert bytes(view) == DATA
    assert fs.is_unwritten(view), "reading is no writing"
    view[SIZE - 1] = DATA[SIZE - 1]
    assert not fs.is_unwritten(view), "even where the byte is the same"
    assert not fs.is_unwritten(view[SIZE - 1 :])
    assert fs.is_unwritten(view[:1])
    with monkeypatch.context() as patch:
        patch.setattr(advice, "_PAGEMAP_SCAN", 0xC0606611)
        assert not fs.is_unwritten(view[:1]), "where the kernel has no such call"


def test_where_nobody_knows_a_page_may_have_been_written_to(fs: FileSystem) -> None:
    file = fs.open("a", "create")
    file.pwritev([DATA], 0)
    view = file.map_private(0, SIZE)
    view[5] = 3
    assert not fs.is_unwritten(view)
