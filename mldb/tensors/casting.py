"""Which values may be written as which dtype, by NumPy's five rules of casting.

``"no"``, ``"equiv"``, ``"safe"``, ``"same_kind"`` and ``"unsafe"`` allow what ``np.can_cast``
allows, with two differences. For the types of ml_dtypes NumPy knows only what the package tells it,
which calls int8 to float8_e4m3fn safe and complex64 to bfloat16 the same kind; here their ranges
decide. And but for ``"unsafe"`` no value may become another one: a number that becomes infinite or
NaN, an integer that wraps, a text that is cut, a time out of range are refused by their values.
What remains is rounding, under ``"same_kind"`` alone.

Python's numbers, and lists of them, have no dtype of their own, as in NumPy 2: an int may be
written as any number, a float as any float or complex, when the value fits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from mldb.errors import InvalidTypeError, InvalidValueError

Casting = Literal["no", "equiv", "safe", "same_kind", "unsafe"]

_RANKS: Final = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}
_PYTHON_NUMBERS: Final = (bool, int, float, complex)


def check_casting(casting: object) -> Casting:
    """Return *casting*. Raises InvalidTypeError, InvalidValueError."""
    if not isinstance(casting, str):
        raise InvalidTypeError(f"casting is a {type(casting).__name__}, not a str")
    for known in get_args(Casting):
        if casting == known:
            return known  # type: ignore[no-any-return]
    choices = ", ".join(map(repr, get_args(Casting)))
    raise InvalidValueError(f"casting={casting!r} is not one of {choices}")


def is_plain(values: object) -> bool:
    """Whether *values* are Python's own numbers, or a list of such: they have no dtype."""
    return isinstance(values, list | tuple) or type(values) in _PYTHON_NUMBERS


