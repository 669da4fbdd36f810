"""What a user gives, as NumPy arrays: lists, arrays, tensors on any device."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mldb.arrays import Numbers, refuse_masks
from mldb.errors import InvalidTypeError

_REGISTERED: Final = 2  # dtype.isbuiltin of types that other packages made
_FILLED: Final = (
    "Give array.filled(value), or only the rows without masked values; a lake keeps the mask where "
    "it is a column of its own. Nothing was stored."
)
_NUMPY_FLOATS: Final = ("torch.float16", "torch.float32", "torch.float64")


def to_host(values: Any, what: str = "") -> Any:
    """Return a NumPy array of *values*, which may be a tensor on any device.

    Floats that NumPy lacks (bfloat16, fp8; of torch or ml_dtypes) come as float32. *what* names the
    values in messages. Raises InvalidTypeError for what is no array, and for masked ones.
    """
    masked = f"{what} of a masked array" if what else "a masked array"
    refuse_masks(values, masked, _FILLED)
    try:
        if not hasattr(values, "detach"):
            return _known_to_numpy(np.asarray(values))
        tensor = values.detach().cpu()
        known = str(tensor.dtype) in _NUMPY_FLOATS or not tensor.is_floating_point()
        return (tensor if known else tensor.float()).numpy()
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        name = f"{what}: a" if what else "a"
        raise InvalidTypeError(
            f"{name} {type(values).__name__} cannot be taken as an array: {error}. Nothing was "
            "stored."
        ) from error


def is_further_float(dtype: np.dtype[Any]) -> bool:
    """Whether this is a real float that ml_dtypes brings to NumPy."""
    if dtype.isbuiltin != _REGISTERED or "int" in dtype.name:
        return False
    return np.can_cast(dtype, np.float32)


def as_ids(values: Any) -> Numbers:
    """Return ids as int64 [n]. Raises InvalidTypeError."""
    array = np.atleast_1d(to_host(values, "ids"))
    if array.ndim > 1:
        raise InvalidTypeError(f"ids have shape {array.shape}; give a list of them")
    if array.size and array.dtype.kind not in "iu":
        raise InvalidTypeError(f"ids have dtype {array.dtype}; they are integers")
    return array.astype(np.int64)


def _known_to_numpy(array: Any) -> Any:
    """Return an array of ml_dtypes as the nearest type of NumPy's own that holds all its values."""
    if is_further_float(array.dtype):
        return array.astype(np.float32)
    if array.dtype.type.__module__ != "ml_dtypes":
        return array
    return array.astype(np.complex64 if "complex" in array.dtype.name else np.int16)
