"""What a caller gives to ``add_splats``, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.errors import InvalidTypeError, InvalidValueError, LimitError
from mldb.history.splats import (
    ID_MAX,
    PROVENANCE,
    ROWS_MAX,
    USER_COLUMNS_MAX,
    Geometry,
    check_column_name,
)
from mldb.sphere import vmf

DEFAULT_MEAN_COS: Final = 0.9
DEFAULT_KAPPA_EUCLID: Final = 1.0
_NOTHING: Final = "Nothing was stored."
_NUMPY_FLOATS: Final = ("torch.float16", "torch.float32", "torch.float64")


@dataclass(frozen=True, slots=True, eq=False)
class GivenRows:
    """Rows on their way into a lake. ``mu`` is an array or a tensor of any device, [N, d].

    The other columns are small and on the host already: kappa and alpha [N] or one value for all,
    ids sorted or not (None: assigned), labels or None, user columns by name.
    """

    mu: Any
    kappa: npt.NDArray[np.float32]
    alpha: npt.NDArray[np.float64]
    ids: npt.NDArray[np.uint64] | None
    labels: npt.NDArray[np.int64] | None
    user: dict[str, npt.NDArray[Any]]

    @property
    def rows(self) -> int:
        """How many rows."""
        return int(self.mu.shape[0])


def check_rows(
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
        kappa = DEFAULT_KAPPA_EUCLID
        if geometry == "sphere":
            kappa = vmf.concentration(DEFAULT_MEAN_COS, dim)
    user = _named(columns)
    if len(user) > USER_COLUMNS_MAX:
        raise LimitError(f"{len(user)} columns exceed the limit of {USER_COLUMNS_MAX}. {_NOTHING}")
    return GivenRows(
        mu,
        _positive("kappa", kappa, rows).astype(np.float32),
        _positive("alpha", 1.0 if alpha is None else alpha, rows),
        None if ids is None else _ids(ids, rows),
        None if labels is None else _integers("labels", labels, rows).astype(np.int64),
        {check_column_name(name): _user(name, values, rows) for name, values in user.items()},
    )


def _named(columns: Mapping[str, Any] | None) -> dict[str, Any]:
    """The user's columns. Raises InvalidTypeError, InvalidValueError for names that are taken."""
    if not isinstance(columns, Mapping | None):
        raise InvalidTypeError(
            f"columns is a {type(columns).__name__}; give a dict of arrays. {_NOTHING}"
        )
    taken = [name for name in PROVENANCE if name in (columns or ())]
    if taken:
        raise InvalidValueError(
            f"a stream has fields of its own called {', '.join(map(repr, taken))}; choose other "
            f"names for these columns. {_NOTHING}"
        )
    return dict(columns or {})


def to_host(values: Any) -> Any:
    """Return a NumPy array of *values*, which may be a tensor on any device.

    Floats that NumPy lacks (bfloat16, fp8) come as float32. Raises InvalidTypeError.
    """
    try:
        if not hasattr(values, "detach"):
            return np.asarray(values)
        tensor = values.detach().cpu()
        known = str(tensor.dtype) in _NUMPY_FLOATS or not tensor.is_floating_point()
        return (tensor if known else tensor.float()).numpy()
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise InvalidTypeError(
            f"a {type(values).__name__} cannot be taken as an array: {error}. {_NOTHING}"
        ) from error


def _matrix(mu: Any, dim: int) -> Any:
    if not hasattr(mu, "detach"):
        mu = to_host(mu)
        if mu.dtype.kind not in "fiu":
            raise InvalidTypeError(
                f"mu has dtype {mu.dtype}; rows are real numbers, as a NumPy array or torch "
                f"tensor [N, {dim}]. {_NOTHING}"
            )
    elif mu.is_complex() or str(mu.dtype) == "torch.bool" or str(mu.layout) != "torch.strided":
        raise InvalidTypeError(
            f"mu is a tensor of {mu.dtype}, {mu.layout}; rows are dense real numbers. {_NOTHING}"
        )
    if len(mu.shape) != 2 or mu.shape[1] != dim:
        raise InvalidValueError(
            f"mu has shape {tuple(mu.shape)}; this lake takes [N, {dim}]. {_NOTHING}"
        )
    if mu.shape[0] > ROWS_MAX:
        raise LimitError(f"{mu.shape[0]} rows exceed the limit of {ROWS_MAX}. {_NOTHING}")
    return mu


def _length(name: str, have: tuple[int, ...], rows: int) -> InvalidValueError:
    return InvalidValueError(f"{name} has shape {have} for {rows} rows. {_NOTHING}")


def _positive(name: str, values: Any, rows: int) -> npt.NDArray[np.float64]:
    try:
        array = np.asarray(to_host(values), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(f"{name} is not numeric: {error}. {_NOTHING}") from None
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
    array: npt.NDArray[Any] = to_host(values)
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


def _user(name: str, values: Any, rows: int) -> npt.NDArray[Any]:
    array = np.ascontiguousarray(to_host(values))
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise InvalidTypeError(
            f"column {name!r} has dtype {array.dtype}; columns are bool, integer or float. "
            f"{_NOTHING}"
        )
    if not array.ndim or array.shape[0] != rows:
        raise _length(f"column {name!r}", array.shape, rows)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
