"""Operations on stored tensors that need not fit in memory. Reached as ``db.ops``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.history.as_of import AsOf, held
from mldb.log.fs.machine import available_memory
from mldb.names import check_name
from mldb.tensors.blocked import PIECE_PART, Operand, Product, Tile
from mldb.tensors.handle import TensorHandle
from mldb.tensors.scope import Scope
from mldb.write.tensor_writer import TensorWriter

MEMORY_BYTES_MIN: Final = 64 << 10
_MEMORY_BYTES_MAX: Final = 1 << 30  # of the default; a caller may give more
_FLOAT32: Final = np.dtype(np.float32)


class Operations:
    """Operations of one database. Any thread; each call reads one commit and holds it meanwhile."""

    def __init__(
        self, scope_at: Callable[[AsOf], Scope], create_tensor: Callable[..., TensorWriter]
    ) -> None:
        self._scope_at = scope_at
        self._create_tensor = create_tensor

    @overload
    def matrix_multiply(
        self,
        a: str,
        b: str,
        *,
        out: None = None,
        as_of: AsOf = None,
        memory_bytes: int | None = None,
    ) -> npt.NDArray[Any]: ...
    @overload
    def matrix_multiply(
        self, a: str, b: str, *, out: str, as_of: AsOf = None, memory_bytes: int | None = None
    ) -> TensorHandle: ...

    def matrix_multiply(
        self,
        a: str,
        b: str,
        *,
        out: str | None = None,
        as_of: AsOf = None,
        memory_bytes: int | None = None,
    ) -> npt.NDArray[Any] | TensorHandle:
        """Multiply the stored tensors *a* and *b* as ``numpy.matmul`` does, block by block.

        Shapes: (m, k) @ (k, n) gives (m, n); a vector is a row on the left, a column on the right,
        and its axis is dropped from the result. Both are read at one commit, *as_of*.

        Result: a new array; or, with *out*, the tensor of that name, written piece by piece and
        committed at the end (so it may exceed RAM), and its handle is returned. Its dtype is
        ``np.result_type`` of both, in native byte order. bfloat16, float16 and bool are summed in
        float32 and rounded once; floats of 8 bits and fewer count as float32 and complex32 as
        complex64, since products of them do not fit the narrow type. Integers wrap and are no
        faster than in NumPy.

        Memory: the blocks in work stay within *memory_bytes* (a quarter of what is available, at
        most 1 GiB, by default; at least 64 KiB). A returned array comes on top, and so do the
        buffers of the BLAS library and the pages of the mapped log, which the system can drop.

        I/O: with blocks of p rows of *a* and q columns of *b*, *a* is read ceil(n / q) times and
        *b* ceil(m / p) times, which is least when p = q for p * q given; about a third of the
        memory holds one block of the result. When a block spans all columns, *a* is read once.

        Raises InvalidValueError (shapes, a budget below 64 KiB), InvalidTypeError (sparse tensors,
        dtypes that have no product or no common type), LimitError (a compressed operand that
        cannot be decoded within the budget), and what reading and writing raise. Nothing is stored
        then.
        """
        budget = _checked_budget(memory_bytes)
        scope, hold = held(self._scope_at(as_of))
        try:
            left = Operand(scope, a, as_row=True)
            right = Operand(scope, b, as_row=False)
            shape = _result_shape(left, right)
            dtype = _result_dtype(left, right)
            budget -= left.decode(budget) + right.decode(budget)
            product = Product(left, right, _work_dtype(dtype), budget)
            if out is None:
                result = np.zeros(shape, dtype)
                target = result.reshape(left.rows, right.columns)
                for tile in product.tiles():
                    target[tile.rows, tile.columns] = tile.values
                return result
            check_name(out)
            # The sums are rounded once, which may give infinity, as in ``numpy.matmul``.
            with self._create_tensor(out, shape, dtype, casting="unsafe") as writer:
                piece = budget // PIECE_PART // dtype.itemsize
                for tile in product.tiles():
                    _write_tile(writer, shape, tile, right.columns, piece)
        finally:
            hold.release()
        stored = self._scope_at(writer.lsn)
        return TensorHandle(stored, out, stored.tensor_entry(out))


def _write_tile(
    writer: TensorWriter, shape: tuple[int, ...], tile: Tile, columns: int, piece: int
) -> None:
    """Write a block in pieces of at most *piece* elements, which the writer may convert."""
    rows, first = tile.rows.start, tile.columns.start
    height, width = tile.values.shape
    if len(shape) < 2:
        flat = tile.values.reshape(-1)
        if not shape:
            writer[...] = flat[0]
            return
        place = rows + first  # one of the two axes has length 1
        for low in range(0, flat.size, piece):
            writer[place + low : place + min(low + piece, flat.size)] = flat[low : low + piece]
        return
    if width == columns and width <= piece:
        step = piece // width
        for low in range(0, height, step):
            part = tile.values[low : low + step]
            writer[rows + low : rows + low + len(part)] = part
        return
    for low in range(height):
        for start in range(0, width, piece):
            part = tile.values[low, start : start + piece]
            writer[rows + low, first + start : first + start + len(part)] = part


def _checked_budget(memory_bytes: object) -> int:
    if memory_bytes is None:
        return max(MEMORY_BYTES_MIN, min(_MEMORY_BYTES_MAX, available_memory() // 4))
    if isinstance(memory_bytes, bool) or not isinstance(memory_bytes, int | np.integer):
        raise InvalidTypeError(f"memory_bytes is a {type(memory_bytes).__name__}, not an int")
    if memory_bytes < MEMORY_BYTES_MIN:
        raise InvalidValueError(
            f"memory_bytes={memory_bytes} is below {MEMORY_BYTES_MIN} (64 KiB), the least that "
            "blocks are worth cutting for. Nothing was stored."
        )
    return int(memory_bytes)


def _result_shape(left: Operand, right: Operand) -> tuple[int, ...]:
    if left.columns != right.rows:
        raise InvalidValueError(
            f"{left.name!r} of shape {left.what.shape} and {right.name!r} of shape "
            f"{right.what.shape} do not fit: the last axis of the first has {left.columns} "
            f"elements, the first axis of the second {right.rows}. Nothing was stored."
        )
    rows = () if left.is_vector else (left.rows,)
    columns = () if right.is_vector else (right.columns,)
    return rows + columns


def _result_dtype(left: Operand, right: Operand) -> np.dtype[Any]:
    try:
        dtype = np.result_type(_factor_dtype(left), _factor_dtype(right))
    except TypeError as error:
        raise InvalidTypeError(
            f"{left.name!r} is {left.what.dtype} and {right.name!r} is {right.what.dtype}, which "
            "have no common type. Store one of them converted (astype) to the type of the other. "
            "Nothing was stored."
        ) from error
    return dtype.newbyteorder("=")


def _factor_dtype(operand: Operand) -> np.dtype[Any]:
    """Return the dtype that *operand* counts as. Raises InvalidTypeError when it has no product."""
    code = operand.what.dtype
    if code == "bfloat16":
        return operand.dtype
    if code.endswith("complex32"):
        return np.dtype(np.complex64)
    if code.startswith("float") and not code.endswith("_x2"):
        return _FLOAT32
    if code[0] in "<>|" and code[1] in "biufc":
        return operand.dtype
    raise InvalidTypeError(
        f"{operand.name!r} is {code}, which matrix_multiply does not take. Store it converted to "
        "a number type of at least 8 bits (astype). Nothing was stored."
    )


def _work_dtype(result: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the sums. For bool it counts: a sum of zeros and ones is 0 only if all are."""
    narrow = result.kind == "b" or (result.itemsize == 2 and result.kind not in "iu")
    return _FLOAT32 if narrow else result
