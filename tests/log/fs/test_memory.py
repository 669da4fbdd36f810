"""The file system in memory against a model made of dicts, and what only it can do.

The same machine runs over the real file system, so the two cannot drift apart. log/fs/test_fs.py
has the examples.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mldb.errors import ClosedError, StorageIOError
from mldb.log.fs.memory import MemoryFileSystem
from mldb.log.fs.memory_disk import Names, Sync, SyncFolder, Write
from mldb.log.fs.posix import OsFileSystem
from mldb.log.fs.protocol import File, FileSystem, KernelLock
from tests.support.parts import examples

FOLDERS = ("", "a", "a/b")
NAMES = tuple(f"{folder}/{name}".lstrip("/") for folder in FOLDERS for name in ("x", "y"))

names = st.sampled_from(NAMES)
offsets = st.integers(0, 200)


@dataclass
class Box:
    """The model of an inode."""

    data: bytearray = field(default_factory=bytearray)


def codes_of(error: StorageIOError) -> str:
    return errno.errorcode[error.errno or 0]


class ModelMachine(RuleBasedStateMachine):
    def make(self) -> FileSystem:
        return MemoryFileSystem(record=True)

    def __init__(self) -> None:
        super().__init__()
        self.fs = self.make()
        self.folders = {""}
        self.files: dict[str, Box] = {}
        self.handles: list[tuple[File, Box]] = []
        self.views: list[tuple[memoryview, Box]] = []
        self.private: list[tuple[memoryview, bytes]] = []
        self.locks: list[tuple[KernelLock, Box]] = []
        self.owners: dict[int, KernelLock] = {}

    def expect(self, code: str, name: str, mode: str) -> None:
        with pytest.raises(StorageIOError) as info:
            self.fs.open(name, mode)  # type: ignore[arg-type]
        assert codes_of(info.value) == code

    @rule(folder=st.sampled_from(FOLDERS[1:]))
    def mkdir(self, folder: str) -> None:
        self.fs.mkdir(folder)
        parts = folder.split("/")
        self.folders.update("/".join(parts[: depth + 1]) for depth in range(len(parts)))

    def has_folder(self, name: str) -> bool:
        return name.rpartition("/")[0] in self.folders

    @rule(name=names)
    def create(self, name: str) -> None:
        if not self.has_folder(name):
            self.expect("ENOENT", name, "create")
        elif name in self.files:
            self.expect("EEXIST", name, "create")
        else:
            self.files[name] = Box()
            self.handles.append((self.fs.open(name, "create"), self.files[name]))

    @rule(name=names)
    def open(self, name: str) -> None:
        if name in self.files:
            self.handles.append((self.fs.open(name, "rw"), self.files[name]))
        else:
            self.expect("ENOENT", name, "rw")

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), offset=offsets, parts=st.lists(st.binary(max_size=60), max_size=4))
    def write(self, data: st.DataObject, offset: int, parts: list[bytes]) -> None:
        file, box = data.draw(st.sampled_from(self.handles))
        whole = b"".join(parts)
        assert file.pwritev(parts, offset) == len(whole)
        if whole:
            box.data.extend(bytes(max(0, offset - len(box.data))))
            box.data[offset : offset + len(whole)] = whole

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), offset=offsets, count=offsets)
    def read(self, data: st.DataObject, offset: int, count: int) -> None:
        file, box = data.draw(st.sampled_from(self.handles))
        assert file.size() == len(box.data)
        assert file.pread(count, offset) == box.data[offset : offset + count]

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), count=offsets)
    def map(self, data: st.DataObject, count: int) -> None:
        file, box = data.draw(st.sampled_from(self.handles))
        if count > len(box.data):
            with pytest.raises(StorageIOError):
                file.map(count)
            return
        self.views.append((file.map(count), box))
        private = file.map_private(count // 2, count - count // 2)
        private[:] = bytes(byte ^ 255 for byte in private)
        self.private.append((private, bytes(private)))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.handles) - 1))
        file, _ = self.handles.pop(place)
        file.sync()
        file.close()

    @rule(source=names, new=names)
    def link(self, source: str, new: str) -> None:
        if source not in self.files or not self.has_folder(new):
            with pytest.raises(StorageIOError):
                self.fs.link(source, new)
            return
        assert self.fs.link(source, new) is (new not in self.files)
        self.files.setdefault(new, self.files[source])

    @rule(source=names, new=names)
    def rename(self, source: str, new: str) -> None:
        if source not in self.files or not self.has_folder(new):
            with pytest.raises(StorageIOError):
                self.fs.rename(source, new)
            return
        self.fs.rename(source, new)
        if self.files.get(new) is not self.files[source]:
            self.files[new] = self.files.pop(source)

    @rule(name=names)
    def unlink(self, name: str) -> None:
        self.fs.unlink(name)
        self.files.pop(name, None)

    @rule(name=names)
    def lock(self, name: str) -> None:
        if self.has_folder(name):
            self.locks.append((self.fs.lock(name), self.files.setdefault(name, Box())))

    @precondition(lambda self: self.locks)
    @rule(data=st.data(), action=st.sampled_from(["acquire", "release", "close"]))
    def use_lock(self, data: st.DataObject, action: str) -> None:
        lock, box = data.draw(st.sampled_from(self.locks))
        owner = self.owners.get(id(box))
        if action == "acquire":
            assert lock.try_acquire() is (owner is None or owner is lock)
            self.owners.setdefault(id(box), lock)
            return
        if action == "release":
            lock.release()
        else:
            lock.close()
            self.locks.remove((lock, box))
        if owner is lock:
            del self.owners[id(box)]

    @invariant()
    def names_agree(self) -> None:
        for folder in FOLDERS:
            inside = {name for name in (*self.files, *self.folders) if name and name != folder}
            here = {name for name in inside if name.rpartition("/")[0] == folder}
            expected = sorted(name.rpartition("/")[2] for name in here)
            assert self.fs.list(folder) == (expected if folder in self.folders else [])
        for name in (*NAMES, *FOLDERS):
            assert self.fs.exists(name) is (name in self.files or name in self.folders or not name)

    @invariant()
    def views_agree(self) -> None:
        assert all(view == box.data[: len(view)] for view, box in self.views)
        assert all(view == data for view, data in self.private)

    def teardown(self) -> None:
        for name, box in self.files.items():
            file = self.fs.open(name, "r")
            assert file.pread(1000, 0) == box.data
            file.close()
        for lock, _ in self.locks:
            lock.close()
        if isinstance(self.fs, MemoryFileSystem):
            assert replayed(self.fs) == {name: bytes(box.data) for name, box in self.files.items()}


class OsMachine(ModelMachine):
    def make(self) -> FileSystem:
        self.path = tempfile.mkdtemp()
        return OsFileSystem(self.path)

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.path)


def replayed(fs: MemoryFileSystem) -> dict[str, bytes]:
    """Fold the journal by the plainest code there is."""
    assert fs.journal is not None
    inodes: dict[int, bytearray] = {}
    paths: dict[str, int] = {}
    for operation in fs.journal.operations:
        match operation:
            case Write(inode, offset, data):
                content = inodes[inode]
                content.extend(bytes(max(0, offset - len(content))))
                content[offset : offset + len(data)] = data
            case Names(_, effects):
                for path, number in effects:
                    if number is None:
                        del paths[path]
                    else:
                        paths[path] = number
                        inodes.setdefault(number, bytearray())
            case Sync() | SyncFolder():
                pass
    return {path: bytes(inodes[number]) for path, number in paths.items() if number}


TestModel = ModelMachine.TestCase
TestModel.settings = examples(60, stateful_step_count=40)
TestSameMachineOnDisk = OsMachine.TestCase
TestSameMachineOnDisk.settings = examples(15, stateful_step_count=40)


def test_a_kill_frees_locks_and_ends_handles() -> None:
    fs = MemoryFileSystem()
    file = fs.open("a", "create")
    file.pwritev([b"not synced"], 0)
    view = file.map(3)
    lock = fs.lock("LOCK")
    assert lock.try_acquire()
    fs.kill()
    after = fs.lock("LOCK")
    assert after.try_acquire()
    for call in (file.size, file.sync, lock.try_acquire):
        with pytest.raises(ClosedError):
            call()
    lock.release()
    lock.close()
    file.close()
    assert not fs.lock("LOCK").try_acquire()
    assert bytes(view) == b"not"
    assert fs.open("a", "r").pread(99, 0) == b"not synced"


def test_the_clock_is_set_and_ticks() -> None:
    fs = MemoryFileSystem()
    fs.clock_ns, fs.tick_ns = 1000, 7
    assert [fs.time_ns() for _ in range(3)] == [1000, 1007, 1014]
    fs.clock_ns = 5
    assert fs.time_ns() == 5
    fs.free = 12
    assert fs.free_bytes() == 12


def test_appending_does_not_copy_the_file() -> None:
    fs = MemoryFileSystem()
    file = fs.open("a", "create")
    file.pwritev([bytes(1 << 20)], 0)
    pages = fs._files["a"].data
    for _ in range(100):
        file.pwritev([b"x" * 1000], file.size())
    assert fs._files["a"].data is pages
    assert file.size() == (1 << 20) + 100_000


def test_an_image_is_a_copy_to_start_from() -> None:
    fs = MemoryFileSystem()
    fs.mkdir("a")
    file = fs.open("a/x", "create")
    file.pwritev([b"abc"], 0)
    fs.link("a/x", "y")
    image = fs.image()
    other = MemoryFileSystem(image=image)
    file.pwritev([b"later"], 0)
    copy = other.open("a/x", "rw")
    assert copy.pread(9, 0) == b"abc"
    copy.pwritev([b"AB"], 0)
    assert other.open("y", "r").pread(9, 0) == b"ABc"
    assert image.contents == {1: b"abc"}
    assert other.list("") == ["a", "y"]
    other.open("new", "create").pwritev([b"new"], 0)
    assert other.image().contents == {1: b"ABc", 2: b"new"}


def test_operations_are_recorded_in_order() -> None:
    fs = MemoryFileSystem(record=True)
    fs.mkdir("a/b")
    file = fs.open("a/x", "create")
    fs.mark("begin")
    file.pwritev([b"ab", b"cd"], 1)
    file.pwritev([b""], 9)
    file.sync()
    assert fs.link("a/x", "a/y")
    assert not fs.link("a/x", "a/y")
    fs.rename("a/x", "z")
    fs.unlink("z")
    fs.unlink("z")
    fs.sync_dir("a")
    fs.lock("LOCK")
    fs.lock("LOCK")
    fs.mark("end")
    assert fs.journal is not None
    assert fs.journal.operations == [
        Names("mkdir", (("a", 0),)),
        Names("mkdir", (("a/b", 0),)),
        Names("create", (("a/x", 1),)),
        Write(1, 1, b"abcd"),
        Sync(1),
        Names("link", (("a/y", 1),)),
        Names("rename", (("a/x", None), ("z", 1))),
        Names("unlink", (("z", None),)),
        SyncFolder("a"),
        Names("create", (("LOCK", 2),)),
    ]
    assert (fs.marks, fs.journal.mark_positions) == (["begin", "end"], [3, 10])


def test_nothing_is_recorded_unless_asked() -> None:
    fs = MemoryFileSystem()
    fs.open("a", "create").pwritev([b"abc"], 0)
    fs.mark("label")
    assert (fs.journal, fs.marks) == (None, ["label"])
    assert fs.description == "a live file system, not a crash state"


def test_threads_share_it() -> None:
    fs = MemoryFileSystem(record=True)
    fs.mkdir("a")
    file = fs.open("log", "create")
    winners: list[int] = []

    def work(number: int) -> None:
        for turn in range(200):
            file.pwritev([bytes([number]) * 8], 8 * (number * 200 + turn))
            mine = fs.open(f"a/{number}-{turn}", "create")
            mine.pwritev([b"data"], 0)
            if fs.link(f"a/{number}-{turn}", f"turn-{turn}"):
                winners.append(turn)
            fs.unlink(f"a/{number}-{turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(winners) == list(range(200))
    assert fs.list("a") == []
    assert file.pread(6400, 0) == b"".join(bytes([number]) * 1600 for number in range(4))


def test_the_holder_is_this_process() -> None:
    assert str(os.getpid()) in MemoryFileSystem().lock("LOCK").holder()
