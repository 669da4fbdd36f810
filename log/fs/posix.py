"""The FileSystem of a real folder, by POSIX calls. Linux is tested; macOS takes the same path."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache

from mldb.errors import InvalidNameError, StorageIOError, UsageError
from mldb.log.fs.gather import IOV_MAX, byte_count, groups, skip
from mldb.log.fs.protocol import Buffer, FileSystem, OpenMode, translate

if sys.platform == "win32":
    raise UsageError(
        "mldb does not support Windows yet: it needs flock and mapped files that can be unlinked. "
        "Use it under WSL 2. Nothing was changed."
    )
import fcntl

from mldb.log.fs.descriptor import Descriptor
from mldb.log.fs.posix_lock import OsLock

_WRITE_STEP = 8 << 20  # one pwritev moves at most this much, so that writeback starts early
_SYNC_FILE_RANGE_WRITE = 2
# The two stores cannot share files; no error of either.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES}

_NO_ROOM_TO_MAP = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_READ_INSTEAD_MAX = 1 << 29

_FLAGS = {"r": os.O_RDONLY, "rw": os.O_RDWR, "create": os.O_RDWR | os.O_CREAT | os.O_EXCL}


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    try:
        call = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    call.restype = ctypes.c_int
    return call


class OsFile(Descriptor):
    """One open descriptor. Thread-safe; closed by :meth:`close` or when collected."""

    __slots__ = ()

    def size(self) -> int:
        """Return the length; lseek costs a quarter of fstat here, and no position is in use."""
        try:
            return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise translate(error, "lseek", self._root, self.name) from error

    def pread(self, count: int, offset: int) -> bytes:
        """Read up to *count* bytes; continues short reads until the end of the file."""
        try:
            data = os.pread(self._fd, count, offset)
            while len(data) < count:
                more = os.pread(self._fd, count - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise translate(error, "pread", self._root, self.name) from error
        return data

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Write all buffers at *offset*, in steps of 8 MiB whose writeback starts at once."""
        try:
            # The common case: one small gathered write.
            if len(buffers) <= IOV_MAX:
                total = byte_count(buffers)
                if total <= _WRITE_STEP and os.pwritev(self._fd, buffers, offset) == total:
                    return total
            return self._write_steps(buffers, offset)
        except OSError as error:
            raise translate(error, "pwritev", self._root, self.name) from error

    def _write_steps(self, buffers: Sequence[Buffer], offset: int) -> int:
        start = offset
        for group in groups(buffers, _WRITE_STEP):
            done = 0
            want = sum(map(len, group))
            while done < want:
                count = os.pwritev(self._fd, skip(group, done) if done else group, offset + done)
                if count <= 0:
                    raise OSError(errno.EIO, "pwritev wrote nothing")
                done += count
            if want >= _WRITE_STEP // 2:
                self.start_writeback(offset, want)
            offset += want
        return offset - start

    def start_writeback(self, offset: int, count: int) -> None:
        """Start asynchronous writeback (sync_file_range); a no-op where the kernel lacks it."""
        call = _sync_file_range()
        if call is not None:
            call(self._fd, offset, count, _SYNC_FILE_RANGE_WRITE)

    def sync(self) -> None:
        """fdatasync; on macOS F_FULLFSYNC, since fsync there stops at the drive's cache."""
        try:
            if sys.platform == "darwin":
                fcntl.fcntl(self._fd, fcntl.F_FULLFSYNC)
            else:
                os.fdatasync(self._fd)
        except OSError as error:
            raise translate(error, "fdatasync", self._root, self.name) from error

    def map(self, count: int) -> memoryview:
        """Map the first *count* bytes read-only and shared."""
        if count == 0:
            return memoryview(b"")
        try:
            return memoryview(mmap.mmap(self._fd, count, access=mmap.ACCESS_READ))
        except OSError as error:
            # No descriptor or address space for a mapping: a copy serves the same reader.
            if error.errno in _NO_ROOM_TO_MAP and count <= _READ_INSTEAD_MAX:
                return memoryview(self.pread(count, 0))
            raise self._map_error(error) from error
        except ValueError as error:
            raise self._map_error(error) from error

    def map_private(self, offset: int, count: int) -> memoryview:
        """Map a range copy-on-write; *offset* need not be page-aligned."""
        if count == 0:
            return memoryview(bytearray())
        base = offset - offset % mmap.ALLOCATIONGRANULARITY
        try:
            size = offset - base + count
            mapped = mmap.mmap(self._fd, size, access=mmap.ACCESS_COPY, offset=base)
        except (OSError, ValueError) as error:
            raise self._map_error(error) from error
        return memoryview(mapped)[offset - base :]

    def _map_error(self, error: OSError | ValueError) -> Exception:
        if isinstance(error, OSError):
            return translate(error, "mmap", self._root, self.name)
        return StorageIOError(
            f"mmap of {self._root}/{self.name} failed: {error}. The file is shorter than "
            "expected; other files are not affected. Run verify() to see what it should hold."
        )


