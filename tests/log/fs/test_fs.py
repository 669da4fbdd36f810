"""What every FileSystem promises, held against the real one and the one in memory."""

from __future__ import annotations

import errno
import gc
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mldb.errors import (
    ClosedError,
    InvalidNameError,
    MldbError,
    ReadOnlyError,
    StorageFullError,
    StorageIOError,
)
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import Buffer, FileSystem, translate
from tests.support.faults import FaultFileSystem

KINDS = ("os", "memory", "faultless")


@pytest.fixture(params=KINDS)
def fs(request: pytest.FixtureRequest, tmp_path: Path) -> FileSystem:
    kinds: dict[str, Callable[[], FileSystem]] = {
        "os": lambda: OsFileSystem(tmp_path),
        "memory": MemoryFileSystem,
        "faultless": lambda: FaultFileSystem(OsFileSystem(tmp_path)),
    }
    return kinds[request.param]()


def put(fs: FileSystem, name: str, data: bytes) -> None:
    file = fs.open(name, "create")
    file.pwritev([data], 0)
    file.close()


def get(fs: FileSystem, name: str) -> bytes:
    file = fs.open(name, "r")
    data = file.pread(file.size(), 0)
    file.close()
    return data


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(StorageIOError) as info:
        call()
    return info.value.errno


def test_a_new_file_is_empty_and_grows(fs: FileSystem) -> None:
    file = fs.open("a", "create")
    assert file.size() == 0
    assert file.pread(10, 0) == b""
    assert file.pwritev([b"abc", b"", b"de"], 0) == 5
    assert file.pwritev([b"Z"], 1) == 1
    assert (file.size(), file.pread(5, 0)) == (5, b"aZcde")


def test_reads_are_short_only_at_the_end(fs: FileSystem) -> None:
    put(fs, "a", b"0123456789")
    file = fs.open("a", "r")
    assert file.pread(4, 3) == b"3456"
    assert file.pread(100, 7) == b"789"
    assert file.pread(100, 10) == b""
    assert file.pread(100, 1000) == b""


def test_a_gap_reads_as_zeros(fs: FileSystem) -> None:
    file = fs.open("a", "create")
    file.pwritev([b"end"], 5000)
    assert file.pread(6000, 0) == bytes(5000) + b"end"


def test_an_empty_write_changes_nothing(fs: FileSystem) -> None:
    file = fs.open("a", "create")
    assert file.pwritev([], 10) == 0
    assert file.pwritev([b"", b""], 10) == 0
    assert file.size() == 0


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 5000])
def test_any_number_of_buffers_is_one_write(fs: FileSystem, count: int) -> None:
    rng = random.Random(count)
    buffers = [rng.randbytes(rng.randrange(40)) for _ in range(count)]
    file = fs.open("a", "create")
    assert file.pwritev(buffers, 7) == sum(map(len, buffers))
    assert file.pread(1 << 20, 7) == b"".join(buffers)


def test_a_write_above_the_step_of_8_mib(fs: FileSystem) -> None:
    rng = random.Random(8)
    data = rng.randbytes((8 << 20) + 12345)
    middle = memoryview(data)[100 : 5 << 20]
    buffers: list[Buffer] = [data[:100], middle, bytearray(data[5 << 20 :]), b"tail"]
    file = fs.open("a", "create")
    assert file.pwritev(buffers, 1) == len(data) + 4
    assert file.size() == len(data) + 5
    assert file.pread(len(data) + 4, 1) == data + b"tail"


def test_buffers_count_in_bytes_whatever_their_items(fs: FileSystem) -> None:
    array = np.arange(12, dtype="<f8").reshape(3, 4)
    buffers: list[Buffer] = [array.data, np.float32(1.5).data, array[:0].data]
    file = fs.open("a", "create")
    assert file.pwritev(buffers, 0) == 100
    assert file.pread(200, 0) == array.tobytes() + np.float32(1.5).tobytes()
    many = buffers * 500
    assert file.pwritev(many, 0) == 50_000
    assert file.pread(50_000, 0) == (array.tobytes() + np.float32(1.5).tobytes()) * 500


def test_handles_of_one_file_see_each_other(fs: FileSystem) -> None:
    writer = fs.open("a", "create")
    reader = fs.open("a", "r")
    writer.pwritev([b"one"], 0)
    assert (reader.size(), reader.pread(9, 0)) == (3, b"one")