def cast(
    array: npt.NDArray[Any],
    dtype: np.dtype[Any],
    casting: Casting,
    *,
    plain: bool,
    what: str,
    outcome: str,
) -> npt.NDArray[Any]:
    """Return *array* as *dtype*: itself when it is so already, otherwise new.

    *plain*: it was made of Python's numbers. *what* and *outcome* are for messages. Raises
    InvalidTypeError for a dtype that *casting* does not allow, InvalidValueError for a value that
    would become another one.
    """
    if array.dtype == dtype:
        return array
    allowed = _fits_kind(array.dtype, dtype) if plain else may_cast(array.dtype, dtype, casting)
    if not allowed and casting != "unsafe":
        raise InvalidTypeError(
            f"{what}: values of dtype {array.dtype} are not written as {dtype} under "
            f"casting={casting!r}. {outcome} {_advice(array.dtype, dtype)}"
        )
    with np.errstate(all="ignore"):
        try:
            made = array.astype(dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidTypeError(
                f"{what}: values of dtype {array.dtype} cannot be written as {dtype}: {error}. "
                f"{outcome}"
            ) from None
        if casting != "unsafe" and not _is_lossless(array.dtype, dtype):
            _refuse_other_values(array, made, what, outcome)
    return made


def _advice(source: np.dtype[Any], target: np.dtype[Any]) -> str:
    convert = f"Convert them first, with astype({str(target)!r})"
    if may_cast(source, target, "same_kind"):
        return (
            f"{convert}, or pass casting='same_kind', which rounds and refuses what is too large."
        )
    if _kind(source) == "c":
        return "Take their .real, .imag or absolute value first."
    return f"{convert}, or pass casting='unsafe', which takes whatever comes of it."


def may_cast(source: np.dtype[Any], target: np.dtype[Any], casting: Casting) -> bool:
    """Tell whether *casting* allows to write *source* as *target*, by their dtypes."""
    extended = _is_extension(source) or _is_extension(target)
    if source == target or not extended or casting not in ("safe", "same_kind"):
        return np.can_cast(source, target, casting)
    if casting == "safe":
        return _holds_all(source, target)
    # As in NumPy: a signed integer is never of the kind of one without sign.
    signed = _kind(source) == "i" and _kind(target) == "u"
    return _fits_kind(source, target) and not signed


def _is_lossless(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Whether no value needs a look. Times have one dtype for every range, so they do."""
    return target.kind not in "mM" and may_cast(source, target, "safe")


def _is_extension(dtype: np.dtype[Any]) -> bool:
    return dtype.type.__module__ == "ml_dtypes"


def _kind(dtype: np.dtype[Any]) -> str:
    if not _is_extension(dtype):
        return dtype.kind
    name = dtype.name
    if name.startswith(("int", "uint")):
        return name[0]
    return "c" if "complex" in name else "f"


def _fits_kind(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Whether bool, integer, float, complex come in this order."""
    low, high = _RANKS.get(_kind(source)), _RANKS.get(_kind(target))
    if low is None or high is None:
        return np.can_cast(source, target, "same_kind")
    return low <= high


@lru_cache(maxsize=1024)
def _holds_all(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Whether every value of *source* is one of *target*; one of them is of ml_dtypes.

    Those have at most 16 bits, so all values are tried. Wider types fit into none of them.
    """
    if not _fits_kind(source, target):
        return False
    if _kind(source) == "c":
        return target.itemsize > source.itemsize
    if source.itemsize > 2:
        return False
    wide = np.complex128 if _kind(target) == "c" else np.float64
    values = _every_value(source)
    try:
        with np.errstate(all="ignore"):
            given, made = values.astype(wide), values.astype(target).astype(wide)
    except TypeError:  # ml_dtypes has no cast between these two
        return False
    return bool(((given == made) | (np.isnan(given) & np.isnan(made))).all())


def _every_value(dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if dtype.kind == "b":
        return np.array([False, True])
    limits = _limits(dtype)
    if _kind(dtype) in "ui":
        return np.arange(int(limits.min), int(limits.max) + 1).astype(dtype)
    return np.arange(1 << int(limits.bits), dtype=f"u{dtype.itemsize}").view(dtype)


def _limits(dtype: np.dtype[Any]) -> Any:
    """What NumPy or ml_dtypes tell of the range of *dtype*."""
    import ml_dtypes

    module: Any = ml_dtypes if _is_extension(dtype) else np
    return module.iinfo(dtype) if _kind(dtype) in "ui" else module.finfo(dtype)


def _refuse_other_values(
    array: npt.NDArray[Any], made: npt.NDArray[Any], what: str, outcome: str
) -> None:
    """Raise InvalidValueError when a value of *array* became another one in *made*."""
    changed = _changed(array, made)
    if not changed.any():
        return
    place = np.unravel_index(int(np.argmax(changed)), changed.shape)
    index = tuple(int(axis) for axis in place)
    where = f" at {list(index)}" if index else ""
    raise InvalidValueError(
        f"{what}: the value {array[index]!s:.80}{where} does not fit {made.dtype} and would become "
        f"{made[index]!s:.80}. {outcome}"
    )


def _changed(array: npt.NDArray[Any], made: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where *made* is no longer what *array* was, but for rounding."""
    kind = _kind(made.dtype)
    if kind in "fc":
        lost = _is_finite(array) & ~_is_finite(made)
        return lost | _is_other_infinity(array, made) | _is_clamped(array, made.dtype)
    if kind in "mM" and not np.can_cast(array.dtype, made.dtype, "safe"):
        return np.zeros(array.shape, np.bool_)  # a coarser unit loses the fraction, no more
    same = made.astype(array.dtype) == array
    if kind in "ui" and _kind(array.dtype) in "ui":
        same &= (array < 0) == (made < 0)  # what has wrapped wraps back
    if kind in "mM":
        same |= np.isnat(array) if array.dtype.kind in "mM" else False
    return np.asarray(~same)


def _is_finite(array: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if _kind(array.dtype) not in "fc":
        return np.ones(array.shape, np.bool_)
    return np.asarray(np.isfinite(array))


def _is_other_infinity(
    array: npt.NDArray[Any], made: npt.NDArray[Any]
) -> npt.NDArray[np.bool_] | np.bool_:
    """Where an infinity became something else: some types of 8 bits have none."""
    if _kind(array.dtype) not in "fc":
        return np.False_
    return np.asarray(np.isinf(array) & ~np.isinf(made))


def _is_clamped(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[np.bool_] | np.bool_:
    """Where a type that has neither infinity nor NaN takes its largest number instead."""
    if _has_nan(dtype):
        return np.False_
    limits = _limits(dtype)
    return np.asarray(~((array >= float(limits.min)) & (array <= float(limits.max))))


@lru_cache(maxsize=256)
def _has_nan(dtype: np.dtype[Any]) -> bool:
    with np.errstate(all="ignore"):
        return not _is_extension(dtype) or bool(np.isnan(np.array(np.nan).astype(dtype)))
