"""A list in memory that processes share: each may append, and all see the same order."""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
import weakref
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import Any, Final, NamedTuple

from mldb.log.fs.protocol import translate

_ENTRY: Final = struct.Struct("<QQQ")


class SharedEntry(NamedTuple):
    """One item: three unsigned 64-bit numbers."""

    owner: int
    key: int
    value: int


class SharedList:
    """Entries that a process and its children append, forked or spawned. Any thread and process.

    An append is one write to the end of a file in memory, which the kernel makes whole: there is no
    lock, and nothing to clean up after a process that dies. The memory goes with the last process
    that has it. Pickled for anything but a child that is being started, it is a new, empty list.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        """Raises StorageIOError."""
        self._descriptor = _opened() if descriptor is None else descriptor
        weakref.finalize(self, os.close, self._descriptor)

    def append(self, entry: SharedEntry) -> None:
        """Put an entry behind all others."""
        os.write(self._descriptor, _ENTRY.pack(*entry))

    def __len__(self) -> int:
        """How many entries there are."""
        return os.fstat(self._descriptor).st_size // _ENTRY.size

    def read(self, start: int = 0) -> list[SharedEntry]:
        """Return the entries from number *start* on."""
        count = len(self) - start
        if count <= 0:
            return []
        data = os.pread(self._descriptor, count * _ENTRY.size, start * _ENTRY.size)
        return [SharedEntry(*numbers) for numbers in _ENTRY.iter_unpack(data)]

    def __reduce__(self) -> Any:
        if get_spawning_popen() is None:
            return SharedList, ()
        return _inherited, (DupFd(self._descriptor),)


def _inherited(duplicate: Any) -> SharedList:
    return SharedList(duplicate.detach())


def _opened() -> int:
    """A file that has no name, opened to append."""
    try:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("mldb-shared-list")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
    except OSError as error:
        raise translate(error, "open", "memory", "a list that processes share") from error
    return descriptor
