"""Private mappings that a pass has left, and the next one may have again.

Mapping is cheap and what follows is not: a fault for every few pages, and all of them taken back at
the end, cost as much as reading the rows. A mapping that no batch lies in any more, and that nobody
has written to, is as good as a new one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

KEPT_BYTES_MIN: Final = 1 << 20
"""Of a window that is kept: each has a descriptor, and few of them should hold most of a lake."""
KEPT_WINDOWS_MAX: Final = 32

WindowPlace = tuple[int, int]
"""Which window: the number of its block, and its first row there."""


class Window(NamedTuple):
    """Rows of a block in a private mapping; ``holders`` as counted before any batch lay in it."""

    place: WindowPlace
    rows: npt.NDArray[np.float32]
    holders: int


def window_of(place: WindowPlace, rows: npt.NDArray[np.float32]) -> Window:
    """Return the window of a new mapping, of which nothing was handed out."""
    return Window(place, rows, _holders(rows))


def _holders(rows: npt.NDArray[np.float32]) -> int:
    """How many hold the array that every part of a window holds, in whatever number of steps."""
    return sys.getrefcount(rows.base)


class Windows:
    """Windows that are kept: unwritten ones, that nobody holds. One thread at a time.

    What was written to is let go one window later than without: a step may still hold its last
    batch when the next window begins.
    """

    def __init__(self, is_unwritten: Callable[[memoryview], bool]) -> None:
        self._is_unwritten = is_unwritten
        self._kept: dict[WindowPlace, Window] = {}
        self._left: list[Window] = []  # of which it is not known yet

    def take(self, place: WindowPlace) -> Window | None:
        """Return a window that was kept, which is the caller's then."""
        return self._kept.pop(place, None)

    def leave(self, window: Window) -> None:
        """Take a window that the pass is done with; those left before are looked at."""
        self.settle()
        if window.rows.nbytes >= KEPT_BYTES_MIN and len(self._kept) < KEPT_WINDOWS_MAX:
            self._left.append(window)

    def settle(self) -> None:
        """Keep what was left and is as good as new; let go the rest."""
        while self._left:
            window = self._left.pop()
            if self._is_as_new(window):
                self._kept[window.place] = window

    def _is_as_new(self, window: Window) -> bool:
        if _holders(window.rows) != window.holders:
            return False
        return self._is_unwritten(window.rows.data)

    def forget(self) -> bool:
        """Let go all of them; tell whether there were any."""
        had = bool(self._kept or self._left)
        self._kept.clear()
        self._left.clear()
        return had
