"""Files, locks and the journal behind ``mldb.log.fs.memory``.

The journal is the list of calls that changed the disk; ``mldb.log.fs.crash_states`` derives from it
the disks that a crash could leave behind.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn, TypeAlias

from mldb.log.fs.process import CURRENT, forked
from mldb.log.fs.protocol import Buffer, only_reading, translate

FOLDER = 0  # stands for "a folder" where a recorded name could also lead to a file's inode number


class Write(NamedTuple):
    """One gathered write."""

    inode: int
    offset: int
    data: bytes


class Sync(NamedTuple):
    """A completed sync of one file."""

    inode: int


class Names(NamedTuple):
    """One change of names: each path leads to an inode number, to a FOLDER, or (None) nowhere."""

    call: str
    effects: tuple[tuple[str, int | None], ...]


class SyncFolder(NamedTuple):
    """A completed sync of the names in one folder."""

    folder: str


Operation: TypeAlias = Write | Sync | Names | SyncFolder


class Image(NamedTuple):
    """A whole disk: path to inode number, folder to the names in it, inode number to content."""

    files: Mapping[str, int]
    folders: Mapping[str, frozenset[str]]
    contents: Mapping[int, bytes]


EMPTY = Image({}, {"": frozenset()}, {})


class Journal:
    """What happened to a disk since *base*. ``mark_positions[i]`` operations came before mark i."""

    __slots__ = ("base", "mark_positions", "operations")

    def __init__(self, base: Image) -> None:
        self.base = base
        self.operations: list[Operation] = []
        self.mark_positions: list[int] = []


class Crash(NamedTuple):
    """Where a crash state comes from."""

    operations: int
    marks: tuple[object, ...]
    describe: Callable[[], str]


class _Pages(bytearray):
    """The bytes of one file, with room to grow. Zero beyond the length of the file."""

    __slots__ = ("__weakref__",)


class Inode:
    """One file without its names; the file system that has it locks around every call.

    ``data`` stays the bytes it was made from, shared with other states, until the first write.
    """

    __slots__ = ("data", "length", "number", "outgrown")

    def __init__(self, number: int, data: bytes) -> None:
        self.number = number
        self.data: bytes | _Pages = data
        self.length = len(data)
        self.outgrown: list[weakref.ref[_Pages]] = []

    def read(self, count: int, offset: int) -> bytes:
        """Return up to *count* bytes from *offset*."""
        return bytes(memoryview(self.data)[offset : min(offset + count, self.length)])

    def write(self, data: bytes, offset: int) -> None:
        """Write *data* at *offset*; a gap before it reads as zeros."""
        end = offset + len(data)
        pages = self.data
        if isinstance(pages, bytes) or end > len(pages):
            pages = self._grow(max(end, self.length))
        pages[offset:end] = data
        self.length = max(self.length, end)
        # A mapping is shared: views made before the pages moved must see this write as well.
        for reference in self.outgrown:
            old = reference()
            if old is not None and offset < len(old):
                part = data[: len(old) - offset]
                old[offset : offset + len(part)] = part

    def _grow(self, length: int) -> _Pages:
        """Move to pages with room for *length* bytes and half as many again."""
        pages = _Pages(length + length // 2)
        pages[: self.length] = memoryview(self.data)[: self.length]
        if isinstance(self.data, _Pages):
            self.outgrown.append(weakref.ref(self.data))
        self.data = pages
        self.outgrown = [reference for reference in self.outgrown if reference() is not None]
        return pages

    def view(self, count: int) -> memoryview:
        """Return a read-only view of the first *count* bytes that sees every later write."""
        pages = self._grow(self.length) if isinstance(self.data, bytes) else self.data
        return memoryview(pages)[:count].toreadonly()


class Disk:
    """What the handles of one file system share. ``mutex`` guards all of it and every inode."""

    __slots__ = ("held", "journal", "life", "mutex", "root")

    def __init__(self, root: str, journal: Journal | None) -> None:
        self.root = root
        self.journal = journal
        # Reentrant: a garbage collection inside a call may close what the collected owned.
        self.mutex = threading.RLock()
        self.life = 0  # one more after every kill; a handle of an earlier life is dead
        # Weak: a forgotten handle gives its lock back, as a collected descriptor does.
        self.held: weakref.WeakValueDictionary[int, MemoryLock] = weakref.WeakValueDictionary()

    def note(self, operation: Operation) -> None:
        """Record an operation; the caller holds ``mutex``."""
        if self.journal is not None:
            self.journal.operations.append(operation)

    def fail(self, code: int, call: str, name: str) -> NoReturn:
        """Raise what the kernel's *code* for *call* is translated to."""
        error = OSError(code, os.strerror(code))
        raise translate(error, call, self.root, name) from error


