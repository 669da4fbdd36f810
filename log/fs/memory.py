"""A FileSystem in memory: deterministic, fast to make, and able to record what a power loss undoes.

For tests and for stores that need not outlive their process. With ``record=True`` every call that
changes the disk is kept, and ``mldb.log.fs.crash_states`` derives from that record the file systems
that a crash could leave behind.
"""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable

from mldb.errors import InvalidNameError
from mldb.log.fs.memory_disk import (
    EMPTY,
    FOLDER,
    Crash,
    Disk,
    Image,
    Inode,
    Journal,
    MemoryFile,
    MemoryLock,
    Names,
    SyncFolder,
)
from mldb.log.fs.process import CURRENT, forked
from mldb.log.fs.protocol import FileSystem, OpenMode, moved

_devices = itertools.count(1)


def _no_crash() -> str:
    return "a live file system, not a crash state"


class _Path:
    """A path and what stands there now; shared by all that ever stood there."""

    __slots__ = ("found",)

    def __init__(self, found: MemoryFileSystem | None) -> None:
        self.found = found


class MemoryFileSystem:
    """Files, folders, hard links and locks in memory. Thread-safe.

    ``clock_ns`` is the next time told and ``tick_ns`` what each telling adds; ``free`` is what
    :meth:`free_bytes` answers. All three may be set at any time. A crash state carries
    ``operations_done`` (recorded operations before the crash), ``marks`` and ``description``.
    :meth:`replace` puts another one at its path, or nothing.
    """

    def __init__(
        self, *, record: bool = False, image: Image = EMPTY, crash: Crash | None = None
    ) -> None:
        self.root = "memory"
        self.clock_ns = 1_700_000_000_000_000_000
        self.tick_ns = 1_000
        self.free = 1 << 40
        self.relieve: Callable[[], bool] | None = None
        self.journal = Journal(image) if record else None
        self._disk = Disk(self.root, self.journal)
        inodes = {number: Inode(number, data) for number, data in image.contents.items()}
        self._files = {path: inodes[number] for path, number in image.files.items()}
        self._folders = {folder: set(names) for folder, names in image.folders.items()}
        self._last_inode = max(inodes, default=FOLDER)
        self._device = next(_devices)
        self._path: _Path | None = None  # before the first replacement it needs none
        self._process = CURRENT[0]
        self.operations_done = crash.operations if crash else 0
        self.marks: list[object] = list(crash.marks) if crash else []
        self._describe = crash.describe if crash else _no_crash
        if self.journal is not None:
            self.journal.mark_positions = [0] * len(self.marks)

    @property
    def description(self) -> str:
        """Say after which operation this state was cut and what it lost, for failure messages."""
        return self._describe()

    def mark(self, label: object) -> None:
        """Remember *label* at this point of the recording; later crash states carry it."""
        with self._disk.mutex:
            self.marks.append(label)
            if self.journal is not None:
                self.journal.mark_positions.append(len(self.journal.operations))

    def kill(self) -> None:
        """End the process: its locks are free, its handles dead, its written bytes still there."""
        with self._disk.mutex:
            self._disk.held.clear()
            self._disk.life += 1

    def image(self) -> Image:
        """Return a copy of what is visible now, un-synced data included."""
        with self._disk.mutex:
            return Image(
                {path: inode.number for path, inode in self._files.items()},
                {folder: frozenset(names) for folder, names in self._folders.items()},
                {node.number: node.read(node.length, 0) for node in self._files.values()},
            )

    def replace(self, other: MemoryFileSystem | None) -> None:
        """Let the path lead to *other* from now on, or nowhere: as when the folder is moved away.

        Whoever has this one keeps it: reading goes on, and changes raise StoreMovedError until
        ``fs.replace(fs)`` moves it back.
        """
        path = self._path = self._path or _Path(self)
        if other is not None:
            if other._path is not None and other._path.found is other:
                other._path.found = None
            other._path = path
        path.found = other

    def _found(self) -> MemoryFileSystem | None:
        return self if self._path is None else self._path.found

    def _require_own(self, name: str) -> None:
        """Refuse a change in a forked child."""
        if self._process is not CURRENT[0]:
            raise forked(self._process, f"{self.root}/{name}" if name else self.root)

    def _require_here(self, call: str, name: str) -> None:
        """Refuse a change in a forked child, and one after the path led away from here."""
        self._require_own(name)
        found = self._found()
        if found is not self:
            raise moved(self.root, call, name, gone=found is None)

    def _check(self, name: str) -> None:
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise InvalidNameError(f"file name {name!r} would leave the store {self.root}")

    def _bind(self, call: str, name: str) -> None:
        """Enter *name* into its folder; the caller adds the file or folder itself."""
        folder, _, base = name.rpartition("/")
        if folder not in self._folders:
            self._disk.fail(errno.ENOTDIR if folder in self._files else errno.ENOENT, call, name)
        self._folders[folder].add(base)

    def _unbind(self, name: str) -> None:
        folder, _, base = name.rpartition("/")
        self._folders[folder].discard(base)
        del self._files[name]

    def _create(self, name: str) -> Inode:
        inode = Inode(self._last_inode + 1, b"")
        self._bind("create", name)
        self._last_inode = inode.number
        self._files[name] = inode
        self._disk.note(Names("create", ((name, inode.number),)))
        return inode

    def _find(self, call: str, name: str) -> Inode:
        inode = self._files.get(name)
        if inode is None:
            self._disk.fail(errno.EISDIR if name in self._folders else errno.ENOENT, call, name)
        return inode

    def open(self, name: str, mode: OpenMode) -> MemoryFile:
        """Open a file or make one."""
        self._check(name)
        with self._disk.mutex:
            if mode != "r":
                self._require_here("open", name)
            if mode != "create":
                return MemoryFile(self._disk, name, self._find("open", name), mode == "rw")
            if name in self._files or name in self._folders:
                self._disk.fail(errno.EEXIST, "open", name)
            return MemoryFile(self._disk, name, self._create(name), True)

    def exists(self, name: str) -> bool:
        """Tell whether a file or folder has this name."""
        self._check(name)
        return name in self._files or name in self._folders

    def list(self, folder: str) -> list[str]:
        """Return the sorted names in a folder."""
        self._check(folder)
        with self._disk.mutex:
            if folder in self._files:
                self._disk.fail(errno.ENOTDIR, "listdir", folder)
            return sorted(self._folders.get(folder, ()))

    def mkdir(self, folder: str) -> None:
        """Make a folder with its parents."""
        self._check(folder)
        parts = folder.split("/")
        with self._disk.mutex:
            self._require_here("mkdir", folder)
            for depth in range(1, len(parts) + 1):
                path = "/".join(parts[:depth])
                if path in self._files:
                    self._disk.fail(errno.EEXIST, "mkdir", path)
                if path not in self._folders:
                    self._bind("mkdir", path)
                    self._folders[path] = set()
                    self._disk.note(Names("mkdir", ((path, FOLDER),)))

    def link(self, source: str, target: str) -> bool:
        """Hard-link; False when the target exists."""
        self._check(source)
        self._check(target)
        with self._disk.mutex:
            self._require_here("link", target)
            inode = self._find("link", source)
            if target in self._files or target in self._folders:
                return False
            self._bind("link", target)
            self._files[target] = inode
            self._disk.note(Names("link", ((target, inode.number),)))
            return True

    def link_from(self, other: FileSystem, source: str, target: str) -> bool:
        """Return False: no two file systems in memory share files."""
        return False

    def rename(self, source: str, target: str) -> None:
        """Rename a file, replacing a file. Folders are not renamed."""
        self._check(source)
        self._check(target)
        with self._disk.mutex:
            self._require_here("rename", target)
            inode = self._find("rename", source)
            if target in self._folders:
                self._disk.fail(errno.EISDIR, "rename", target)
            if self._files.get(target) is inode:
                return  # POSIX: two names of one file stay as they are
            self._bind("rename", target)
            self._files[target] = inode
            self._unbind(source)
            self._disk.note(Names("rename", ((source, None), (target, inode.number))))

    def unlink(self, name: str) -> None:
        """Remove a name if it is there; open files and views live on."""
        self._check(name)
        with self._disk.mutex:
            self._require_own(name)
            if name in self._folders:
                self._disk.fail(errno.EISDIR, "unlink", name)
            if name in self._files:
                self._unbind(name)
                self._disk.note(Names("unlink", ((name, None),)))

    def sync_dir(self, folder: str) -> None:
        """Record that the names in *folder* are durable."""
        self._check(folder)
        with self._disk.mutex:
            self._require_own(folder)
            if folder not in self._folders:
                self._disk.fail(errno.ENOENT, "open", folder)
            self._disk.note(SyncFolder(folder))

    def lock(self, name: str) -> MemoryLock:
        """Return a lock on a file, made when absent."""
        self._check(name)
        with self._disk.mutex:
            self._require_here("lock", name)
            if name in self._folders:
                self._disk.fail(errno.EISDIR, "open", name)
            inode = self._files.get(name) or self._create(name)
            return MemoryLock(self._disk, name, inode.number)

    def identity(self, name: str) -> tuple[int, int] | None:
        """Look the name up in what stands at the path now; each file system is a device."""
        self._check(name)
        found = self._found()
        return None if found is None else found._identity(name)

    def looked_at(self, name: str) -> bytes:
        """No path of the system."""
        return b""

    def look(self, name: str) -> tuple[int, int, int] | None:
        """Look a file up in what stands at the path now, with its length."""
        self._check(name)
        found = self._found()
        return None if found is None else found._look(name)

    def _look(self, name: str) -> tuple[int, int, int] | None:
        with self._disk.mutex:
            inode = self._files.get(name)
            return None if inode is None else (self._device, inode.number, inode.length)

    def _identity(self, name: str) -> tuple[int, int] | None:
        with self._disk.mutex:
            inode = self._files.get(name)
            if inode is not None:
                return self._device, inode.number
            if name in self._folders:  # which are never removed, so their order numbers them
                return self._device, -list(self._folders).index(name)
            return None

    def populate(self, view: memoryview) -> bool:
        """Do nothing: the bytes are there."""
        return True

    def read_ahead(self, view: memoryview) -> bool:
        """Do nothing: the bytes are there."""
        return True

    def is_resident(self, view: memoryview) -> bool:
        """It always is."""
        return True

    def is_unwritten(self, view: memoryview) -> bool:
        """Nobody knows: a private mapping is a copy."""
        return False

    def free_bytes(self) -> int:
        """Return ``free``."""
        return self.free

    def time_ns(self) -> int:
        """Tell the time, and let it go on by one tick."""
        with self._disk.mutex:
            now = self.clock_ns
            self.clock_ns += self.tick_ns
            return now

    def pause(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)
