"""Arrays that grow at their end, so that a state of a lake shares the beginning with the next."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class Growing:
    """A one-dimensional array that only grows. One thread at a time appends; any thread reads.

    What was handed out is a view, and stays as it is: what stands below a length that somebody
    was told is not written again (but by an owner who says so). Appending is O(1) a value, over
    many calls.
    """

    __slots__ = ("_buffer", "count")

    def __init__(self, dtype: npt.DTypeLike, values: Any = ()) -> None:
        self._buffer: npt.NDArray[Any] = np.array(values, dtype)  # a copy: it is written to
        self.count = len(self._buffer)

    def append(self, values: Any) -> None:
        """Append an array of values."""
        low, high = self.count, self.count + len(values)
        if high > len(self._buffer):
            larger = np.empty(max(high, 2 * low, 16), self._buffer.dtype)
            larger[:low] = self._buffer[:low]
            self._buffer = larger
        self._buffer[low:high] = values
        self.count = high

    def cut(self, count: int) -> None:
        """Forget what an append left behind *count* that was interrupted before it was told."""
        self.count = min(self.count, count)

    def first(self, count: int) -> npt.NDArray[Any]:
        """The first *count* values: a view that nobody but the owner writes to."""
        return self._buffer[:count]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._buffer.nbytes
