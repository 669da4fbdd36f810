"""Row numbers as callers give them, checked once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.lake.rows.block import Selection


def checked_rows(rows: Any, total: int, lake: str) -> Selection:
    """Return *rows* of a lake of *total* rows as a slice of step 1, or int64 [n].

    Raises InvalidValueError for rows that are none of it, InvalidTypeError for what is no number.
    """
    if isinstance(rows, slice):
        low, high = rows.start, rows.stop
        if rows.step not in (None, 1) or not all(_is_number(end) for end in (low, high)):
            raise InvalidTypeError(
                f"{rows} is no run of rows; give both ends, as in slice(0, {total}), or an array"
            )
        if not 0 <= low <= high <= total:
            raise InvalidValueError(f"rows {rows} of lake {lake!r}, which has {total}")
        return slice(int(low), int(high))
    numbers: npt.NDArray[Any] = np.asarray(rows)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise InvalidTypeError(
            f"rows are an array of shape {numbers.shape} and dtype {numbers.dtype}; give whole "
            "numbers [n], or a slice"
        )
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < total):
        place = int(np.argmax((numbers < 0) | (numbers >= total)))
        raise InvalidValueError(
            f"row {int(numbers[place])}, the one at place {place}, is none of lake {lake!r}: its "
            f"rows are 0 to {total - 1}. rows.find(ids) gives the row of an id."
            if total
            else f"row {int(numbers[place])} of lake {lake!r}, which has no rows"
        )
    return numbers.astype(np.int64, copy=False)


def _is_number(end: object) -> bool:
    return isinstance(end, int | np.integer) and not isinstance(end, bool)
