"""A FileSystem in memory: deterministic, fast to make, and able to record what a power loss undoes.

For tests and for stores that need not outlive their process. With ``record=True`` every call that
changes the disk is kept in a :class:`~mldb.log.memory_disk.Journal`, from which ``mldb.log.crash_states`` derives the file
systems that a crash could leave behind.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from typing import NoReturn

from mldb.errors import InvalidNameError
from mldb.log.fs import Buffer, OpenMode, translate
from mldb.log.memory_disk import (
    EMPTY,
    FOLDER,
    Crash,
    Image,
    Inode,
    Journal,
    Names,
    Sync,
    SyncFolder,
    Write,
)


def _no_crash() -> str:
    return "a live file system, not a crash state"


class MemoryFile:
    """One open file. Thread-safe. Dead after :meth:`close` and after the ``kill`` of its process."""

    __slots__ = ("_fs", "_inode", "_life", "_writable", "name")

    def __init__(self, fs: MemoryFileSystem, name: str, inode: Inode, writable: bool) -> None:
        self.name = name
        self._fs = fs
        self._inode = inode
        self._life = fs.life
        self._writable = writable

    def _require(self, call: str, *, writing: bool = False) -> Inode:
        if self._life != self._fs.life or (writing and not self._writable):
            self._fs.fail(errno.EBADF, call, self.name)
        return self._inode

    def size(self) -> int:
        """Return the length in bytes."""
        return self._require("lseek").length

    def pread(self, count: int, offset: int) -> bytes:
        """Return up to *count* bytes; shorter only at the end."""
        with self._fs.mutex:
            return self._require("pread").read(count, offset)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Write all buffers at *offset*, in one recorded operation."""
        data = b"".join(buffers)
        with self._fs.mutex:
            inode = self._require("pwritev", writing=True)
            if data:
                inode.write(data, offset)
                self._fs.note(Write(inode.number, offset, data))
        return len(data)

    def start_writeback(self, offset: int, count: int) -> None:
        """Do nothing: it promises nothing."""

    def sync(self) -> None:
        """Record that everything written so far is durable."""
        with self._fs.mutex:
            self._fs.note(Sync(self._require("fdatasync").number))

    def map(self, count: int) -> memoryview:
        """Return a read-only view that sees later writes, as a shared mapping does."""
        with self._fs.mutex:
            self._check_range(count)
            return self._inode.view(count)

    def map_private(self, offset: int, count: int) -> memoryview:
        """Return a writable copy of a range."""
        with self._fs.mutex:
            self._check_range(offset + count)
            return memoryview(bytearray(self._inode.read(count, offset)))

    def _check_range(self, end: int) -> None:
        if end > self._require("mmap").length:
            self._fs.fail(errno.EINVAL, "mmap beyond the end", self.name)

    def close(self) -> None:
        """End this handle."""
        self._life = -1


class MemoryLock:
    """A lock on one inode, like flock: two handles of one process exclude each other."""

    __slots__ = ("_fs", "_inode", "_life", "name")

    def __init__(self, fs: MemoryFileSystem, name: str, inode: int) -> None:
        self.name = name
        self._fs = fs
        self._inode = inode
        self._life = fs.life

    def try_acquire(self) -> bool:
        """Take the lock if no other handle has it."""
        with self._fs.mutex:
            if self._life != self._fs.life:
                self._fs.fail(errno.EBADF, "flock", self.name)
            return self._fs.held.setdefault(self._inode, self) is self

    def release(self) -> None:
        """Give the lock back, if this handle has it."""
        with self._fs.mutex:
            if self._fs.held.get(self._inode) is self:
                del self._fs.held[self._inode]

    def holder(self) -> str:
        """Say that it is someone in this process."""
        return f"another handle of process {os.getpid()}"

    def close(self) -> None:
        """Release and end this handle."""
        self.release()
        self._life = -1


