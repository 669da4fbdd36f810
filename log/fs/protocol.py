"""The only door to the operating system: files of one store, named relative to its folder.

Everything in ``mldb.log`` and above reaches the disk through a :class:`FileSystem`. Production uses
:class:`~mldb.log.fs.posix.OsFileSystem`; tests use an in-memory one that enumerates crash states.
Implementations raise ``mldb.errors`` only, never a bare ``OSError``.

A file system, its files and its locks belong to the process that made them. In a forked child every
call of theirs that changes something, or takes a lock, raises ClosedError and changes nothing;
reading goes on, and ``close`` only lets go of the child's copies.
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeAlias

from mldb.errors import (
    ClosedError,
    MldbError,
    ReadOnlyError,
    StorageFullError,
    StorageIOError,
    StoreMovedError,
)

# Anything that exports a C-contiguous buffer: bytes, memoryview, mmap, NumPy array.
Buffer: TypeAlias = bytes | bytearray | memoryview

OpenMode: TypeAlias = Literal["r", "rw", "create"]

_SYNC_CALLS = frozenset({"fdatasync", "fsync of the folder"})
_SHOWN_PATH = 500
_MAY_NOT_WRITE = (
    " This user may not write there, so nothing was stored. Open the store with mode='r' to read "
    "it, or get the permission to write to its folder."
)
_MAY_NOT_READ = " This user may not make, enter or read it; nothing was changed."
_NO_MEMORY = (
    " The process has no room left for it: a limit on its memory (ulimit -v, a container, a batch "
    "system), or on the number of its mappings (vm.max_map_count). Nothing is lost: drop arrays "
    "that are held, open the store with a lower max_mapped, cache_bytes or segment_bytes, or raise "
    "the limit."
)
_FULL = frozenset({_errno.ENOSPC, _errno.EDQUOT, _errno.EFBIG})


class File(Protocol):
    """One open file. Thread-safe: every call names its offset; there is no shared position.

    A call after :meth:`close` raises ClosedError; one that is under way meanwhile ends as if there
    had been no close. Writing to a file that was opened with "r" raises ReadOnlyError.
    """

    name: str

    def size(self) -> int:
        """Return the current length in bytes."""

    def pread(self, count: int, offset: int) -> bytes:
        """Return up to *count* bytes from *offset*; shorter only at the end of the file."""

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Write all *buffers* one after another at *offset*; return the bytes written.

        Short writes are continued; on an error some prefix may have reached the file.
        """

    def start_writeback(self, offset: int, count: int) -> None:
        """Ask the kernel to start writing this range to disk; promises nothing."""

    def allocate(self, count: int) -> None:
        """Ask for the space of the first *count* bytes; the length stays, and nothing is promised.

        For a file that several write at once, whose parts would else be allocated as they come.
        """

    def sync(self) -> None:
        """Make content and length durable (fdatasync). A failure is final for this file."""

    def map(self, count: int) -> memoryview:
        """Return a read-only view of the first *count* bytes (count <= size()).

        The view stays valid as long as it lives, also after ``close`` and after an unlink. Raises
        StorageIOError with ``errno`` EMFILE, ENFILE or ENOMEM where there is no descriptor or room
        for it: who needs only a range reads that.
        """

    def map_private(self, offset: int, count: int) -> memoryview:
        """Return a writable view of a range; writes stay private to the view (copy-on-write)."""

    def close(self) -> None:
        """Release the descriptor once the calls under way have left; views stay valid.

        Closing twice is harmless, and so is closing in a forked child.
        """


class KernelLock(Protocol):
    """An advisory lock owned by the kernel: a dead process holds none, nor does a forked child.

    Not reentrant, not thread-safe.
    """

    def try_acquire(self) -> bool:
        """Take the lock if it is free; never wait."""

    def release(self) -> None:
        """Give the lock back. Harmless when closed; in a forked child the parent keeps it."""

    def holder(self) -> str:
        """Describe who holds the lock, for messages only; may be out of date."""

    def close(self) -> None:
        """Release and forget the lock."""


