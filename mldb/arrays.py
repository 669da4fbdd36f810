"""The types of arrays that several modules speak of, and the one that none of them takes."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np

from mldb.errors import InvalidTypeError

Float32s: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
"""Rows [n, d] as a lake holds them, or one such number for each row."""

Float64s: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]
"""Of any width."""

Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
"""Row numbers, ids, labels, commits: whole numbers of which there are many."""

_DEPTH_MAX: Final = 64  # NumPy has no more axes
_PLAIN: Final = frozenset({bool, int, float, complex})


def refuse_masks(
    values: object,
    what: str = "a masked array",
    remedy: str = "Store array.data and array.mask under two names, or array.filled(value).",
) -> None:
    """Raise InvalidTypeError for a masked array, and for a list that holds one.

    NumPy turns both into plain arrays by dropping the mask. *what* names the values and *remedy*
    says what to do, for the message.
    """
    if _is_masked(values, 0):
        raise InvalidTypeError(f"{what} would lose its mask. {remedy}")


def _is_masked(values: object, depth: int) -> bool:
    if isinstance(values, np.ma.MaskedArray):
        return True
    if not isinstance(values, list | tuple) or depth >= _DEPTH_MAX:
        return False
    if set(map(type, values)) <= _PLAIN:
        return False
    return any(_is_masked(item, depth + 1) for item in values)
