"""Batches lent from a private mapping: rows in their order need no copy.

A mapping copies a page when it is written to and only then. Each pass has mappings that are new, or
as good as that: what a training step does to its batch is seen by no later pass, no other reader
and no file. A mapping is a window of the block. One that was written to goes with the last of its
batches, or when the window behind it is done: a step that writes to every batch keeps copies of a
few windows, however large the lake is.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.errors import StorageIOError
from mldb.lake.rows.block import MappedBlock
from mldb.lake.rows.live import Rows
from mldb.lake.rows.windows import Window, Windows, window_of
from mldb.log.fs.relief import EXHAUSTED

WINDOW_BYTES: Final = 32 << 20
"""Of one mapping; a larger batch has one of its own. Mapping takes about 30 µs."""

_NO_ROWS: Final = 1, 0, np.empty((0, 0), np.float32)


class Lender:
    """Private mappings of a lake's rows for one pass. One thread takes.

    A batch keeps the mapping that it lies in alive.
    """

    def __init__(self, rows: Rows, windows: Windows | None = None) -> None:
        """*windows* are those of passes before, by the same reader."""
        self._rows = rows
        self._all_are_live = len(rows) == rows.state.stored
        self._windows = Windows(rows.log.fs.is_unwritten) if windows is None else windows
        self._window: Window | None = None
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
        if self._window is not None and self._all_are_live and block.is_verified("mu"):
            low = rows.start - part.start + self._window.place[1]
            self._whole = low, low + len(self._window.rows), self._window.rows
        return found

    def _of_window(self, number: int, part: slice) -> Any:
        if self._window is None or self._window.place[0] != number:
            return None
        first, rows = self._window.place[1], self._window.rows
        if not first <= part.start <= part.stop <= first + len(rows):
            return None
        found = rows[part.start - first : part.stop - first]
        self.lent_bytes += found.nbytes
        return found

    def _of_new_window(self, number: int, part: slice) -> Any:
        """Map from the first of these rows on: the batches that follow lie behind them."""
        self._leave_window()  # it goes first, unless a batch of it is held
        block = self._rows.block(number)
        stop = min(part.start + WINDOW_BYTES // (4 * self._rows.dim), block.info.rows)
        rows = slice(part.start, max(part.stop, stop))
        window = self._windows.take((number, part.start))
        if window is not None and len(window.rows) == rows.stop - rows.start:
            self._window = window
            return self._of_window(number, part)
        del window
        mapped = self._mapped(block, rows)
        if mapped is None and self._windows.forget():
            mapped = self._mapped(block, rows)  # there may be room now
        if mapped is None:
            self._lends = False
            return None
        self._window = window_of((number, part.start), mapped)
        return self._of_window(number, part)

    def _mapped(self, block: MappedBlock, rows: slice) -> npt.NDArray[np.float32] | None:
        """A new mapping; None where the process may have no more."""
        try:
            return block.private_mu(rows)
        except MemoryError:
            return None
        except StorageIOError as error:
            if error.errno not in EXHAUSTED:
                raise
            return None

    def _leave_window(self) -> None:
        window, self._window, self._whole = self._window, None, _NO_ROWS
        if window is not None:
            self._windows.leave(window)

    def close(self) -> None:
        """End the pass: nothing is lent any more."""
        self._lends = False
        self._leave_window()
        self._windows.settle()
