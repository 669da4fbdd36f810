"""A product of two stored matrices, block by block, in bounded memory. See ``mldb.write.ops``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.errors import InvalidTypeError, InvalidValueError, LimitError
from mldb.tensors.codec import unpack_descriptor
from mldb.tensors.dtypes import dtype_of
from mldb.tensors.scope import Scope, holder, stored_bytes

_Array = npt.NDArray[Any]

PIECE_PART: Final = 16  # one part of this many is kept for converting a piece of the result
_OBJECT_BYTES: Final = 16 << 10  # views, slices and other small objects of one step
_ENCODED_PART: Final = 4  # unpacking holds a tensor up to three times, beside the other operand


class Operand:
    """One stored tensor seen as a matrix. ``block`` gives views of the log, never copies."""

    def __init__(self, scope: Scope, name: str, *, as_row: bool) -> None:
        self.name = name
        self.entry = scope.tensor_entry(name)
        self.what = unpack_descriptor(self.entry.attr)
        self._scope = scope
        self._key, self._held = holder(scope, self.entry, name)
        scope.source.note_read(scope.commit, self.entry, name)
        self._decoded: memoryview | None = None
        self._check()
        self.dtype = dtype_of(self.what.dtype)
        shape = self.what.shape
        self.is_vector = len(shape) == 1
        matrix = ((1, *shape) if as_row else (*shape, 1)) if self.is_vector else shape
        self.rows, self.columns = matrix

    def _check(self) -> None:
        what = self.what
        if what.layout != "dense":
            raise InvalidTypeError(
                f"{self.name!r} is sparse ({what.layout}); blocks of it cannot be cut. Multiply "
                "db[name] with SciPy or torch, or store the dense form. Nothing was stored."
            )
        if len(what.shape) not in (1, 2):
            raise InvalidValueError(
                f"{self.name!r} has shape {what.shape}; matrix_multiply takes matrices and "
                "vectors. Multiply stacked matrices one by one, or store them reshaped to two "
                "axes. Nothing was stored."
            )

    def decode(self, budget: int) -> int:
        """Unpack a compressed tensor, which has no blocks; return the bytes that it takes."""
        if self._scope.source.door.has_parts(self._held):
            return 0
        nbytes = self.what.nbytes
        if nbytes > budget // _ENCODED_PART:
            raise LimitError(
                f"{self.name!r} is stored compressed and is unpacked as a whole: {nbytes} bytes, "
                f"more than a quarter of memory_bytes={budget}. Give memory_bytes="
                f"{nbytes * _ENCODED_PART}, or store it through a handle opened without "
                "compression. Nothing was stored."
            )
        self._decoded = stored_bytes(self._scope, self.entry, self.name)
        return nbytes

    def block(self, low: int, high: int, start: int, stop: int) -> _Array:
        """Return rows *low* to *high* and columns *start* to *stop* as stored; not empty."""
        itemsize = self.dtype.itemsize
        row_bytes = self.columns * itemsize
        if high - low == 1:
            data = self._bytes(low * row_bytes + start * itemsize, (stop - start) * itemsize)
            return np.ndarray((1, stop - start), self.dtype, data)
        data = self._bytes(low * row_bytes, (high - low) * row_bytes)
        return np.ndarray((high - low, self.columns), self.dtype, data)[:, start:stop]

    def _bytes(self, start: int, count: int) -> memoryview:
        if self._decoded is not None:
            return self._decoded[start : start + count]
        scope, stop = self._scope, start + count
        door, size = scope.source.door, self.what.nbytes
        return door.part(scope.view, self._key, self._held, size, start, stop, self.name)


class Tile(NamedTuple):
    """A finished block of the result; ``values`` are overwritten by the next one."""

    rows: slice
    columns: slice
    values: _Array


class Blocking(NamedTuple):
    """How many rows of a, columns of b, and columns of a (rows of b) are in work at once."""

    rows: int
    columns: int
    depth: int


def blocking(m: int, k: int, n: int, elements: int) -> Blocking:
    """Choose the blocks of an (m, k) @ (k, n) product; all at least 1.

    What is held at once is two blocks of the result (a sum and a summand) and one of each operand:
    ``2 * rows * columns + depth * (rows + columns) <= elements``, with *elements* >= 4. The result
    block is as square as the shape allows, because that reads the operands the fewest times.
    """
    side = max(1, math.isqrt(elements // 3))
    rows, columns = min(m, side), min(n, side)
    depth = min(k, max(1, side // 2))
    if rows < side:
        columns = min(n, max(1, (elements - depth * rows) // (2 * rows + depth)))
    elif columns < side:
        rows = min(m, max(1, (elements - depth * columns) // (2 * columns + depth)))
    depth = min(k, max(1, (elements - 2 * rows * columns) // (rows + columns)))
    return Blocking(rows, columns, depth)


class Product:
    """The blocked product of two operands in dtype *work*, within *budget* bytes."""

    def __init__(self, left: Operand, right: Operand, work: np.dtype[Any], budget: int) -> None:
        self._left = left
        self._right = right
        self._work = work
        self._shape = (left.rows, left.columns, right.columns)
        room = budget - budget // PIECE_PART - _OBJECT_BYTES
        m, k, n = (max(axis, 1) for axis in self._shape)
        self._blocks = blocking(m, k, n, room // work.itemsize)

    def tiles(self) -> Iterator[Tile]:
        """Yield the blocks of the result, row by row and from left to right."""
        m, k, n = self._shape
        rows, columns, depth = self._blocks
        tile = np.empty(rows * columns, self._work)
        summand = np.empty(rows * columns if k > depth else 0, self._work)
        left, right = self._buffer(self._left, rows), self._buffer(self._right, columns)
        for low in range(0, m, rows):
            high = min(low + rows, m)
            for start in range(0, n, columns):
                stop = min(start + columns, n)
                count, shape = (high - low) * (stop - start), (high - low, stop - start)
                total = tile[:count].reshape(shape)
                if k == 0:
                    total[...] = 0
                for place in range(0, k, depth):
                    end = min(place + depth, k)
                    a = self._block(self._left, (low, high, place, end), left)
                    b = self._block(self._right, (place, end, start, stop), right)
                    if place == 0:
                        np.matmul(a, b, out=total)
                    else:
                        total += np.matmul(a, b, out=summand[:count].reshape(shape))
                yield Tile(slice(low, high), slice(start, stop), total)

    def _buffer(self, operand: Operand, across: int) -> _Array:
        """Memory for a converted block; none when the stored bytes serve as they are."""
        same = operand.dtype == self._work
        return np.empty(0 if same else across * self._blocks.depth, self._work)

    def _block(self, operand: Operand, where: tuple[int, int, int, int], buffer: _Array) -> _Array:
        block = operand.block(*where)
        if block.dtype == self._work:
            return block
        converted = buffer[: block.size].reshape(block.shape)
        np.copyto(converted, block, casting="unsafe")
        return converted
