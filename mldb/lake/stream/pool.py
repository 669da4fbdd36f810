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

KEEP: Final = 16  # arrays looked at and kept; a consumer that holds more gets fresh ones


def _first_with_count(arrays: list[npt.NDArray[Any]], count: int) -> tuple[Any, int]:
    """Return the first array with this reference count (or None), and the count seen last."""
    seen = 0
    for array in arrays:
        seen = sys.getrefcount(array)
        if seen == count:
            return array, seen
    return None, seen


# What holds an array that only a list holds, as the loop above sees it. Python versions differ in
# how many references of their own a loop and a call take, so it is not a constant.
_FREE_COUNT: Final = _first_with_count([np.empty(1)], -1)[1]


class BatchPool:
    """Arrays of one shape and dtype. One thread takes; any thread may hold and drop them.

    A tensor or view made of an array holds it. CPython's reference count tells whether one is left.
    """

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.made = 0
        self._arrays: list[npt.NDArray[Any]] = []

    def take(self) -> npt.NDArray[Any]:
        """Return an array that nobody else holds; what is in it is of no meaning."""
        free: npt.NDArray[Any] | None = _first_with_count(self._arrays, _FREE_COUNT)[0]
        if free is not None:
            return free
        made = np.empty(self.shape, self.dtype)
        self.made += 1
        if len(self._arrays) >= KEEP:
            self._arrays.pop(0)
        self._arrays.append(made)
        return made
