"""Which bytes of a dense tensor an index expression needs.

Tensors lie in C order, so leading integers and one leading slice pick one contiguous range of
bytes. What is left of the expression is applied to that range afterwards::

    x[3, 10:20, ::2]   on shape (8, 32, 4)   reads x[3, 10:20] and applies [:, ::2] to it
"""

from __future__ import annotations

import operator
from functools import lru_cache
from typing import Any

import numpy as np

from mldb.deferred import NamedTuple
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.tensors.descriptor import Descriptor


class RowSlice(NamedTuple):
    """The dense block to read: its ``descriptor``, its bytes ``[start, stop)``, and the index left.

    ``block[residual]`` is what the whole expression gives on the whole tensor; apply it also when
    it is ``()``, which turns a block without axes into a scalar, as NumPy does.
    """

    descriptor: Descriptor
    start: int
    stop: int
    residual: tuple[Any, ...]


def slice_bytes(descriptor: Descriptor, key: Any) -> RowSlice | None:
    """Return the contiguous part of a dense tensor that the index expression *key* needs.

    None means the whole tensor is needed: *key* goes to NumPy with it. Strided and reversed slices
    read the range they span; index arrays are supported behind a leading integer or slice. Raises
    InvalidValueError for an integer out of range or too many indices. Nothing is read.
    """
    if descriptor.layout != "dense" or not descriptor.shape or not descriptor.nbytes:
        return None
    items = key if isinstance(key, tuple) else (key,)
    _check_count(descriptor, items)
    if all(_is_basic(item) for item in items):
        result = _narrow(descriptor, items)
    else:
        result = _narrow_rows(descriptor, items)
    if result is None or result.stop - result.start == descriptor.nbytes:
        return None
    return result


def index_array(array: np.ndarray[Any, Any], key: Any) -> Any:
    """Return ``array[key]``; raises InvalidValueError or InvalidTypeError for a bad *key*."""
    try:
        return array[key]
    except (IndexError, ValueError) as error:
        raise InvalidValueError(
            f"index {key!r:.80} does not fit a tensor of shape {array.shape}: {error}."
        ) from error
    except TypeError as error:
        raise InvalidTypeError(f"{key!r:.80} is not an index: {error}.") from error


def _is_integer(item: Any) -> bool:
    # bool is an int in Python and a mask in NumPy.
    return isinstance(item, int | np.integer) and not isinstance(item, bool)


def _is_basic(item: Any) -> bool:
    return _is_integer(item) or isinstance(item, slice) or item is None or item is Ellipsis


def _check_count(descriptor: Descriptor, items: tuple[Any, ...]) -> None:
    used = sum(1 for item in items if _is_integer(item) or isinstance(item, slice))
    if used > len(descriptor.shape):
        raise InvalidValueError(
            f"{used} indices are too many for a tensor of shape {descriptor.shape}."
        )


def _narrow(descriptor: Descriptor, items: tuple[Any, ...]) -> RowSlice | None:
    shape = descriptor.shape
    start = 0
    row_bytes = descriptor.nbytes
    for axis, item in enumerate(items):
        if not _is_integer(item):
            break
        row_bytes //= shape[axis]
        start += _position(descriptor, axis, item) * row_bytes
    else:
        return _block(descriptor, shape[len(items) :], start, ())
    if not isinstance(item, slice):
        # Ellipsis or newaxis: the rest applies to the block the integers picked.
        return _block(descriptor, shape[axis:], start, items[axis:]) if axis else None
    first, count, left = _span(item, shape[axis])
    start += first * (row_bytes // shape[axis])
    rest = items[axis + 1 :]
    residual = (left, *rest) if rest or left != slice(None) else ()
    return _block(descriptor, (count, *shape[axis + 1 :]), start, residual)


def _narrow_rows(descriptor: Descriptor, items: tuple[Any, ...]) -> RowSlice | None:
    """Narrow the first axis only: an integer before an index array takes part in broadcasting."""
    leading = items[0]
    rows = descriptor.shape[0]
    left: int | slice
    if _is_integer(leading):
        first, count, left = _position(descriptor, 0, leading), 1, 0
    elif isinstance(leading, slice):
        first, count, left = _span(leading, rows)
    else:
        return None
    start = first * (descriptor.nbytes // rows)
    return _block(descriptor, (count, *descriptor.shape[1:]), start, (left, *items[1:]))


def _position(descriptor: Descriptor, axis: int, item: Any) -> int:
    size = descriptor.shape[axis]
    index = operator.index(item)
    if not -size <= index < size:
        raise InvalidValueError(
            f"index {index} is out of range for axis {axis} of shape {descriptor.shape}."
        )
    return index + size if index < 0 else index


def _span(item: slice, size: int) -> tuple[int, int, slice]:
    """Return the first row and the number of rows that *item* spans, and the slice left within."""
    try:
        picked = range(*item.indices(size))
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"{item} cannot index an axis of {size}: {error}.") from error
    if not picked:
        return 0, 0, slice(None)
    low, high = min(picked[0], picked[-1]), max(picked[0], picked[-1])
    step = picked.step if len(picked) > 1 else 1
    return low, high - low + 1, slice(None) if step == 1 else slice(None, None, step)


def _block(
    descriptor: Descriptor, shape: tuple[int, ...], start: int, residual: tuple[Any, ...]
) -> RowSlice:
    part = _described(descriptor.dtype, shape, descriptor.framework)
    return RowSlice(part, start, start + part.nbytes, residual)


@lru_cache(maxsize=1024)
def _described(dtype: str, shape: tuple[int, ...], framework: str) -> Descriptor:
    return Descriptor(dtype, shape, framework=framework)
