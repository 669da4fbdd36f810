"""What a user gives, as NumPy arrays: lists, arrays, tensors on any device."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mldb.arrays import Numbers
from mldb.errors import InvalidTypeError

_REGISTERED: Final = 2  # dtype.isbuiltin of types that other packages made
_NUMPY_FLOATS: Final = ("torch.float16", "torch.float32", "torch.float64")


def to_host(values: Any) -> Any:
    """Return a NumPy array of *values*, which may be a tensor on any device.

    Floats that NumPy lacks (bfloat16, fp8, as tensors or of ml_dtypes) come as float32. Raises
    InvalidTypeError.
    """
    try:
        if not hasattr(values, "detach"):
            array = np.asarray(values)
            return array.astype(np.float32) if is_further_float(array.dtype) else array
        tensor = values.detach().cpu()
        known = str(tensor.dtype) in _NUMPY_FLOATS or not tensor.is_floating_point()
        return (tensor if known else tensor.float()).numpy()
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise InvalidTypeError(
            f"a {type(values).__name__} cannot be taken as an array: {error}. Nothing was stored."
        ) from error


def is_further_float(dtype: np.dtype[Any]) -> bool:
    """Whether this is a real float that ml_dtypes brings to NumPy."""
    if dtype.isbuiltin != _REGISTERED or "int" in dtype.name:
        return False
    return np.can_cast(dtype, np.float32)


def as_ids(values: Any) -> Numbers:
    """Return ids as int64 [n]. Raises InvalidTypeError."""
    array = np.atleast_1d(to_host(values))
    if array.ndim > 1:
        raise InvalidTypeError(f"ids have shape {array.shape}; give a list of them")
    if array.size and array.dtype.kind not in "iu":
        raise InvalidTypeError(f"ids have dtype {array.dtype}; they are integers")
    return array.astype(np.int64)
