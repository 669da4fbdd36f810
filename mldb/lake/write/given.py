"""What a caller gives to ``add_splats``, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Float32s, Float64s, Numbers
from mldb.deferred import dataclass
from mldb.errors import InvalidTypeError, InvalidValueError, LimitError
from mldb.history.splats import (
    BLOCK_ROWS_MAX,
    ID_MAX,
    PROVENANCE,
    USER_COLUMNS_MAX,
    check_column_name,
)
from mldb.lake.on_host import is_further_float, to_host
from mldb.sphere import vmf
from mldb.sphere.geometry import Geometry

DEFAULT_MEAN_COS: Final = 0.9
DEFAULT_KAPPA_EUCLID: Final = np.float32(1)
_DEFAULT_ALPHA: Final = np.ones(())
_NOTHING: Final = "Nothing was stored."


@dataclass(frozen=True, slots=True, eq=False)
class GivenRows:
    """Rows on their way into a lake, ``count`` of them. ``mu`` is an array or a tensor [N, d].

    The other columns are small and on the host already: kappa and alpha [N] or one value for all,
    ids sorted or not (None: assigned), labels or None, user columns by name.
    """

    count: int
    mu: Any
    kappa: Float32s
    alpha: Float64s
    ids: npt.NDArray[np.uint64] | None
    labels: Numbers | None
    user: dict[str, npt.NDArray[Any]]


def check_given(
    mu: Any,
    dim: int,
    geometry: Geometry,
    *,
    kappa: Any,
    alpha: Any,
    ids: Any,
    labels: Any,
    columns: Mapping[str, Any] | None,
) -> GivenRows:
    """Check everything but the values of *mu*. Raises InvalidTypeError, InvalidValueError."""
    mu = _matrix(mu, dim)
    rows = int(mu.shape[0])
    if kappa is None:
        kappa32 = default_kappa(dim) if geometry == "sphere" else np.asarray(DEFAULT_KAPPA_EUCLID)
    else:
        kappa32 = _positive("kappa", kappa, rows).astype(np.float32)
    return GivenRows(
        rows,
        mu,
        kappa32,
        _DEFAULT_ALPHA if alpha is None else _positive("alpha", alpha, rows),
        None if ids is None else _ids(ids, rows),
        None if labels is None else _integers("labels", labels, rows).astype(np.int64),
        {} if columns is None else _columns(columns, rows),
    )


@cache
def default_kappa(dim: int) -> Float32s:
    """The kappa, float32 [], of rows of a sphere that were given none."""
    return vmf.concentration(DEFAULT_MEAN_COS, dim).astype(np.float32)


def _matrix(mu: Any, dim: int) -> Any:
    if not hasattr(mu, "detach"):
        # Floats that NumPy lacks become float32 piece by piece, when they are stored.
        mu = mu if type(mu) is np.ndarray else to_host(mu, "mu")
        if mu.dtype.kind not in "fiu" and not is_further_float(mu.dtype):
            raise InvalidTypeError(
                f"mu has dtype {mu.dtype}; rows are real numbers, as a NumPy array or torch "
                f"tensor [N, {dim}]. {_NOTHING}"
            )
    elif _is_no_matrix(mu):
        raise InvalidTypeError(
            f"mu is a {type(mu).__name__} of {mu.dtype}, {mu.layout}; rows are dense real numbers "
            f"[N, {dim}], without a mask and none of them nested or quantised. {_NOTHING}"
        )
    if len(mu.shape) != 2 or mu.shape[1] != dim:
        raise InvalidValueError(
            f"mu has shape {tuple(mu.shape)}; this lake takes [N, {dim}]. {_NOTHING}"
        )
    if mu.shape[0] > BLOCK_ROWS_MAX:
        raise LimitError(f"{mu.shape[0]} rows exceed the limit of {BLOCK_ROWS_MAX}. {_NOTHING}")
    return mu


def _is_no_matrix(mu: Any) -> bool:
    """Whether a torch tensor is none of real numbers, or none whose memory is its values."""
    if mu.is_complex() or mu.is_quantized or str(mu.dtype) == "torch.bool":
        return True
    # Masked tensors say strided, and so do nested ones, which even have no shape.
    return str(mu.layout) != "torch.strided" or mu.is_nested or hasattr(mu, "get_mask")


def _length(name: str, have: tuple[int, ...], rows: int) -> InvalidValueError:
    return InvalidValueError(f"{name} has shape {have} for {rows} rows. {_NOTHING}")


def _positive(name: str, values: Any, rows: int) -> Float64s:
    found = to_host(values, name)
    # NumPy would read numbers out of texts, and take the real part of complex ones.
    if found.dtype.kind not in "fiu" and found.size:
        raise InvalidTypeError(
            f"{name} has dtype {found.dtype}; it is real numbers, one or [{rows}]. {_NOTHING}"
        )
    array = np.asarray(found, dtype=np.float64)
    if array.shape not in ((), (rows,)):
        raise _length(name, array.shape, rows)
    good = np.isfinite(array) & (array > 0)
    if name == "kappa":
        good &= (array >= np.finfo(np.float32).tiny) & (array <= np.finfo(np.float32).max)
    if not good.all():
        row = int(np.argmin(good)) if array.ndim else 0
        raise InvalidValueError(
            f"{name} is {array.reshape(-1)[row]} at row {row}; it must be finite and above 0"
            f"{' (float32)' if name == 'kappa' else ''}. {_NOTHING}"
        )
    return array


def _integers(name: str, values: Any, rows: int) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = to_host(values, name)
    if array.dtype.kind not in "iu" and array.size:
        raise InvalidTypeError(f"{name} have dtype {array.dtype}; they are integers. {_NOTHING}")
    if array.shape != (rows,):
        raise _length(name, array.shape, rows)
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise InvalidValueError(f"{name} exceed 2**63 - 1. {_NOTHING}")
    return array


def _ids(values: Any, rows: int) -> npt.NDArray[np.uint64]:
    array = _integers("ids", values, rows)
    if array.size and (int(array.min()) < 0 or int(array.max()) > ID_MAX):
        row = int(np.argmax((array < 0) | (array > ID_MAX)))
        raise InvalidValueError(
            f"id {int(array[row])} at row {row} is outside 0 .. 2**48 - 1. {_NOTHING}"
        )
    ids: npt.NDArray[np.uint64] = array.astype(np.uint64)
    ascending = np.sort(ids)
    twice = ascending[1:][ascending[1:] == ascending[:-1]]
    if twice.size:
        at = np.flatnonzero(ids == twice[0])[:2]
        raise InvalidValueError(
            f"id {int(twice[0])} is given twice, at rows {int(at[0])} and {int(at[1])}. {_NOTHING}"
        )
    return ids


def _columns(columns: Mapping[str, Any], rows: int) -> dict[str, npt.NDArray[Any]]:
    """The user's columns, as they are stored."""
    if not isinstance(columns, Mapping):
        raise InvalidTypeError(
            f"columns is a {type(columns).__name__}; give a dict of arrays. {_NOTHING}"
        )
    taken = [name for name in PROVENANCE if name in columns]
    if taken:
        raise InvalidValueError(
            f"a stream has fields of its own called {', '.join(map(repr, taken))}; choose other "
            f"names for these columns. {_NOTHING}"
        )
    if len(columns) > USER_COLUMNS_MAX:
        raise LimitError(
            f"{len(columns)} columns exceed the limit of {USER_COLUMNS_MAX}. {_NOTHING}"
        )
    return {
        check_column_name(name): _column(name, values, rows) for name, values in columns.items()
    }


def _column(name: str, values: Any, rows: int) -> npt.NDArray[Any]:
    array = np.ascontiguousarray(to_host(values, f"column {name!r}"))
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise InvalidTypeError(
            f"column {name!r} has dtype {array.dtype}; columns are bool, integer or float. "
            f"{_NOTHING}"
        )
    if not array.ndim or array.shape[0] != rows:
        raise _length(f"column {name!r}", array.shape, rows)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
