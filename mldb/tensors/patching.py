"""What a caller gives as rows and values, as a patch; and the arithmetic of ``add_to_tensor``.

Pure functions over arrays; any thread. Rows are the steps of the first axis.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Numbers
from mldb.errors import InvalidTypeError, InvalidValueError
from mldb.log.patch import Patch
from mldb.tensors.casting import cast, is_plain
from mldb.tensors.codec import Descriptor, prepare_named, view_numpy
from mldb.tensors.dtypes import dtype_of
from mldb.tensors.sparse import is_scipy_sparse

_Array = npt.NDArray[Any]
_NOTHING: Final = "Nothing was stored."
_WIDER: Final = np.dtype(np.float32)


def check_patchable(name: str, what: Descriptor) -> None:
    """Refuse a tensor that has no rows to change. Raises InvalidTypeError."""
    if what.layout != "dense":
        raise InvalidTypeError(
            f"tensor {name!r} is sparse ({what.layout}), and its rows are not bytes of their own. "
            f"{_NOTHING} Store it whole with store_tensor."
        )
    if not what.shape or not what.nbytes:
        raise InvalidTypeError(
            f"tensor {name!r} of shape {what.shape} has no rows to change. {_NOTHING} Store it "
            "whole with store_tensor."
        )


def row_numbers(name: str, rows: Any, count: int) -> Numbers:
    """Return *rows* of a tensor that has *count*, int64 [n], as given.

    Taken are an int, a slice, a range, and integers in a list, a NumPy array or a torch tensor.
    Raises InvalidTypeError, and InvalidValueError for a row that is not there or stands twice.
    """
    if isinstance(rows, slice):
        rows = range(*rows.indices(count))
    array = np.asarray(rows)
    if array.ndim == 0:
        array = array.reshape(1)
    if array.dtype == bool:
        raise InvalidTypeError(
            f"rows of {name!r} are a mask. {_NOTHING} Give their numbers: np.flatnonzero(mask)."
        )
    if not array.size:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise InvalidTypeError(
            f"rows of {name!r} are {array.ndim}-dimensional {array.dtype}, not a list of integers. "
            f"{_NOTHING}"
        )
    outside = (array < 0) | (array >= count)
    if outside.any():
        raise InvalidValueError(
            f"tensor {name!r} has no row {array[outside][0]}: there are {count}, from 0. {_NOTHING}"
        )
    numbers = array.astype(np.int64)
    ascending = np.sort(numbers)
    doubled = ascending[1:][ascending[1:] == ascending[:-1]]
    if len(doubled):
        raise InvalidValueError(
            f"row {doubled[0]} of {name!r} is given twice, with values that may differ. {_NOTHING} "
            "Give each row once."
        )
    return numbers


def given_array(name: str, values: Any) -> _Array:
    """Return dense *values* of any kind that can be stored as an array, which may be their memory.

    Raises InvalidTypeError.
    """
    prepared = prepare_named(name, values)
    what = prepared.descriptor
    if what.layout != "dense":
        raise InvalidTypeError(f"the values for {name!r} are sparse ({what.layout}). {_NOTHING}")
    return view_numpy(Descriptor(what.dtype, what.shape), prepared.buffers[0])


def set_rows(name: str, what: Descriptor, rows: Any, values: Any) -> Patch:
    """Return the patch that sets *rows* to *values*, of the dtype of the tensor, copied.

    Raises InvalidTypeError for another dtype, and InvalidValueError for another shape; numbers of
    Python have no dtype and are taken where they fit.
    """
    check_patchable(name, what)
    numbers = row_numbers(name, rows, what.shape[0])
    array = given_array(name, values)
    dtype = dtype_of(what.dtype)
    about = f"rows of {name!r}"
    plain = is_plain(values)
    array = cast(array, dtype, "equiv", plain=plain, what=about, outcome=_NOTHING)
    shape = (len(numbers), *what.shape[1:])
    if array.shape != shape and not (np.ndim(rows) == 0 and array.shape == shape[1:]):
        raise InvalidValueError(
            f"{len(numbers)} rows of {name!r} have shape {shape}, the values {array.shape}. "
            f"{_NOTHING}"
        )
    return make_patch(what, numbers, array)


def make_patch(what: Descriptor, numbers: Numbers, values: _Array) -> Patch:
    """Return a patch of rows in any order, each once, and their values; memory of its own."""
    order = np.argsort(numbers, kind="stable")
    row_bytes = what.nbytes // what.shape[0]
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return Patch(numbers[order], data.reshape(len(numbers), row_bytes)[order], row_bytes)


# --- addition -------------------------------------------------------------------------------------


def touched_rows(name: str, what: Descriptor, delta: Any) -> tuple[Numbers, _Array]:
    """Return which rows *delta* changes, ascending, and its values for them, dense.

    *delta*: an array or a sparse matrix of the tensor's shape. Entries of a sparse one that stand
    more than once are added up in the order in which they stand. Raises InvalidTypeError,
    InvalidValueError.
    """
    check_patchable(name, what)
    shape = tuple(getattr(delta, "shape", np.shape(delta)))
    if shape != what.shape:
        raise InvalidValueError(
            f"tensor {name!r} has shape {what.shape}, the delta {shape}. {_NOTHING}"
        )
    sparse = _coordinates(delta)
    if sparse is None:
        dense = given_array(name, delta)
        is_touched = (dense.reshape(what.shape[0], -1) != 0).any(axis=1)
        numbers = np.flatnonzero(is_touched)
        return numbers, dense[numbers]
    places, values = sparse
    numbers, where = np.unique(places[0], return_inverse=True)
    made = np.zeros((len(numbers), *what.shape[1:]), values.dtype)
    np.add.at(made, (where, *places[1:]), values)
    return numbers.astype(np.int64), made


def _coordinates(delta: Any) -> tuple[list[_Array], _Array] | None:
    """The places (an array for each axis) and values of a sparse delta, as they stand."""
    if is_scipy_sparse(delta):
        coo = delta.tocoo()
        places = coo.coords if hasattr(coo, "coords") else (coo.row, coo.col)
        return [np.asarray(axis) for axis in places], coo.data
    layout = str(getattr(delta, "layout", "torch.strided"))
    if layout in ("torch.strided", "torch._mkldnn") or not hasattr(delta, "to_sparse_coo"):
        return None
    coo = delta.detach().to_sparse_coo().cpu()
    indices, values = coo._indices().numpy(), coo._values()
    return list(indices), given_array("delta", values)


def added(name: str, what: Descriptor, old: _Array, delta: _Array, scale: float) -> _Array:
    """Return ``old + scale * delta`` in the dtype of the tensor.

    Floats and complex numbers: the product is rounded to the tensor's dtype, then the sum; those
    narrower than float32 are computed in float32 and rounded once. Integers are exact. Raises
    InvalidTypeError for a dtype that does not fit, InvalidValueError for an integer out of range.
    """
    dtype = dtype_of(what.dtype)
    if dtype.kind in "iub":
        return _added_integers(name, dtype, old, delta, scale)
    work = dtype.newbyteorder("=") if dtype.kind in "fc" and dtype.itemsize >= 4 else _WIDER
    if dtype.kind in "SUMm" or (delta.dtype.kind == "c" and work.kind != "c"):
        raise InvalidTypeError(f"{delta.dtype} cannot be added to {name!r} of {dtype}. {_NOTHING}")
    with np.errstate(all="ignore"):
        product = delta.astype(work) * work.type(scale)
        total: _Array = (old.astype(work) + product).astype(dtype)
    return total


def _added_integers(
    name: str, dtype: np.dtype[Any], old: _Array, delta: _Array, scale: float
) -> _Array:
    if delta.dtype.kind not in "iu" or dtype.kind == "b" or scale != int(scale):
        raise InvalidTypeError(
            f"{scale} times {delta.dtype} cannot be added to {name!r} of {dtype}: integers take "
            f"integers alone. {_NOTHING}"
        )
    exact: _Array = old.astype(object) + delta.astype(object) * int(scale)
    span = np.iinfo(dtype)
    if exact.size and not (span.min <= exact.min() and exact.max() <= span.max):
        raise InvalidValueError(
            f"the sum leaves the range of {dtype}, from {span.min} to {span.max}, in {name!r}. "
            f"{_NOTHING}"
        )
    return exact.astype(dtype)