def test_a_map_is_write_protected(fs: FileSystem) -> None:
    put(fs, "a", b"abcdef")
    view = fs.open("a", "rw").map(4)
    assert (view.readonly, bytes(view)) == (True, b"abcd")
    with pytest.raises(TypeError, match="read-only"):
        view[0] = 0
    array = np.frombuffer(view, np.uint8)
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_an_empty_map(fs: FileSystem) -> None:
    put(fs, "a", b"abc")
    file = fs.open("a", "r")
    assert (bytes(file.map(0)), file.map(0).readonly) == (b"", True)
    assert bytes(file.map_private(1, 0)) == b""


def test_a_map_outlives_growth_close_and_unlink(fs: FileSystem) -> None:
    file = fs.open("a", "create")
    file.pwritev([b"first"], 0)
    view = file.map(5)
    part = view[1:4]
    file.pwritev([b"x" * 100_000], 5)
    longer = file.map(100_005)
    file.close()
    fs.unlink("a")
    put(fs, "a", b"another file of this name")
    del view, file
    gc.collect()
    assert bytes(part) == b"irs"
    assert bytes(longer[:7]) == b"firstxx"


def test_a_map_is_shared_with_later_writes(fs: FileSystem) -> None:
    file = fs.open("a", "create")
    file.pwritev([bytes(64)], 0)
    views = [file.map(64)]
    for number in range(1, 60):
        file.pwritev([bytes([number])], number)
        file.pwritev([b"growth" * number], file.size())
        views.append(file.map(64))
    assert {bytes(view) for view in views} == {bytes(range(60)) + bytes(4)}


def test_a_map_beyond_the_end_is_refused(fs: FileSystem) -> None:
    put(fs, "a", b"abc")
    file = fs.open("a", "r")
    with pytest.raises(StorageIOError):
        file.map(4)
    with pytest.raises(StorageIOError):
        file.map_private(1, 3)


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 5000])
def test_a_private_map_keeps_its_writes(fs: FileSystem, offset: int) -> None:
    data = random.Random(5).randbytes(10_000)
    put(fs, "a", data)
    file = fs.open("a", "r")
    view = file.map_private(offset, 100)
    other = file.map_private(offset, 100)
    shared = file.map(10_000)
    file.close()
    assert (view.readonly, bytes(view)) == (False, data[offset : offset + 100])
    view[:] = bytes(100)
    assert bytes(other) == data[offset : offset + 100]
    assert bytes(shared) == data
    assert get(fs, "a") == data


def test_opening_what_is_not_there_or_is_already(fs: FileSystem) -> None:
    fs.mkdir("folder")
    put(fs, "a", b"abc")
    assert errno_of(lambda: fs.open("b", "r")) == errno.ENOENT
    assert errno_of(lambda: fs.open("b", "rw")) == errno.ENOENT
    assert errno_of(lambda: fs.open("none/b", "create")) == errno.ENOENT
    assert errno_of(lambda: fs.open("a/b", "create")) == errno.ENOTDIR
    assert errno_of(lambda: fs.open("a", "create")) == errno.EEXIST
    assert errno_of(lambda: fs.open("folder", "rw")) == errno.EISDIR
    with pytest.raises(StorageIOError):
        fs.open("folder", "r")
    assert get(fs, "a") == b"abc"


def test_an_error_has_its_cause_and_place(fs: FileSystem) -> None:
    with pytest.raises(StorageIOError, match=f"open failed with ENOENT on {fs.root}/b") as info:
        fs.open("b", "r")
    assert isinstance(info.value.__cause__, OSError)


def test_a_reading_handle_cannot_write(fs: FileSystem) -> None:
    put(fs, "a", b"abc")
    file = fs.open("a", "r")
    with pytest.raises(ReadOnlyError, match="a was opened for reading"):
        file.pwritev([b"x"], 0)
    assert get(fs, "a") == b"abc"