class MemoryFile:
    """One open file. Thread-safe. Dead after :meth:`close` and after a kill of its process."""

    __slots__ = ("_disk", "_inode", "_life", "_process", "_writable", "name")

    def __init__(self, disk: Disk, name: str, inode: Inode, writable: bool) -> None:
        self.name = name
        self._disk = disk
        self._inode = inode
        self._life = disk.life
        self._process = CURRENT[0]
        self._writable = writable

    def _require(self, call: str) -> Inode:
        if self._life != self._disk.life:
            self._disk.fail(errno.EBADF, call, self.name)
        return self._inode

    def _require_own(self, call: str) -> Inode:
        if self._process is not CURRENT[0]:
            raise forked(self._process, f"{self._disk.root}/{self.name}")
        return self._require(call)

    def size(self) -> int:
        """Return the length in bytes."""
        return self._require("lseek").length

    def pread(self, count: int, offset: int) -> bytes:
        """Return up to *count* bytes; shorter only at the end."""
        with self._disk.mutex:
            return self._require("pread").read(count, offset)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Write all buffers at *offset*, in one recorded operation."""
        data = b"".join(buffers)
        with self._disk.mutex:
            inode = self._require_own("pwritev")
            if not self._writable:
                raise only_reading(self._disk.root, "pwritev", self.name)
            if data:
                inode.write(data, offset)
                self._disk.note(Write(inode.number, offset, data))
        return len(data)

    def start_writeback(self, offset: int, count: int) -> None:
        """Do nothing: it promises nothing."""

    def allocate(self, count: int) -> None:
        """Change nothing: it promises nothing."""
        self._require_own("fallocate")

    def sync(self) -> None:
        """Record that everything written so far is durable."""
        with self._disk.mutex:
            self._disk.note(Sync(self._require_own("fdatasync").number))

    def map(self, count: int) -> memoryview:
        """Return a read-only view that sees later writes, as a shared mapping does."""
        with self._disk.mutex:
            self._check_range(count)
            return self._inode.view(count)

    def map_private(self, offset: int, count: int) -> memoryview:
        """Return a writable copy of a range."""
        with self._disk.mutex:
            self._check_range(offset + count)
            return memoryview(bytearray(self._inode.read(count, offset)))

    def _check_range(self, end: int) -> None:
        if end > self._require("mmap").length:
            self._disk.fail(errno.EINVAL, "mmap beyond the end", self.name)

    def close(self) -> None:
        """End this handle."""
        self._life = -1


class MemoryLock:
    """A lock on one inode, like flock: two handles of one process exclude each other."""

    __slots__ = ("__weakref__", "_disk", "_inode", "_life", "_process", "name")

    def __init__(self, disk: Disk, name: str, inode: int) -> None:
        self.name = name
        self._disk = disk
        self._inode = inode
        self._life = disk.life
        self._process = CURRENT[0]

    def try_acquire(self) -> bool:
        """Take the lock if no other handle has it."""
        if self._process is not CURRENT[0]:
            raise forked(self._process, f"{self._disk.root}/{self.name}")
        with self._disk.mutex:
            if self._life != self._disk.life:
                self._disk.fail(errno.EBADF, "flock", self.name)
            return self._disk.held.setdefault(self._inode, self) is self

    def release(self) -> None:
        """Give the lock back, if this handle has it and its process is this one."""
        with self._disk.mutex:
            if self._process is CURRENT[0] and self._disk.held.get(self._inode) is self:
                del self._disk.held[self._inode]

    def holder(self) -> str:
        """Say that it is someone in this process."""
        return f"another handle of process {os.getpid()}"

    def close(self) -> None:
        """Release and end this handle; in a forked child, only end it for the child."""
        self.release()
        if self._process is CURRENT[0]:
            self._life = -1
