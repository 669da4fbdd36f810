"""Batches lent from a private mapping: rows in their order need no copy.

A mapping copies a page when it is written to and only then. Each pass maps anew, so what a training
step does to its batch is seen by no later pass, no other reader and no file. A mapping is a window
of the block and goes with the last of its batches: a step that writes to every batch keeps copies
of a few windows, however large the lake is.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.errors import StorageIOError
from mldb.lake.rows.live import Rows
from mldb.log.fs.relief import EXHAUSTED

WINDOW_BYTES: Final = 32 << 20
"""Of one mapping; a larger batch has one of its own. Mapping takes about 30 µs."""

_NO_ROWS: Final = 1, 0, np.empty((0, 0), np.float32)


class Lender:
    """Private mappings of a lake's rows for one pass. One thread takes.

    A batch keeps the mapping that it lies in alive.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._all_are_live = len(rows) == rows.state.stored
        self._window: tuple[int, int, npt.NDArray[np.float32]] | None = None  # block, first, rows
        self._lends = True
        self.lent_bytes = 0
        # The rows of the window by their own numbers, where all are live and verified.
        self._whole: tuple[int, int, npt.NDArray[np.float32]] = _NO_ROWS

    def take(self, rows: slice) -> Any:
        """Return mu of these rows as a writable array, or None: the caller copies them then.

        None where they lie in several blocks, and for good once the process may map no more.
        Raises CorruptError.
        """
        low, high, lent = self._whole
        if low <= rows.start and rows.stop <= high:
            found = lent[rows.start - low : rows.stop - low]
            self.lent_bytes += found.nbytes
            return found
        place = self._rows.block_of(rows) if self._lends else None
        if place is None:
            return None
        number, part = place
        block = self._rows.block(number)
        if not block.is_verified("mu"):
            block.verify("mu", part)
        found = self._of_window(number, part)
        if found is None:
            found = self._of_new_window(number, part)
        if self._window is not None and block.is_verified("mu") and self._all_are_live:
            _, first, mapped = self._window
            low = rows.start - part.start + first
            self._whole = low, low + len(mapped), mapped
        return found

    def _of_window(self, number: int, part: slice) -> Any:
        if self._window is None or self._window[0] != number:
            return None
        _, first, rows = self._window
        if not first <= part.start <= part.stop <= first + len(rows):
            return None
        found = rows[part.start - first : part.stop - first]
        self.lent_bytes += found.nbytes
        return found

    def _of_new_window(self, number: int, part: slice) -> Any:
        """Map from the first of these rows on: the batches that follow lie behind them."""
        block = self._rows.block(number)
        stop = min(part.start + WINDOW_BYTES // (4 * self._rows.dim), block.info.rows)
        self._window, self._whole = None, _NO_ROWS  # goes first, unless a batch of it is held
        try:
            mapped = block.private_mu(slice(part.start, max(part.stop, stop)))
        except MemoryError:
            self._lends = False
            return None
        except StorageIOError as error:
            if error.errno not in EXHAUSTED:
                raise
            self._lends = False
            return None
        self._window = number, part.start, mapped
        return self._of_window(number, part)
