"""Batches in reused memory: an array is used again once nobody holds it.

Fresh memory costs a page fault for every 4 KiB: filling a fresh batch of 640 KiB takes several
times as long as filling one that was used before. A batch belongs to whoever holds it, for as long
as they hold it; only what was dropped is filled again.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_COUNTS_TRIED: Final = 16
KEEP: Final = 16  # arrays looked at and kept; a consumer that holds more gets fresh ones


class BatchPool:
    """Arrays of one shape and dtype. One thread takes; any thread may hold and drop them.

    A tensor or view made of an array holds it. CPython's reference count tells whether one is left.
    """

    free_count = 0
    """How often an array is held, as :meth:`take` counts, that nobody holds; found out below."""

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.made = 0
        self._arrays: list[npt.NDArray[Any]] = []

    def take(self) -> npt.NDArray[Any]:
        """Return an array that nobody else holds; what is in it is of no meaning."""
        for array in self._arrays:
            if sys.getrefcount(array) == self.free_count:
                return array
        made = np.empty(self.shape, self.dtype)
        self.made += 1
        if len(self._arrays) >= KEEP:
            self._arrays.pop(0)
        self._arrays.append(made)
        return made


def _free_count() -> int:
    """The count by which a pool finds an array that was dropped, and none that is held."""
    for count in range(1, _COUNTS_TRIED):
        pool = BatchPool((1,))
        pool.free_count = count
        pool.take()
        pool.take()
        if pool.made == 1:
            return count
    return 0  # none is used again


# Python versions differ in how many references of their own a loop and a call take.
BatchPool.free_count = _free_count()
