"""Copy rows of a table in any order: the one operation that a shuffled stream consists of."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.log import native

_TOUCH_ROW_BYTES: Final = 1024
_TOUCH_ROWS: Final = 32


def take_rows(table: npt.NDArray[Any], rows: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> None:
    """Copy rows of a C-contiguous table to *out*, of its dtype. Numbers outside of it are clipped.

    A copy of scattered rows waits for memory once a row, and for the page tables before that. So
    the first element of every row is read beforehand: those reads do not depend on each other, and
    the processor waits for many of them at once. The compiled twin asks for rows ahead of the one
    that it copies.
    """
    width = table.nbytes // len(table) if len(table) else 0
    if native.twin is not None and native.twin.gather_rows((table,), rows, out, 1, width):
        return
    if width >= _TOUCH_ROW_BYTES and len(rows) >= _TOUCH_ROWS:
        np.take(table.reshape(-1), rows * (width // table.itemsize), mode="clip")
    np.take(table, rows, 0, out=out, mode="clip")  # "raise" would buffer the whole output