def test_a_closed_handle_does_nothing_to_others(fs: FileSystem) -> None:
    file = fs.open("a", "create")
    file.pwritev([b"abc"], 0)
    file.close()
    file.close()
    # A new file may get the number of the old descriptor.
    other = fs.open("b", "create")
    calls: list[Callable[[], object]] = [
        lambda: file.pwritev([b"x"], 0),
        file.size,
        lambda: file.pread(1, 0),
        file.sync,
        lambda: file.map(3),
        lambda: file.map_private(0, 3),
    ]
    for call in calls:
        with pytest.raises(ClosedError, match="a was closed meanwhile") as info:
            call()
        assert not info.value.failed_sync, "no sync was tried"
    assert other.size() == 0


def test_folders(fs: FileSystem) -> None:
    assert fs.list("") == []
    assert fs.list("none") == []
    fs.mkdir("b/c")
    fs.mkdir("b/c")
    fs.mkdir("a")
    put(fs, "b/file", b"")
    assert (fs.list(""), fs.list("b"), fs.list("b/c")) == (["a", "b"], ["c", "file"], [])
    assert [fs.exists(name) for name in ("b", "b/file", "b/none", "b/c")] == [1, 1, 0, 1]
    fs.sync_dir("")
    fs.sync_dir("b/c")
    assert errno_of(lambda: fs.sync_dir("none")) == errno.ENOENT
    assert errno_of(lambda: fs.list("b/file")) == errno.ENOTDIR
    with pytest.raises(StorageIOError):
        fs.mkdir("b/file")
    with pytest.raises(StorageIOError):
        fs.unlink("b/c")


def test_link_publishes_only_where_nothing_is(fs: FileSystem) -> None:
    put(fs, "a", b"first")
    put(fs, "b", b"second")
    assert fs.link("a", "new")
    assert not fs.link("b", "new")
    assert get(fs, "new") == b"first"
    fs.unlink("a")
    assert (fs.list(""), get(fs, "new")) == (["b", "new"], b"first")
    assert errno_of(lambda: fs.link("a", "newer")) == errno.ENOENT


def test_links_are_one_file(fs: FileSystem) -> None:
    file = fs.open("a", "create")
    fs.link("a", "b")
    file.pwritev([b"later"], 0)
    assert get(fs, "b") == b"later"


def test_rename_replaces(fs: FileSystem) -> None:
    fs.mkdir("folder")
    put(fs, "a", b"new")
    put(fs, "folder/b", b"old")
    reader = fs.open("folder/b", "r")
    view = reader.map(3)
    fs.rename("a", "folder/b")
    assert (fs.list(""), get(fs, "folder/b")) == (["folder"], b"new")
    assert (reader.pread(9, 0), bytes(view)) == (b"old", b"old")
    assert errno_of(lambda: fs.rename("a", "c")) == errno.ENOENT
    assert errno_of(lambda: fs.rename("folder/b", "none/b")) == errno.ENOENT
    assert errno_of(lambda: fs.rename("folder/b", "folder")) in {errno.EISDIR, errno.ENOTEMPTY}


def test_rename_onto_another_name_of_the_file_keeps_both(fs: FileSystem) -> None:
    put(fs, "a", b"abc")
    fs.link("a", "b")
    fs.rename("a", "b")
    assert fs.list("") == ["a", "b"]


def test_unlink_leaves_open_files_alone(fs: FileSystem) -> None:
    fs.unlink("never there")
    file = fs.open("a", "create")
    file.pwritev([b"abc"], 0)
    fs.unlink("a")
    assert not fs.exists("a")
    file.pwritev([b"def"], 3)
    file.sync()
    assert file.pread(9, 0) == b"abcdef"
    put(fs, "a", b"other")
    assert file.pread(9, 0) == b"abcdef"


def test_a_lock_excludes_a_second_handle(fs: FileSystem) -> None:
    first, second = fs.lock("LOCK"), fs.lock("LOCK")
    assert first.try_acquire()
    assert not second.try_acquire()
    second.release()
    assert not second.try_acquire()
    assert second.holder()
    first.release()
    assert second.try_acquire()
    second.close()
    assert first.try_acquire()
    first.close()
    first.close()
    first.release()
    with pytest.raises(ClosedError, match="LOCK was closed meanwhile"):
        first.try_acquire()


def test_a_forgotten_lock_is_free(fs: FileSystem) -> None:
    if isinstance(fs, FaultFileSystem):
        pytest.skip("it keeps its locks to free them at a kill")
    first, second = fs.lock("LOCK"), fs.lock("LOCK")
    assert first.try_acquire()
    del first
    gc.collect()
    assert second.try_acquire()


