"""The FileSystem of a real folder, by POSIX calls. Linux is tested; macOS takes the same path."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mldb.deferred import NamedTuple
from mldb.errors import InvalidNameError, StorageIOError, UsageError
from mldb.log.fs.process import CURRENT, forked
from mldb.log.fs.protocol import FileSystem, OpenMode, moved, translate

if sys.platform == "win32":
    raise UsageError(
        "mldb does not support Windows yet: it needs flock and mapped files that can be unlinked. "
        "Use it under WSL 2. Nothing was changed."
    )
from mldb.log.fs.descriptor import Fd
from mldb.log.fs.folders import (
    FOLDER_FLAGS,
    expanded,
    identity_at,
    make_folders,
    refuse_long,
    sync_folder,
)
from mldb.log.fs.posix_file import OsFile
from mldb.log.fs.relief import with_relief

if TYPE_CHECKING:
    from mldb.log.fs.posix_lock import OsLock

# The two stores cannot share files; no error of either.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES}

# Without O_NONBLOCK a pipe under a name of the store would block; regular files ignore it.
_SAFE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_FLAGS = {
    "r": _SAFE | os.O_RDONLY,
    "rw": _SAFE | os.O_RDWR,
    "create": _SAFE | os.O_RDWR | os.O_CREAT | os.O_EXCL,
}
_LOCK_FLAGS = _SAFE | os.O_RDWR | os.O_CREAT
_ANYONE = 0o666  # the umask decides who may read and write


class _Home(NamedTuple):
    """The folder of the store as it was found. While *fd* is open nothing else has its inode."""

    fd: Fd
    identity: tuple[int, int]


class OsFileSystem:
    """The files below one folder. Any thread. Links inside the store are never followed.

    Names are looked up from a descriptor of the folder, opened by the first call that finds it and
    kept as long as this object or a file of it lives: where the folder is moved, reading goes with
    it, and a call that would make, link or change something raises StoreMovedError.
    """

    _home: _Home | None = None

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(os.fspath(root))
        self.relieve: Callable[[], bool] | None = None
        self._process = CURRENT[0]
        self._real_folders: set[str] = {""}  # seen to be folders and not links
        self._looked: dict[str, str] = {}  # the paths of names that were looked at

    @staticmethod
    def prepare_root(path: str, *, create: bool) -> str:
        """Return the absolute folder that *path* means, made when asked.

        A ``~`` at its beginning is the home of the user, as in a shell. What is made, or found
        empty and thus may just have been made, is synced into its parent. Raises InvalidNameError
        for a path no file can have, StorageIOError when it is no folder.
        """
        resolved = path
        try:
            path = expanded(path)
            resolved = os.path.abspath(path)
            refuse_long(resolved)
            if not os.path.isdir(resolved):
                # Where a broken link points belongs in the message.
                resolved = os.path.realpath(path)
            made = create and make_folders(resolved)
            if not os.listdir(resolved) and create and not made:
                sync_folder(os.path.dirname(os.path.realpath(resolved)))
        except InvalidNameError:
            raise
        except ValueError as error:
            raise InvalidNameError(f"{path[:80]!r} is no path: {error}") from None
        except FileExistsError as error:
            raise translate(_clash(resolved), "opening the store", resolved, "") from error
        except OSError as error:
            raise translate(error, "opening the store", resolved, "") from error
        return resolved

    # --- names and the folder -------------------------------------------------------------------

    def _path(self, name: str) -> str:
        """Return *name* as the system takes it, relative to the folder; checked."""
        self._check(name)
        parent = name.rpartition("/")[0]
        if parent not in self._real_folders:
            self._refuse_links(parent)
        return name or "."

    def _folder_path(self, folder: str) -> str:
        path = self._path(folder)
        if folder not in self._real_folders:
            self._refuse_links(folder)
        return path

    def _check(self, name: str) -> None:
        if name[:1] == "/" or "\0" in name or (".." in name and ".." in name.split("/")):
            raise InvalidNameError(f"file name {name!r} would leave the store {self.root}")

    def _refuse_links(self, folder: str) -> None:
        """Raise if a part of *folder* is a symbolic link; O_NOFOLLOW looks only at the last."""
        parts = folder.split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            try:
                mode = os.stat(path, dir_fd=self._folder(), follow_symlinks=False).st_mode
            except OSError:
                return  # the call itself reports it
            if stat.S_ISLNK(mode):
                error = OSError(errno.ELOOP, "a link stands where a folder of the store belongs")
                raise translate(error, "lstat", self.root, path)
            if stat.S_ISDIR(mode):
                self._real_folders.add(path)

    def _folder(self) -> Fd:
        """Return the descriptor of the folder, opened now if it was not yet. Raises OSError."""
        return (self._home or self._open_home()).fd

    def _open_home(self) -> _Home:
        fd = Fd(with_relief(self, os.open, self.root, FOLDER_FLAGS))
        found = os.fstat(fd)
        # Several threads may come here at once, or a signal handler: the first one's is kept.
        home: _Home = self.__dict__.setdefault("_home", _Home(fd, (found.st_dev, found.st_ino)))
        return home

    def _folder_to_change(self, call: str, name: str) -> Fd:
        """Return the descriptor for a call that makes, links or opens something for writing.

        Raises ClosedError in a forked child, StoreMovedError when the path leads elsewhere,
        OSError when there is no folder yet.
        """
        self._refuse_forked(name)
        home = self._home or self._open_home()
        found = identity_at(self.root, follow=True)
        if found != home.identity:
            raise moved(self.root, call, name, gone=found is None)
        return home.fd

    def _refuse_forked(self, name: str) -> None:
        if self._process is not CURRENT[0]:
            raise forked(self._process, f"{self.root}/{name}" if name else self.root)

    def identity(self, name: str) -> tuple[int, int] | None:
        """Device and inode of what stands at the path now: one stat."""
        self._check(name)
        try:
            return identity_at(f"{self.root}/{name}" if name else self.root, follow=not name)
        except OSError as error:
            raise translate(error, "stat", self.root, name) from error

    def look(self, name: str) -> tuple[int, int, int] | None:
        """Device, inode and length of what stands at the path now: one lstat."""
        path = self._looked.get(name)
        if path is None:
            self._check(name)
            path = self._looked[name] = f"{self.root}/{name}"
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise translate(error, "lstat", self.root, name) from error
        return found.st_dev, found.st_ino, found.st_size

    def looked_at(self, name: str) -> bytes:
        """The path below the root."""
        self._check(name)
        return os.fsencode(f"{self.root}/{name}")

    # --- files ------------------------------------------------------------------------------------

    def open(self, name: str, mode: OpenMode) -> OsFile:
        """Open with O_CLOEXEC and O_NOFOLLOW; refuses anything that is not a regular file."""
        path = self._path(name)
        try:
            folder = self._folder() if mode == "r" else self._folder_to_change("open", name)
            fd = Fd(with_relief(self, os.open, path, _FLAGS[mode], _ANYONE, dir_fd=folder))
        except OSError as error:
            raise translate(error, "open", self.root, name, writing=mode != "r") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StorageIOError(f"{self.root}/{name} is not a regular file.", errno=errno.EINVAL)
        return OsFile(self, name, fd)

    def exists(self, name: str) -> bool:
        """Tell whether the name exists (one access call)."""
        path = self._path(name)
        try:
            return os.access(path, os.F_OK, dir_fd=self._folder())
        except OSError:  # there is no folder
            return False

    def list(self, folder: str) -> list[str]:
        """Return the sorted names in a folder."""
        path = self._folder_path(folder)
        try:
            return sorted(with_relief(self, _names, path, self._folder()))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise translate(error, "listdir", self.root, folder) from error

    def mkdir(self, folder: str) -> None:
        """Make a folder with its parents; refuses a link or file in its place."""
        self._check(folder)
        self._refuse_forked(folder)
        try:
            if self._home is None:
                make_folders(self.root)
            self._folder_path(folder)
            root = self._folder_to_change("mkdir", folder)
            parts = folder.split("/") if folder else []
            for depth in range(1, len(parts) + 1):
                _mkdir("/".join(parts[:depth]), root)
        except OSError as error:
            raise translate(error, "mkdir", self.root, folder, writing=True) from error

    def link(self, source: str, target: str) -> bool:
        """Hard-link; False when the target exists."""
        try:
            self._link(self, source, target)
        except FileExistsError:
            return False
        except OSError as error:
            raise translate(error, "link", self.root, target, writing=True) from error
        return True

    def link_from(self, other: FileSystem, source: str, target: str) -> bool:
        """Hard-link across folders; False across file systems or where links are not allowed."""
        if not isinstance(other, OsFileSystem):
            return False
        try:
            self._link(other, source, target)
        except OSError as error:
            if error.errno in _NO_LINK:
                return False
            raise translate(error, "link", self.root, target, writing=True) from error
        return True

    def _link(self, other: OsFileSystem, source: str, target: str) -> None:
        os.link(
            other._path(source),
            self._path(target),
            src_dir_fd=other._folder(),
            dst_dir_fd=self._folder_to_change("link", target),
            follow_symlinks=False,
        )

    def rename(self, source: str, target: str) -> None:
        """Rename within the store."""
        paths = self._path(source), self._path(target)
        try:
            root = self._folder_to_change("rename", target)
            os.replace(*paths, src_dir_fd=root, dst_dir_fd=root)
        except OSError as error:
            raise translate(error, "rename", self.root, target, writing=True) from error

    def unlink(self, name: str) -> None:
        """Remove a name if it is there."""
        path = self._path(name)
        self._refuse_forked(name)
        try:
            os.unlink(path, dir_fd=self._folder())
        except FileNotFoundError:
            return
        except OSError as error:
            raise translate(error, "unlink", self.root, name, writing=True) from error

    def sync_dir(self, folder: str) -> None:
        """fsync the folder; the root by the descriptor that is kept."""
        path = self._folder_path(folder)
        self._refuse_forked(folder)
        try:
            fd = self._folder()
            if folder:
                fd = Fd(with_relief(self, os.open, path, FOLDER_FLAGS, dir_fd=fd))
        except OSError as error:
            raise translate(error, "open", self.root, folder) from error
        try:
            os.fsync(fd)
        except OSError as error:
            raise translate(error, "fsync of the folder", self.root, folder) from error

    def lock(self, name: str) -> OsLock:
        """Open the lock file; its content means nothing."""
        from mldb.log.fs.posix_lock import OsLock

        path = self._path(name)
        try:
            folder = self._folder_to_change("lock", name)
            fd = Fd(with_relief(self, os.open, path, _LOCK_FLAGS, _ANYONE, dir_fd=folder))
        except OSError as error:
            raise translate(error, "open", self.root, name, writing=True) from error
        return OsLock(self, name, fd)

    # --- the machine ------------------------------------------------------------------------------

    def populate(self, view: memoryview) -> bool:
        """madvise with MADV_POPULATE_READ."""
        from mldb.log.fs import advice

        return advice.populate(view)

    def read_ahead(self, view: memoryview) -> bool:
        """madvise with MADV_WILLNEED."""
        from mldb.log.fs import advice

        return advice.read_ahead(view)

    def is_resident(self, view: memoryview) -> bool:
        """Ask mincore."""
        from mldb.log.fs import advice

        return advice.is_resident(view)

    def is_unwritten(self, view: memoryview) -> bool:
        """Ask pagemap, where the kernel can scan it."""
        from mldb.log.fs import advice

        return advice.is_unwritten(view)

    def free_bytes(self) -> int:
        """Free bytes for this user (statvfs)."""
        try:
            info = os.statvfs(self._folder())
        except OSError as error:
            raise translate(error, "statvfs", self.root, "") from error
        return info.f_bavail * info.f_frsize

    def time_ns(self) -> int:
        """The wall clock."""
        return time.time_ns()

    def pause(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)


def _names(path: str, root: Fd) -> list[str]:
    """List a folder by a new descriptor: all who list by one share its position in the folder."""
    return os.listdir(Fd(os.open(path, FOLDER_FLAGS, dir_fd=root)))


def _mkdir(path: str, root: Fd) -> None:
    """Make one folder unless it is there: a read-only file system need not say so first."""
    try:
        os.mkdir(path, dir_fd=root)
    except OSError as error:
        try:
            mode = os.stat(path, dir_fd=root, follow_symlinks=False).st_mode
        except OSError:
            raise error from None
        if not stat.S_ISDIR(mode):
            raise


def _clash(path: str) -> OSError:
    """Why no folder can be made at *path*, where something stands."""
    try:
        os.stat(path)
    except OSError as error:  # a loop of links
        return error
    return NotADirectoryError(errno.ENOTDIR, "a file stands there")