class MemoryFileSystem:
    """Files, folders, hard links and locks in memory. Thread-safe.

    ``clock_ns`` is the next time told and ``tick_ns`` what each telling adds; ``free`` is what
    :meth:`free_bytes` answers. All three may be set at any time. A crash state carries
    ``operations_done`` (recorded operations before the crash), ``marks`` and ``description``.
    """

    def __init__(
        self, *, record: bool = False, image: Image = EMPTY, crash: Crash | None = None
    ) -> None:
        self.root = "memory"
        self.clock_ns = 1_700_000_000_000_000_000
        self.tick_ns = 1_000
        self.free = 1 << 40
        self.mutex = threading.Lock()
        self.life = 0  # one more after every kill; a handle of an earlier life is dead
        self.held: dict[int, MemoryLock] = {}  # guarded by mutex, like all below
        inodes = {number: Inode(number, data) for number, data in image.contents.items()}
        self._files = {path: inodes[number] for path, number in image.files.items()}
        self._folders = {folder: set(names) for folder, names in image.folders.items()}
        self._last_inode = max(inodes, default=FOLDER)
        self.operations_done = crash.operations if crash else 0
        self.marks: list[object] = list(crash.marks) if crash else []
        self._describe = crash.describe if crash else _no_crash
        self.journal: Journal | None = None
        if record:
            self.journal = Journal(image)
            self.journal.mark_positions = [0] * len(self.marks)

    @property
    def description(self) -> str:
        """Say after which operation this state was cut and what it lost, for failure messages."""
        return self._describe()

    def mark(self, label: object) -> None:
        """Remember *label* at this point of the recording; later crash states carry it."""
        with self.mutex:
            self.marks.append(label)
            if self.journal is not None:
                self.journal.mark_positions.append(len(self.journal.operations))

    def kill(self) -> None:
        """End the process: its locks are free, its handles dead, its written bytes still there."""
        with self.mutex:
            self.held.clear()
            self.life += 1

    def image(self) -> Image:
        """Return a copy of what is visible now, un-synced data included."""
        with self.mutex:
            return Image(
                {path: inode.number for path, inode in self._files.items()},
                {folder: frozenset(names) for folder, names in self._folders.items()},
                {node.number: node.read(node.length, 0) for node in self._files.values()},
            )

    def note(self, operation: Operation) -> None:
        """Record an operation; the caller holds ``mutex``."""
        if self.journal is not None:
            self.journal.operations.append(operation)

    def fail(self, code: int, call: str, name: str) -> NoReturn:
        """Raise what the kernel's *code* for *call* is translated to."""
        error = OSError(code, os.strerror(code))
        raise translate(error, call, self.root, name) from error

    def _check(self, name: str) -> None:
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise InvalidNameError(f"file name {name!r} would leave the store {self.root}")

    def _bind(self, call: str, name: str, number: int) -> None:
        """Enter *name* into its folder; the caller adds the file or folder itself."""
        folder, _, base = name.rpartition("/")
        if folder not in self._folders:
            self.fail(errno.ENOTDIR if folder in self._files else errno.ENOENT, call, name)
        self._folders[folder].add(base)
        if call != "rename":
            self.note(Names(call, ((name, number),)))

    def _unbind(self, name: str) -> None:
        folder, _, base = name.rpartition("/")
        self._folders[folder].discard(base)
        del self._files[name]

    def _create(self, name: str) -> Inode:
        inode = Inode(self._last_inode + 1, b"")
        self._bind("create", name, inode.number)
        self._last_inode = inode.number
        self._files[name] = inode
        return inode

    def _find(self, call: str, name: str) -> Inode:
        inode = self._files.get(name)
        if inode is None:
            self.fail(errno.EISDIR if name in self._folders else errno.ENOENT, call, name)
        return inode

    def open(self, name: str, mode: OpenMode) -> MemoryFile:
        """Open a file or make one."""
        self._check(name)
        with self.mutex:
            if mode != "create":
                return MemoryFile(self, name, self._find("open", name), mode == "rw")
            if name in self._files or name in self._folders:
                self.fail(errno.EEXIST, "open", name)
            return MemoryFile(self, name, self._create(name), True)

    def exists(self, name: str) -> bool:
        """Tell whether a file or folder has this name."""
        self._check(name)
        return name in self._files or name in self._folders

    def list(self, folder: str) -> list[str]:
        """Return the sorted names in a folder."""
        self._check(folder)
        with self.mutex:
            if folder in self._files:
                self.fail(errno.ENOTDIR, "listdir", folder)
            return sorted(self._folders.get(folder, ()))

    def mkdir(self, folder: str) -> None:
        """Make a folder with its parents."""
        self._check(folder)
        parts = folder.split("/")
        with self.mutex:
            for depth in range(1, len(parts) + 1):
                path = "/".join(parts[:depth])
                if path in self._files:
                    self.fail(errno.EEXIST, "mkdir", path)
                if path not in self._folders:
                    self._bind("mkdir", path, FOLDER)
                    self._folders[path] = set()

    def link(self, source: str, target: str) -> bool:
        """Hard-link; False when the target exists."""
        self._check(source)
        self._check(target)
        with self.mutex:
            inode = self._find("link", source)
            if target in self._files or target in self._folders:
                return False
            self._bind("link", target, inode.number)
            self._files[target] = inode
            return True

    def rename(self, source: str, target: str) -> None:
        """Rename a file, replacing a file. Folders are not renamed."""
        self._check(source)
        self._check(target)
        with self.mutex:
            inode = self._find("rename", source)
            if target in self._folders:
                self.fail(errno.EISDIR, "rename", target)
            if self._files.get(target) is inode:
                return  # POSIX: two names of one file stay as they are
            self._bind("rename", target, inode.number)
            self._files[target] = inode
            self._unbind(source)
            self.note(Names("rename", ((source, None), (target, inode.number))))

    def unlink(self, name: str) -> None:
        """Remove a name if it is there; open files and views live on."""
        self._check(name)
        with self.mutex:
            if name in self._folders:
                self.fail(errno.EISDIR, "unlink", name)
            if name in self._files:
                self._unbind(name)
                self.note(Names("unlink", ((name, None),)))

    def sync_dir(self, folder: str) -> None:
        """Record that the names in *folder* are durable."""
        self._check(folder)
        with self.mutex:
            if folder not in self._folders:
                self.fail(errno.ENOENT, "fsync of the folder", folder)
            self.note(SyncFolder(folder))

    def lock(self, name: str) -> MemoryLock:
        """Return a lock on a file, made when absent."""
        self._check(name)
        with self.mutex:
            if name in self._folders:
                self.fail(errno.EISDIR, "open", name)
            inode = self._files.get(name) or self._create(name)
            return MemoryLock(self, name, inode.number)

    def free_bytes(self) -> int:
        """Return ``free``."""
        return self.free

    def time_ns(self) -> int:
        """Tell the time, and let it go on by one tick."""
        with self.mutex:
            now = self.clock_ns
            self.clock_ns += self.tick_ns
            return now
