"""What DuckDB answered, taken over as NumPy columns: nothing of it stays with the engine."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.deferred import dataclass

_PLAIN: Final = frozenset(
    {
        *("BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT"),
        *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "FLOAT", "DOUBLE", "VARCHAR"),
        "TIMESTAMP",
        *("INTEGER[]", "BIGINT[]", "DOUBLE[]", "VARCHAR[]"),
    }
)
_INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Answer:
    """Names of columns, and an array for each, masked where there are NULLs. Immutable."""

    columns: tuple[str, ...]
    arrays: tuple[npt.NDArray[Any], ...]


def fetched(done: Any) -> Answer:
    """Take over what a connection has to give.

    Sums of whole numbers are HUGEINT, which NumPy would round: those, and lists, go by Python.
    """
    names = tuple(item[0] for item in done.description or ())
    kinds = [str(item[1]) for item in done.description or ()]
    if _PLAIN.issuperset(kinds) and len(set(names)) == len(names):
        found = done.fetchnumpy()
        return Answer(names, tuple(found[name] for name in names))
    rows = done.fetchall()
    columns = zip(*rows, strict=True) if rows else iter([()] * len(names))
    return Answer(
        names,
        tuple(_array(list(values), kind) for values, kind in zip(columns, kinds, strict=True)),
    )


def _array(values: list[Any], kind: str) -> npt.NDArray[Any]:
    mask = [value is None for value in values]
    if kind == "VARCHAR" or not _is_number(kind):
        array = np.empty(len(values), object)
        array[:] = values
        if kind.startswith("TIMESTAMP") and "TIME ZONE" not in kind:
            return _masked(np.array([v or 0 for v in values], "M8[us]"), mask)
        return _masked(array, mask) if kind != "VARCHAR" else array
    filled = [0 if value is None else value for value in values]
    if kind.endswith("HUGEINT") and any(abs(value) > _INT64_MAX for value in filled):
        array = np.empty(len(values), object)
        array[:] = filled
        return _masked(array, mask)
    return _masked(np.array(filled, _dtype(kind)), mask)


def _is_number(kind: str) -> bool:
    return (
        (kind in _PLAIN - {"TIMESTAMP", "VARCHAR"} and not kind.endswith("]"))
        or "HUGEINT" in kind
        or kind.startswith("DECIMAL")
    )


def _dtype(kind: str) -> Any:
    if kind.startswith("DECIMAL"):
        return np.float64
    return {
        "BOOLEAN": np.bool_,
        "FLOAT": np.float32,
        "DOUBLE": np.float64,
        "UBIGINT": np.uint64,
    }.get(kind, np.int64)


def _masked(array: npt.NDArray[Any], mask: list[bool]) -> npt.NDArray[Any]:
    return np.ma.MaskedArray(array, mask) if any(mask) else array