def test_a_lock_belongs_to_the_file_not_to_its_name(fs: FileSystem) -> None:
    put(fs, "LOCK", b"content is kept")
    first = fs.lock("LOCK")
    assert first.try_acquire()
    assert get(fs, "LOCK") == b"content is kept"
    fs.unlink("LOCK")
    second = fs.lock("LOCK")
    assert second.try_acquire()
    assert fs.exists("LOCK")
    first.close()
    second.close()


@pytest.mark.parametrize("name", ["..", "../a", "a/../../b", "/etc/hosts", "a\0b"])
def test_names_that_leave_the_folder_are_refused(fs: FileSystem, name: str) -> None:
    put(fs, "here", b"")
    calls: list[Callable[[], object]] = [
        lambda: fs.open(name, "r"),
        lambda: fs.open(name, "create"),
        lambda: fs.exists(name),
        lambda: fs.list(name),
        lambda: fs.mkdir(name),
        lambda: fs.link(name, "b"),
        lambda: fs.link("here", name),
        lambda: fs.rename(name, "b"),
        lambda: fs.rename("here", name),
        lambda: fs.unlink(name),
        lambda: fs.sync_dir(name),
        lambda: fs.lock(name),
        lambda: fs.identity(name),
    ]
    for call in calls:
        with pytest.raises(InvalidNameError):
            call()
    assert fs.list("") == ["here"]


def test_clock_and_space(fs: FileSystem) -> None:
    assert fs.free_bytes() > 0
    assert 1_600_000_000 * 10**9 < fs.time_ns() <= fs.time_ns()


def test_a_pause_takes_its_time(fs: FileSystem) -> None:
    began = time.monotonic()
    fs.pause(0.01)
    assert time.monotonic() - began >= 0.01


def test_an_identity_belongs_to_the_file_and_not_to_its_name(fs: FileSystem) -> None:
    fs.mkdir("folder/inner")
    put(fs, "a", b"")
    put(fs, "folder/b", b"")
    names = ["", "a", "folder", "folder/inner", "folder/b"]
    found = {name: fs.identity(name) for name in names}
    assert None not in found.values()
    assert len(set(found.values())) == len(names)
    assert found == {name: fs.identity(name) for name in reversed(names)}
    assert [fs.identity(name) for name in ("none", "folder/none", "a/b")] == [None] * 3
    fs.link("a", "linked")
    fs.rename("folder/b", "moved")
    put(fs, "folder/b", b"")
    assert (fs.identity("linked"), fs.identity("moved")) == (found["a"], found["folder/b"])
    assert fs.identity("folder/b") not in found.values()
    fs.unlink("a")
    assert fs.identity("a") is None


def test_nobody_is_asked_for_relief_unless_told_to_be(fs: FileSystem) -> None:
    assert fs.relieve is None
    fs.relieve = lambda: pytest.fail("nothing was lacking")
    put(fs, "a", b"abc")
    assert fs.relieve is not None
    assert get(fs, "a") == b"abc"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StorageFullError),
        (errno.EDQUOT, StorageFullError),
        (errno.EFBIG, StorageFullError),
        (errno.EROFS, ReadOnlyError),
        (errno.EIO, StorageIOError),
        (errno.EMFILE, StorageIOError),
        (errno.EBADF, ClosedError),
    ],
)
def test_errors_are_translated(code: int, kind: type[MldbError]) -> None:
    error = translate(OSError(code, "why"), "pwritev", "/store", "segments/1")
    assert type(error) is kind
    assert "pwritev" in str(error)
    assert "/store/segments/1" in str(error)
    assert (errno.errorcode[code] in str(error)) is (code != errno.EBADF)
    assert getattr(error, "errno", code) == code


def test_only_what_came_to_its_sync_is_a_failed_sync() -> None:
    for call, failed in (("fdatasync", 1), ("fsync of the folder", 1), ("open", 0), ("pwritev", 0)):
        assert translate(OSError(errno.EIO, "why"), call, "/store", "a").failed_sync == failed
    assert not translate(OSError(errno.EBADF, "why"), "fdatasync", "/store", "a").failed_sync
