"""What files and locks have in common: a descriptor that is closed once, by whoever comes first."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

CLOSED: Final = 0x7FFFFFFF
"""A descriptor that no process can have: every call on it fails with EBADF. (-1 would not do, since
mmap takes that to mean memory without a file.)"""


class Descriptor:
    """One open descriptor. Any thread; closed by :meth:`close` or when collected."""

    __slots__ = ("__weakref__", "_fd", "_root", "name")

    def __init__(self, root: str, name: str, fd: int) -> None:
        self.name = name
        self._root = root
        self._fd = fd

    def close(self) -> None:
        """Close the descriptor now; a later call fails with EBADF, and a lock on it is released."""
        # The number may soon belong to another file, which a late call must not reach.
        fd, self._fd = self._fd, CLOSED
        if fd != CLOSED:
            os.close(fd)

    def __del__(self, close: Callable[[int], None] = os.close, closed: int = CLOSED) -> None:
        """Close what nobody closed; weakref.finalize costs as much as the opening."""
        if self._fd != closed:
            close(self._fd)