class FileSystem(Protocol):
    """The files of one store. Names are relative, use ``/``, and never leave the folder.

    Thread-safe. ``root`` describes the folder for messages. It stands for the folder that its first
    call found, not for a path: when that folder was moved, replaced or deleted, reading goes on in
    it, and every call that opens for writing, makes, links or renames raises StoreMovedError and
    touches nothing. (``unlink`` and ``sync_dir`` work in the folder it stands for.)
    """

    root: str

    relieve: Callable[[], bool] | None
    """Called when a call finds no descriptor or no room for a mapping (EMFILE, ENFILE, ENOMEM);
    says whether something was given back, and then the call is tried once more. It runs inside the
    failing call, in any thread, under whatever locks the caller holds: it must not wait for one. It
    lives as long as this object, so it must not keep alive what keeps this object."""

    def open(self, name: str, mode: OpenMode) -> File:
        """Open an existing file ("r", "rw"), or make a new one ("create", refused if it exists)."""

    def exists(self, name: str) -> bool:
        """Tell whether a file or folder of this name exists."""

    def list(self, folder: str) -> list[str]:
        """Return the sorted names in *folder* ("" is the root); an absent folder is empty."""

    def mkdir(self, folder: str) -> None:
        """Make *folder* and its parents; an existing one is fine."""

    def link(self, source: str, target: str) -> bool:
        """Publish *source* under *target* as well if no such name exists (put-if-absent).

        Returns False, changing nothing, when *target* exists.
        """

    def link_from(self, other: FileSystem, source: str, target: str) -> bool:
        """Hard-link *source* of another store to *target*; False when they cannot share files."""

    def rename(self, source: str, target: str) -> None:
        """Rename *source* to *target* atomically, replacing it."""

    def unlink(self, name: str) -> None:
        """Remove a name; an absent one is fine. Open files and views stay valid."""

    def sync_dir(self, folder: str) -> None:
        """Make the names in *folder* durable."""

    def lock(self, name: str) -> KernelLock:
        """Return a kernel lock on file *name*, made when absent; not yet acquired."""

    def identity(self, name: str) -> tuple[int, int] | None:
        """Return device and inode of what stands under *name* at the path of the store now.

        "" is the folder itself. None when nothing is there. It is looked up by the path, so it
        tells whether that still leads to the folder this object stands for. Costs one stat. As long
        as a file is open nothing else gets its identity; a closed one's may be given again.
        """

    def look(self, name: str) -> tuple[int, int, int] | None:
        """Return the identity of a file and its length, of one moment; costs the same one stat."""

    def looked_at(self, name: str) -> bytes:
        """Return the path that :meth:`look` asks the system for; empty where it asks none.

        For the compiled twin of such a look, which nothing here sees.
        """

    def populate(self, view: memoryview) -> bool:
        """Take all page faults of *view*, a part of a mapping, in one call; tell whether it did.

        Waits until the pages are read; other threads run meanwhile. Never raises: where the kernel
        has no such call, or cannot read a page, faults come when the bytes are touched, as ever.
        A private mapping shares these pages until they are written to. Pieces of some MiB, just
        before they are used, are right: pages that memory has no room for go again.
        """

    def read_ahead(self, view: memoryview) -> bool:
        """Ask the kernel to read *view*, a part of a mapping, from the disk; tell whether it did.

        Waits for nothing but room in the queue of the disk, and promises nothing. Never raises.
        """

    def is_resident(self, view: memoryview) -> bool:
        """Tell whether no page of *view*, a part of a mapping, would have to be read from the disk.

        It may be out of date at once. Never raises: where nobody knows it is True.
        """

    def is_unwritten(self, view: memoryview) -> bool:
        """Tell whether no page of *view*, a part of a private mapping, was ever written to.

        Never raises: where nobody knows it is False. Costs a few ns a page.
        """

    def free_bytes(self) -> int:
        """Return the bytes free for this user on the file system of the store."""

    def time_ns(self) -> int:
        """Return the wall clock in nanoseconds since 1970 (UTC)."""

    def pause(self, seconds: float) -> None:
        """Sleep: the one way to wait for a kernel lock that somebody else holds."""


def translate(
    error: OSError, call: str, root: str, name: str, *, writing: bool = False
) -> MldbError:
    """Turn an OSError of *call* on *name* into the typed error that a user gets.

    *writing* says that a store that is only read does without this call. The caller raises it
    ``from error``.
    """
    typed = _typed(error, call, root, name, writing=writing)
    typed.failed_sync = call in _SYNC_CALLS and error.errno != _errno.EBADF
    return typed


def only_reading(root: str, call: str, name: str) -> ReadOnlyError:
    """What a change of a file gets that was opened with "r"."""
    return ReadOnlyError(f"{root}/{name} was opened for reading; {call} changed nothing.")


def moved(root: str, call: str, name: str, *, gone: bool) -> StoreMovedError:
    """What a change gets when the path no longer leads to the folder that was opened."""
    found = "nothing stands there now" if gone else "another one stands there now"
    what = f"{call} of {name}" if name else call
    return StoreMovedError(
        f"the folder {root} was moved, replaced or deleted while it was open: {found}, and was not "
        f"touched ({what} was not made). What was read stays readable. Close this handle and open "
        "the store where it is.",
        errno=_errno.ESTALE,
    )


def _shown(path: str) -> str:
    """A path for messages: as it is, or its two ends when it is long."""
    return path if len(path) <= _SHOWN_PATH else f"{path[:300]}…{path[-100:]}"


def _typed(error: OSError, call: str, root: str, name: str, *, writing: bool) -> MldbError:
    code = error.errno
    label = _errno.errorcode.get(code or 0, str(code))
    where = _shown(f"{root}/{name}" if name else root)
    if code in _FULL:
        return StorageFullError(
            f"{call} failed with {label} on {where}: the disk or quota is full. The commit was "
            "rolled back; everything stored before is safe and readable. Free space and try "
            "again.",
            errno=code,
        )
    if code == _errno.EROFS:
        return ReadOnlyError(
            f"{call} failed with {label} on {where}: the file system is read-only. Open the store "
            "with mode='r'."
        )
    if code == _errno.EBADF:
        return ClosedError(
            f"{where} was closed meanwhile, so {call} did nothing. What was stored before is safe; "
            "open the store again."
        )
    if code in (_errno.EMFILE, _errno.ENFILE):
        return StorageIOError(
            f"{call} failed with {label} on {where}: too many open files. Every mapped segment "
            "holds one, also through arrays that are still held. Nothing is lost: drop arrays, "
            "open the store with a lower max_mapped, or raise the limit (ulimit -n).",
            errno=code,
        )
    hint = ""
    if code in (_errno.EACCES, _errno.EPERM):
        hint = _MAY_NOT_WRITE if writing else _MAY_NOT_READ
    elif code == _errno.ENOMEM:
        hint = _NO_MEMORY
    return StorageIOError(
        f"{call} failed with {label} on {where}: {error.strerror}.{hint}", errno=code
    )
