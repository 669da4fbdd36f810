"""Byte planes: the first byte of every element, then the next ones. Pure, NumPy.

Elements of one tensor share their upper bytes, so that alike bytes stand together before they are
compressed: a byte shuffle, as in HDF5 and Blosc.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]


def split_planes(data: Any, width: int) -> memoryview:
    """Return the bytes of *data*, elements of *width* bytes each, as planes; a copy."""
    table = np.frombuffer(data, np.uint8).reshape(-1, width)
    return np.ascontiguousarray(table.T).reshape(-1).data


def spread_plane(part: bytes | memoryview, place: int, width: int, start: int, made: Any) -> None:
    """Put bytes of plane number *place*, those from element *start* on, into *made*, writable.

    *made* has all bytes of the elements, *width* each. Planes can be put where they belong as they
    come, so that none is held until the last one is there.
    """
    elements: _Bytes = np.frombuffer(made, np.uint8).reshape(-1, width)
    elements[start : start + len(part), place] = np.frombuffer(part, np.uint8)
