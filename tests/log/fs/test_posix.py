"""What only a real folder can show: links, forks, descriptors. The rest is in log/fs/test_fs.py."""

from __future__ import annotations

import errno
import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.errors import ClosedError, StorageFullError, StorageIOError
from mldb.log.fs import posix_file
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.posix import OsFileSystem
from tests.support.processes import Child, Line


@pytest.fixture
def fs(tmp_path: Path) -> OsFileSystem:
    return OsFileSystem(tmp_path / "store")


@pytest.fixture
def outside(tmp_path: Path, fs: OsFileSystem) -> Path:
    """A folder beside the store, with a file in it; the store links to both."""
    fs.mkdir("")
    path = tmp_path / "outside"
    path.mkdir()
    (path / "file").write_bytes(b"precious")
    os.symlink(path, f"{fs.root}/folder")
    os.symlink(path / "file", f"{fs.root}/link")
    os.symlink(path / "none", f"{fs.root}/dangling")
    return path


def in_child(action: Callable[[], int]) -> int:
    """Run *action* in a forked child and return its exit status."""
    with warnings.catch_warnings():
        # Other tests may have left threads; this child touches nothing that they hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = action()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_root_may_be_relative_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fs = OsFileSystem("new/store")
    assert (fs.list(""), fs.exists("a")) == ([], False)
    fs.mkdir("")
    monkeypatch.chdir("/")
    fs.mkdir("segments")
    assert os.listdir(tmp_path / "new" / "store") == ["segments"]


def test_links_are_never_followed(fs: OsFileSystem, outside: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: fs.open("link", "r"),
        lambda: fs.open("link", "rw"),
        lambda: fs.open("dangling", "create"),
        lambda: fs.open("folder", "r"),
        lambda: fs.open("folder/file", "rw"),
        lambda: fs.open("folder/new", "create"),
        lambda: fs.list("folder"),
        lambda: fs.mkdir("folder"),
        lambda: fs.mkdir("folder/below"),
        lambda: fs.link("folder/file", "copy"),
        lambda: fs.rename("folder/file", "copy"),
        lambda: fs.unlink("folder/file"),
        lambda: fs.sync_dir("folder"),
        lambda: fs.lock("folder/LOCK"),
        lambda: fs.lock("link"),
    ]
    for call in calls:
        with pytest.raises(StorageIOError) as info:
            call()
        assert info.value.errno in {errno.ELOOP, errno.EEXIST, errno.ENOTDIR}
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_bytes() == b"precious"


def test_unlink_and_rename_touch_a_link_not_its_target(fs: OsFileSystem, outside: Path) -> None:
    fs.unlink("link")
    fs.open("new", "create").close()
    fs.rename("new", "dangling")
    assert sorted(fs.list("")) == ["dangling", "folder"]
    assert sorted(os.listdir(outside)) == ["file"]


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "store")
    fs = OsFileSystem(tmp_path / "store")
    fs.mkdir("segments")
    fs.open("segments/1", "create").close()
    fs.sync_dir("")
    assert fs.list("segments") == ["1"]