class OsFileSystem:
    """The files below one folder. Thread-safe. Links inside the store are never followed."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(os.fspath(root))
        self._real_folders: set[str] = {""}  # seen to be folders and not links

    @staticmethod
    def prepare_root(path: str, *, create: bool) -> str:
        """Return the absolute folder that *path* means, made when asked.

        Raises InvalidNameError for a path no file can have, StorageIOError when it is no folder.
        """
        resolved = path
        try:
            resolved = os.path.abspath(path)
            if not os.path.isdir(resolved):
                # Where a broken link points belongs in the message.
                resolved = os.path.realpath(path)
                if create:
                    os.makedirs(resolved, exist_ok=True)
                os.listdir(resolved)
        except ValueError as error:
            raise InvalidNameError(f"{path[:80]!r} is no path: {error}") from None
        except FileExistsError as error:
            raise translate(_clash(resolved), "opening the store", resolved, "") from error
        except OSError as error:
            raise translate(error, "opening the store", resolved, "") from error
        return resolved

    def _path(self, name: str) -> str:
        if name[:1] == "/" or "\0" in name or (".." in name and ".." in name.split("/")):
            raise InvalidNameError(f"file name {name!r} would leave the store {self.root}")
        parent = name.rpartition("/")[0]
        if parent not in self._real_folders:
            self._refuse_links(parent)
        return f"{self.root}/{name}" if name else self.root

    def _folder_path(self, folder: str) -> str:
        path = self._path(folder)
        if folder not in self._real_folders:
            self._refuse_links(folder)
        return path

    def _refuse_links(self, folder: str) -> None:
        """Raise if a part of *folder* is a symbolic link; O_NOFOLLOW looks only at the last."""
        parts = folder.split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            try:
                mode = os.lstat(f"{self.root}/{path}").st_mode
            except OSError:
                return  # the call itself reports it
            if stat.S_ISLNK(mode):
                error = OSError(errno.ELOOP, "a link stands where a folder of the store belongs")
                raise translate(error, "lstat", self.root, path)
            if stat.S_ISDIR(mode):
                self._real_folders.add(path)

    def open(self, name: str, mode: OpenMode) -> OsFile:
        """Open with O_CLOEXEC and O_NOFOLLOW; refuses anything that is not a regular file."""
        # Without O_NONBLOCK a pipe under this name would block; regular files ignore it.
        flags = _FLAGS[mode] | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(self._path(name), flags, 0o644)
        except OSError as error:
            raise translate(error, "open", self.root, name) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise StorageIOError(f"{self.root}/{name} is not a regular file.", errno=errno.EINVAL)
        return OsFile(self.root, name, fd)

    def exists(self, name: str) -> bool:
        """Tell whether the name exists (one access call)."""
        return os.access(self._path(name), os.F_OK)

    def list(self, folder: str) -> list[str]:
        """Return the sorted names in a folder."""
        try:
            return sorted(os.listdir(self._folder_path(folder)))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise translate(error, "listdir", self.root, folder) from error

    def mkdir(self, folder: str) -> None:
        """Make a folder with its parents; refuses a link or file in its place."""
        try:
            os.makedirs(self._folder_path(folder), exist_ok=True)
        except OSError as error:
            raise translate(error, "mkdir", self.root, folder) from error

    def link(self, source: str, target: str) -> bool:
        """Hard-link; False when the target exists."""
        try:
            os.link(self._path(source), self._path(target), follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as error:
            raise translate(error, "link", self.root, target) from error
        return True

    def link_from(self, other: FileSystem, source: str, target: str) -> bool:
        """Hard-link across folders; False across file systems or where links are not allowed."""
        if not isinstance(other, OsFileSystem):
            return False
        try:
            os.link(other._path(source), self._path(target), follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_LINK:
                return False
            raise translate(error, "link", self.root, target) from error
        return True

    def rename(self, source: str, target: str) -> None:
        """Rename within the store."""
        try:
            os.replace(self._path(source), self._path(target))
        except OSError as error:
            raise translate(error, "rename", self.root, target) from error

    def unlink(self, name: str) -> None:
        """Remove a name if it is there."""
        try:
            os.unlink(self._path(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise translate(error, "unlink", self.root, name) from error

    def sync_dir(self, folder: str) -> None:
        """fsync the folder."""
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            fd = os.open(self._folder_path(folder), flags)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise translate(error, "fsync of the folder", self.root, folder) from error

    def lock(self, name: str) -> OsLock:
        """Open the lock file; its content means nothing."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(self._path(name), flags, 0o644)
        except OSError as error:
            raise translate(error, "open", self.root, name) from error
        return OsLock(self.root, name, fd)

    def free_bytes(self) -> int:
        """Free bytes for this user (statvfs)."""
        try:
            info = os.statvfs(self.root)
        except OSError as error:
            raise translate(error, "statvfs", self.root, "") from error
        return info.f_bavail * info.f_frsize

    def time_ns(self) -> int:
        """The wall clock."""
        return time.time_ns()


def _clash(path: str) -> OSError:
    """Why no folder can be made at *path*, where something stands."""
    try:
        os.stat(path)
    except OSError as error:  # a loop of links
        return error
    return NotADirectoryError(errno.ENOTDIR, "a file stands there")
