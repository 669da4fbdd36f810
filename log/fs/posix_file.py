"""Files of a real folder: reads, gathered writes, syncs and mappings on one descriptor."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache

from mldb.errors import MldbError, StorageIOError
from mldb.log.fs.descriptor import CLOSED, OsDescriptor
from mldb.log.fs.gather import IOV_MAX, byte_count, groups, skip
from mldb.log.fs.process import CURRENT
from mldb.log.fs.protocol import Buffer
from mldb.log.fs.relief import with_relief

_WRITE_STEP = 8 << 20  # one pwritev moves at most this much, so that writeback starts early
_SYNC_FILE_RANGE_WRITE = 2
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE
_END = os.SEEK_END
_SPARE = 6  # descriptors that mappings leave for others
_PRIVATE_PART = 2  # one of so many descriptors is the most that private mappings take together
_LINUX_NORESERVE = 0x4000 if os.uname().machine in ("x86_64", "aarch64") else 0
# Without it the kernel refuses a private mapping of more than memory and swap, though only pages
# that are written to take any. Older Pythons have no name for it.
_NORESERVE = _LINUX_NORESERVE if sys.platform == "linux" else getattr(mmap, "MAP_NORESERVE", 0)
_COPIES = mmap.MAP_PRIVATE | _NORESERVE
_WRITABLE = mmap.PROT_READ | mmap.PROT_WRITE


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


def start_writeback(fd: int, offset: int, count: int) -> None:
    """Start asynchronous writeback of a part of a file; a no-op where the kernel lacks it."""
    call = _sync_file_range()
    if call is not None:
        call(fd, offset, count, _SYNC_FILE_RANGE_WRITE)


@cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    try:
        library = ctypes.CDLL(None)
        # Where both are there, offsets of the other one may have 32 bits.
        call = getattr(library, "fallocate64", None) or library.fallocate
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    call.restype = ctypes.c_int
    return call


_private: dict[int, None] = {}
"""The private mappings that somebody holds, by id; every step is one call of a dictionary."""


class _PrivateMap(mmap.mmap):
    """A mapping that is counted as long as it lives."""

    def __del__(self, forget: Callable[[int, None], None] = _private.pop) -> None:
        forget(id(self), None)


def _descriptor_limit() -> int:
    """How many descriptors the process may have; below 0 there is no limit."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class OsFile(OsDescriptor):
    """One open descriptor. Thread-safe; closed by :meth:`close` or when collected."""

    __slots__ = ()

    def size(self) -> int:
        """Return the length; lseek costs a quarter of fstat here, and no position is in use."""
        try:
            return os.lseek(self._fd, 0, _END)
        except OSError as error:
            raise self._failure(error, "lseek") from error

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
            raise self._failure(error, "pread") from error
        except MemoryError as error:
            full = OSError(errno.ENOMEM, f"no memory for {count} bytes of it")
            raise self._failure(full, "pread") from error
        return data

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Write all buffers at *offset*, in steps of 8 MiB whose writeback starts at once."""
        if self._process is not CURRENT[0]:
            raise self._forked()
        try:
            # The common cases: one small write, one small gathered write.
            if len(buffers) == 1:
                total = len(buffers[0])
                if total <= _WRITE_STEP and os.pwrite(self._fd, buffers[0], offset) == total:
                    return total
            elif len(buffers) <= IOV_MAX:
                total = byte_count(buffers)
                if total <= _WRITE_STEP and os.pwritev(self._fd, buffers, offset) == total:
                    return total
            return self._write_steps(buffers, offset)
        except OSError as error:
            raise self._failure(error, "pwritev") from error

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
        start_writeback(self._fd, offset, count)

    def allocate(self, count: int) -> None:
        """Allocate space ahead (fallocate, length kept); a no-op where it cannot be had."""
        if self._process is not CURRENT[0]:
            raise self._forked()
        call = _fallocate()
        if call is not None and count > 0:
            call(self._fd, _KEEP_SIZE, 0, count)

    def sync(self) -> None:
        """fdatasync; on macOS F_FULLFSYNC, since fsync there stops at the drive's cache."""
        if self._process is not CURRENT[0]:
            raise self._forked()
        try:
            if sys.platform == "darwin":
                fcntl.fcntl(self._fd, fcntl.F_FULLFSYNC)
            else:
                os.fdatasync(self._fd)
        except OSError as error:
            raise self._failure(error, "fdatasync") from error

    def map(self, count: int) -> memoryview:
        """Map the first *count* bytes read-only and shared."""
        if count == 0:
            return memoryview(b"")
        try:
            mapped = with_relief(self._fs, self._mmap, count)
        except (OSError, ValueError) as error:
            raise self._map_failure(error) from error
        return memoryview(mapped)

    def _mmap(self, count: int) -> mmap.mmap:
        # The system gives the lowest number that is free, so a high one means that few are left. A
        # mapping can be done without, what opens a file for a moment cannot.
        limit = _descriptor_limit()
        if 0 <= limit < self._fd + _SPARE and self._fd != CLOSED:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return mmap.mmap(self._fd, count, access=mmap.ACCESS_READ)

    def map_private(self, offset: int, count: int) -> memoryview:
        """Map a range copy-on-write; *offset* need not be page-aligned.

        No memory is set aside for it: a range may be larger than memory, of which only the pages
        that are written to take some. There may be one for each array that a user holds, and each
        has a descriptor: beyond half of those that the process may have it is EMFILE, so that the
        rest can be opened.
        """
        if count == 0:
            return memoryview(bytearray())
        base = offset - offset % mmap.ALLOCATIONGRANULARITY
        size = offset - base + count
        try:
            limit = _descriptor_limit()
            if 0 <= limit <= len(_private) * _PRIVATE_PART:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            mapped = with_relief(
                self._fs, _PrivateMap, self._fd, size, _COPIES, _WRITABLE, offset=base
            )
        except (OSError, ValueError) as error:
            raise self._map_failure(error) from error
        _private[id(mapped)] = None
        return memoryview(mapped)[offset - base :]

    def _map_failure(self, error: OSError | ValueError) -> MldbError:
        if isinstance(error, OSError):
            return self._failure(error, "mmap")
        return StorageIOError(
            f"mmap of {self._fs.root}/{self.name} failed: {error}. The file is shorter than "
            "expected; other files are not affected. Run verify() to see what it should hold."
        )
