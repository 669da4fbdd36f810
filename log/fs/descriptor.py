"""What files, folders and locks have in common: a descriptor whose number is never used too late.

The system gives the number of a closed descriptor to the next file that is opened, so a call that
is late by a moment would reach that file. Here a number is an object that closes itself when the
last reference goes, and a call that is under way holds one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from mldb.errors import MldbError
from mldb.log.fs.process import CURRENT, forked
from mldb.log.fs.protocol import FileSystem, only_reading, translate

CLOSED: Final = 0x7FFFFFFF
"""A descriptor that no process can have: every call on it fails with EBADF. (-1 would not do, since
mmap takes that to mean memory without a file.)"""


class Fd(int):
    """The number of an open descriptor, which is closed when nobody refers to this object any more.

    Pass it on as it is: an ``int`` made from it would outlive it.
    """

    given_back = False

    def give_back(self) -> None:
        """Close it although others refer to it, who must not be running: only right after a fork.

        The threads that were inside a call do not exist in the child, but their references do.
        """
        self.given_back = True
        with suppress(OSError):
            os.close(self)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        """Close it; there is nobody to tell of an error."""
        if not self.given_back:
            try:  # noqa: SIM105 - globals may be gone when the interpreter ends
                close(self)
            except OSError:
                pass


class OsDescriptor:
    """One open descriptor. Any thread; closed by :meth:`close` or when collected.

    It keeps its file system, but no file system keeps its files.
    """

    __slots__ = ("__weakref__", "_fd", "_fs", "_process", "name")

    def __init__(self, fs: FileSystem, name: str, fd: Fd) -> None:
        self.name = name
        self._fs = fs
        self._fd: int = fd
        self._process = CURRENT[0]

    def close(self) -> None:
        """Close the descriptor, as soon as the calls that are inside have left.

        A later call raises ClosedError. Closing twice is harmless, also in a forked child.
        """
        self._fd = CLOSED

    def _forked(self) -> MldbError:
        return forked(self._process, f"{self._fs.root}/{self.name}")

    def _failure(self, error: OSError, call: str) -> MldbError:
        """Say as an error of mldb why *call* failed; the caller raises it from *error*."""
        if error.errno == errno.EBADF and self._fd != CLOSED:
            return only_reading(self._fs.root, call, self.name)
        return translate(error, call, self._fs.root, self.name)
