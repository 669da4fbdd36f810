"""Byte planes: the first byte of every element, then the next ones. Pure, NumPy.

Elements of one tensor share their upper bytes, so that alike bytes stand together before they are
compressed: a byte shuffle, as in HDF5 and Blosc.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]

_AT_ONCE: Final = 1 << 14
"""Elements that are joined at once: so many stay in the cache while their bytes come together."""


def split_planes(data: Any, width: int) -> memoryview:
    """Return the bytes of *data*, elements of *width* bytes each, as planes; a copy."""
    table = np.frombuffer(data, np.uint8).reshape(-1, width)
    return np.ascontiguousarray(table.T).reshape(-1).data


def join_planes(planes: Any, width: int, made: Any) -> None:
    """Put the elements whose planes these are into *made*, writable and as many bytes."""
    table: _Bytes = np.frombuffer(planes, np.uint8).reshape(width, -1)
    elements: _Bytes = np.frombuffer(made, np.uint8).reshape(-1, width)
    for start in range(0, len(elements), _AT_ONCE):
        stop = start + _AT_ONCE
        for place in range(width):
            elements[start:stop, place] = table[place, start:stop]
