"""What descriptors of tensors say, as columns: dtype, shape, size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from mldb.arrays import Numbers
from mldb.log import format as fmt
from mldb.query.columns import WHOLE_LIST, Coded, ColumnData
from mldb.query.rows import SpaceRows
from mldb.tensors.codec import Descriptor, unpack_descriptor
from mldb.tensors.dtypes import dtype_name
from mldb.tensors.encoding import ENCODING_NAMES

DESCRIBED: Final = ("dtype", "shape", "ndim", "size", "nbytes", "layout")

_TEXTS: Final[dict[str, tuple[Callable[[Descriptor], str], str]]] = {
    "dtype": (lambda what: dtype_name(what.dtype), "VARCHAR"),
    "shape": (lambda what: str(list(what.shape)), WHOLE_LIST),
    "layout": (lambda what: what.layout, "VARCHAR"),
}
_NUMBERS: Final[dict[str, Callable[[Descriptor], int]]] = {
    "ndim": lambda what: len(what.shape),
    "size": lambda what: math.prod(what.shape),
    "nbytes": lambda what: what.nbytes,
}


def described(rows: SpaceRows, found: Numbers, wanted: frozenset[str]) -> dict[str, ColumnData]:
    """Return those of DESCRIBED that are *wanted*, of these versions; NULL for deletions.

    Each distinct descriptor is decoded once. Raises CorruptError.
    """
    names = [name for name in DESCRIBED if name in wanted]
    if not names:
        return {}
    gone = rows.take("flags", found) & fmt.ENTRY_TOMBSTONE != 0
    distinct, place = _distinct(rows.take("attr", found), len(rows.attrs))
    kinds = [
        None if not rows.attrs[attr] else unpack_descriptor(rows.attrs[attr])
        for attr in distinct.tolist()
    ]
    return {name: _column(name, kinds, place, gone) for name in names}


def _column(name: str, kinds: list[Descriptor | None], place: Numbers, gone: Any) -> ColumnData:
    if name in _NUMBERS:
        number_of = _NUMBERS[name]
        numbers = np.array([0 if what is None else number_of(what) for what in kinds], np.int64)
        values = numbers[place] if len(numbers) else np.zeros(len(place), np.int64)
        return np.ma.MaskedArray(values, gone) if gone.any() else values
    text_of, kind = _TEXTS[name]
    known: dict[str, int] = {}
    codes = [-1 if what is None else known.setdefault(text_of(what), len(known)) for what in kinds]
    own = np.array(codes or [-1], np.int64)[place]
    return Coded(np.where(gone, -1, own), list(known), kind)


def encodings(rows: SpaceRows, found: Numbers) -> Coded:
    """Return how the bytes of these versions are stored; NULL for deletions."""
    values = list(ENCODING_NAMES.values())
    codes = np.full(fmt.ENCODING_MAX + 1, -1, np.int64)
    codes[list(ENCODING_NAMES)] = np.arange(len(values))
    gone = rows.take("flags", found) & fmt.ENTRY_TOMBSTONE != 0
    own = codes[rows.take("encoding", found).astype(np.int64)]
    return Coded(np.where(gone, -1, own), values)


def _distinct(values: Any, count: int) -> tuple[Numbers, Numbers]:
    """Return the distinct numbers below *count*, and the place in them of each: without sorting."""
    used = np.zeros(max(count, 1), np.bool_)
    used[values] = True
    place = np.cumsum(used) - 1
    return np.flatnonzero(used), place[values].astype(np.int64)