def test_link_from_shares_a_file_of_another_store(
    tmp_path: Path, fs: OsFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs.mkdir("")
    other = OsFileSystem(tmp_path / "other")
    other.mkdir("segments")
    file = other.open("segments/1", "create")
    assert fs.link_from(other, "segments/1", "copy")
    file.pwritev([b"shared"], 0)
    assert fs.open("copy", "r").pread(9, 0) == b"shared"
    with pytest.raises(StorageIOError) as info:
        fs.link_from(other, "segments/1", "copy")
    assert info.value.errno == errno.EEXIST
    assert not fs.link_from(MemoryFileSystem(), "segments/1", "new")
    assert not MemoryFileSystem().link_from(fs, "copy", "new")

    def across(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", across)
    assert not fs.link_from(other, "segments/1", "new")
    assert fs.list("") == ["copy"]


@pytest.mark.parametrize("create", [False, True])
def test_a_root_that_is_no_folder_is_refused(tmp_path: Path, create: bool) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    OsFileSystem.prepare_root(str(tmp_path), create=create)
    with pytest.raises(StorageIOError) as info:
        OsFileSystem.prepare_root(str(tmp_path / "file"), create=create)
    assert info.value.errno == errno.ENOTDIR
    assert (tmp_path / "file").read_bytes() == b"precious"
    if create:
        OsFileSystem.prepare_root(str(tmp_path / "new/store"), create=True)
        assert (tmp_path / "new/store").is_dir()
    else:
        with pytest.raises(StorageIOError) as info:
            OsFileSystem.prepare_root(str(tmp_path / "new"), create=False)
        assert info.value.errno == errno.ENOENT


def test_a_pipe_is_refused_without_waiting(fs: OsFileSystem) -> None:
    fs.mkdir("")
    os.mkfifo(f"{fs.root}/pipe")
    signal.alarm(5)
    try:
        for mode in ("r", "rw"):
            with pytest.raises(StorageIOError, match="not a regular file"):
                fs.open("pipe", mode)
    finally:
        signal.alarm(0)


def test_nothing_is_leaked(fs: OsFileSystem) -> None:
    fs.mkdir("")
    fs.open("a", "create").pwritev([b"abc"], 0)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        with pytest.raises(StorageIOError):
            fs.open("", "r")
        file = fs.open("a", "r")
        view = file.map(3)
        lock = fs.lock("LOCK")
        assert lock.try_acquire()
        del file, lock
        assert bytes(view) == b"abc"
        del view
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_short_write_is_continued(fs: OsFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    fs.mkdir("")
    file = fs.open("a", "create")
    sizes: list[int] = []
    real = os.pwritev

    def one_byte_less(fd: int, buffers: list[bytes], offset: int) -> int:
        data = b"".join(buffers)
        sizes.append(len(data))
        return real(fd, [data[: max(1, len(data) - 700)]], offset)

    monkeypatch.setattr(os, "pwritev", one_byte_less)
    data = bytes(range(256)) * 10
    assert file.pwritev([data[:300], data[300:301], data[301:]], 5) == len(data)
    assert len(sizes) > 3
    assert file.pread(5000, 5) == data


def test_a_file_size_limit_is_a_full_store(fs: OsFileSystem) -> None:
    fs.mkdir("")

    def write_beyond_the_limit() -> int:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        file = OsFileSystem(fs.root).open("a", "create")
        file.pwritev([bytes(9_000)], 0)
        try:
            file.pwritev([bytes(500), bytes(5_000)], 9_000)
        except StorageFullError as error:
            return 0 if error.errno == errno.EFBIG else 1
        return 2

    assert in_child(write_beyond_the_limit) == 0
    assert fs.open("a", "r").size() == 10_000


def test_a_forked_child_holds_no_lock(fs: OsFileSystem) -> None:
    fs.mkdir("")
    lock, idle = fs.lock("LOCK"), fs.lock("LOCK")
    assert lock.try_acquire()

    def child() -> int:
        lock.release()
        lock.close()
        mine = OsFileSystem(fs.root).lock("LOCK")
        if mine.try_acquire():
            return 1  # the parent's lock was lost
        with pytest.raises(ClosedError):
            lock.try_acquire()
        return 0

    assert in_child(child) == 0
    assert not idle.try_acquire()
    lock.close()
    assert idle.try_acquire()
    idle.close()


def test_a_child_outliving_its_parent_does_not_keep_the_lock(fs: OsFileSystem) -> None:
    fs.mkdir("")
    ready, done = os.pipe(), os.pipe()

    def parent() -> int:
        lock = OsFileSystem(fs.root).lock("LOCK")
        if not lock.try_acquire():
            return 1
        if os.fork() == 0:
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        os.kill(os.getpid(), signal.SIGKILL)
        return 2

    assert in_child(parent) == -signal.SIGKILL
    after = fs.lock("LOCK")
    assert after.try_acquire()
    after.close()
    os.write(done[1], b"x")
    for fd in (*ready, *done):
        os.close(fd)


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="Linux only")
def test_the_holder_is_named(fs: OsFileSystem) -> None:
    fs.mkdir("")
    first, second = fs.lock("LOCK"), fs.lock("LOCK")
    assert second.holder() == "an unknown process"
    assert first.try_acquire()
    assert second.holder().startswith(f"process {os.getpid()} on ")
    first.close()
    second.close()
    assert second.holder() == "an unknown process"


def test_writeback_is_optional(fs: OsFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    fs.mkdir("")
    file = fs.open("a", "create")
    file.pwritev([bytes(10_000)], 0)
    file.start_writeback(0, 10_000)
    monkeypatch.setattr(posix_file, "_sync_file_range", lambda: None)
    file.start_writeback(0, 10_000)
    file.sync()
    assert file.size() == 10_000


def test_allocated_space_changes_nothing_that_is_seen(
    fs: OsFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs.mkdir("")
    file = fs.open("a", "create")
    file.pwritev([b"head"], 0)
    file.allocate(1 << 20)
    file.allocate(0)
    file.allocate(1 << 62)  # more than there is: left as it is
    assert file.size() == 4
    assert file.pread(100, 0) == b"head"
    file.pwritev([b"tail"], (1 << 20) - 4)
    assert file.pread(1 << 20, 0) == b"head" + bytes((1 << 20) - 8) + b"tail"
    monkeypatch.setattr(posix_file, "_fallocate", lambda: None)
    file.allocate(2 << 20)
    file.sync()
    assert file.size() == 1 << 20


# --- the path of a store --------------------------------------------------------------------------


def test_the_empty_path_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It made a store of the working directory: of the program's own files, often."""
    monkeypatch.chdir(tmp_path)
    for mode in ("r", "rw"):
        with pytest.raises(mldb.InvalidNameError, match=r"is empty.*'\.' for the one"):
            mldb.open("", mode=mode)
    assert list(tmp_path.iterdir()) == []
    with mldb.open(".") as db:
        assert Path(db.path) == tmp_path


@pytest.mark.parametrize("kind", [str, Path])
def test_a_tilde_is_the_home_of_the_user_as_in_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    """It made a folder of that name in the working directory."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    with mldb.open(kind("~/runs/one"), durability="os") as db:
        db["x"] = 1
        db.backup(kind("~/runs/copy"))
    assert sorted(path.name for path in (home / "runs").iterdir()) == ["copy", "one"]
    with mldb.open(kind("~/runs/copy"), mode="r") as db:
        assert int(db["x"]) == 1
    with pytest.raises(mldb.InvalidNameError, match=r"a user who is not known.*\./~nobody-at-all"):
        mldb.open(kind("~nobody-at-all/run"))
    assert list(work.iterdir()) == []
    with mldb.open("./~name"):  # a folder that is called so
        assert [path.name for path in work.iterdir()] == ["~name"]


@pytest.mark.parametrize(
    "path", ["a/" * 2500, "a" * 5000, "b" * 256 + "/c", ("x" * 250 + "/") * 17, "ü" * 128]
)
def test_a_path_that_is_too_long_is_refused_before_a_part_of_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """RecursionError at first; later ENAMETOOLONG, with two thousand empty folders left behind."""
    monkeypatch.chdir(tmp_path)
    for mode in ("r", "rw"):
        with pytest.raises(mldb.StorageIOError, match=r"ENAMETOOLONG.*Nothing was changed") as why:
            mldb.open(path, mode=mode)
        assert why.value.errno == errno.ENAMETOOLONG
        assert len(str(why.value)) < 1000
    assert list(tmp_path.iterdir()) == []


def test_who_may_not_write_is_told_how_to_read() -> None:
    tmp_path = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    with mldb.open(tmp_path / "store", durability="os") as db:
        db["x"] = 7
    (tmp_path / "closed" / "below").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    for path in (tmp_path / "store", *(tmp_path / "store").rglob("*"), tmp_path):
        path.chmod(0o555 if path.is_dir() else 0o444)

    def child(_: Line) -> None:
        if os.geteuid() == 0:
            os.seteuid(54_321)
        with pytest.raises(mldb.StorageIOError, match=r"EACCES.*may not write.*mode='r'") as why:
            mldb.open(tmp_path / "store")
        assert why.value.errno == errno.EACCES
        with mldb.open(tmp_path / "store", mode="r") as db:
            assert int(db["x"]) == 7
        for name in ("new", "closed/below"):
            with pytest.raises(mldb.StorageIOError, match="may not make, enter or read") as other:
                mldb.open(tmp_path / name)
            assert "mode='r'" not in str(other.value)

    try:
        with Child(child) as running:
            assert running.wait() == 0, "see the traceback of the child"
    finally:
        for path in (tmp_path, tmp_path / "closed", *(tmp_path / "store").rglob("*")):
            path.chmod(0o755)
        (tmp_path / "store").chmod(0o755)
        shutil.rmtree(tmp_path)


_LIMITED = """
import errno, resource, sys
from pathlib import Path
import numpy, mldb

small, large = sys.argv[1:]
with mldb.open(small, mode="r") as db:
    db["small"]  # all is imported now, and all pools are made
with mldb.open(large, mode="r") as db:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)
    try:
        db["large"]
    except mldb.StorageIOError as error:
        print(error)
        assert error.errno == errno.ENOMEM
"""


def test_a_memory_limit_is_named_as_a_reason(tmp_path: Path) -> None:
    """ENOMEM alone sent people to look at their disks.

    A process of its own: what other tests mapped in this one is given back when memory is short,
    and then there is room after all.
    """
    stores = tmp_path / "small", tmp_path / "large"
    for path, count in zip(stores, (4, 16 << 20), strict=True):
        with mldb.open(path, durability="os") as db:
            db[path.name] = np.ones(count)
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, *map(str, stores)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"ENOMEM.*ulimit -v.*max_mapped", done.stdout), done.stdout
    assert "Nothing is lost" in done.stdout


def _overcommits() -> bool:
    """Whether private mappings may exceed memory: not where the kernel counts them all."""
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() != "2"
    except OSError:
        return False


@pytest.mark.skipif(not _overcommits(), reason="the kernel promises memory for every mapping")
def test_a_private_map_may_be_larger_than_memory_and_swap(tmp_path: Path) -> None:
    """Only pages that are written to take memory: the kernel need not have it for all of them."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    size = 2 * (sizes["MemTotal"] + sizes["SwapTotal"])
    with (tmp_path / "sparse").open("wb") as sparse:
        try:
            sparse.truncate(size)
        except OSError as error:
            pytest.skip(f"no file of {size} bytes here: {error}")
    file = OsFileSystem(tmp_path).open("sparse", "r")
    view = file.map_private(0, size)
    view[size - 3 :] = b"end"
    assert (len(view), bytes(view[size - 5 :])) == (size, b"\0\0end")
    assert file.pread(5, size - 5) == bytes(5)
