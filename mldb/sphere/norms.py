"""Rows divided by their norms, and which rows cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mldb.arrays import Bools, Float32s, Float64s
from mldb.errors import InvalidValueError


def divide_by_norms(
    rows: npt.NDArray[Any], out: Float32s, *, what: str, safe: str, first_row: int = 0
) -> Float32s:
    """Write rows / |rows| to *out*; return the norms, float32.

    Raises InvalidValueError naming the first row that is zero or not finite. Its message says what
    the rows are, and that the caller has nothing to mend: *what* and *safe*.
    """
    wide = rows if rows.dtype == np.float64 else rows.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    tiny, huge = np.finfo(np.float32).tiny ** 0.5, np.finfo(np.float32).max
    good = (norms >= tiny) & (norms <= huge)
    if not good.all():
        # Squares leave the range of floats long before the rows do.
        try:
            norms, wide = _careful_norms(rows, good)
        except _BadRow as bad:
            raise _bad_row(what, first_row + bad.row, bad.why, safe) from None
    np.divide(wide, norms[:, None], out=out, casting="unsafe")
    stored: Float32s = norms.astype(np.float32)
    return stored


def refuse_infinite(rows: Float32s, *, what: str, safe: str, first_row: int = 0) -> None:
    """Raise InvalidValueError for a row that float32 could not hold."""
    good = np.isfinite(rows).all(axis=1)
    if not good.all():
        row = first_row + int(np.argmin(good))
        raise _bad_row(what, row, "is not finite (as float32)", safe)


class _BadRow(Exception):
    def __init__(self, row: int, why: str) -> None:
        self.row, self.why = row, why


def _careful_norms(rows: npt.NDArray[Any], good: Bools) -> tuple[Float64s, Float64s]:
    wide = rows.astype(np.float64)
    scale = np.abs(wide).max(axis=1, initial=0.0)
    for row in np.flatnonzero(~good).tolist():
        if not np.isfinite(wide[row]).all():
            raise _BadRow(row, "is not finite")
        if scale[row] == 0:
            raise _BadRow(row, "is zero and has no direction")
    norms = scale * np.sqrt(np.square(wide / scale[:, None]).sum(axis=1))
    limits = np.finfo(np.float32)
    outside = np.flatnonzero((norms > limits.max) | (norms < limits.tiny))
    if outside.size:
        raise _BadRow(int(outside[0]), "has a norm outside the range of float32")
    return norms, wide


def _bad_row(what: str, row: int, why: str, safe: str) -> InvalidValueError:
    return InvalidValueError(
        f"row {row} of {what} {why}. {safe}; drop or mend such rows and try again."
    )
