"""Columns of a table of a query: NumPy arrays, or numbers into a list of distinct texts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Bools, Numbers
from mldb.deferred import dataclass

TEXT_TYPE: Final = "VARCHAR"
WHOLE_LIST: Final = "BIGINT[]"

_INT64_MAX: Final = 2**63 - 1
_START: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Coded:
    """A column as numbers into its distinct values, as text; -1 is NULL.

    A million strings cost DuckDB half a second, a million numbers next to nothing. ``kind`` is the
    SQL type that the text stands for.
    """

    codes: Numbers
    values: Sequence[str]
    kind: str = TEXT_TYPE

    def __len__(self) -> int:
        return len(self.codes)


ColumnData = npt.NDArray[Any] | Coded
"""As many values as the table has rows; masked arrays have NULLs."""


@dataclass(frozen=True, slots=True)
class TableColumns:
    """The rows of a table, column by column. Immutable.

    ``versions`` are the names and commits of the tensor versions that statistics are of, where a
    query names any.
    """

    columns: Mapping[str, ColumnData]
    rows: int
    versions: tuple[Coded, Numbers] | None = None


def moments(times: Numbers, is_unknown: Bools | None = None) -> npt.NDArray[Any]:
    """Return a TIMESTAMP column (UTC, microseconds) of times in nanoseconds."""
    values = (times // 1000).astype("M8[us]")
    if is_unknown is None or not is_unknown.any():
        return values
    return np.ma.MaskedArray(values, is_unknown)


def coded(values: Iterable[str | None], kind: str = TEXT_TYPE) -> Coded:
    """Return a column of texts; None is NULL."""
    known: dict[str, int] = {}
    codes = [-1 if value is None else known.setdefault(value, len(known)) for value in values]
    return Coded(np.array(codes, np.int64), list(known), kind)


def nulls(rows: int) -> Coded:
    """Return a column of NULLs."""
    return Coded(np.full(rows, -1, np.int64), ())


def numbers_or_null(values: Sequence[int | float | None], dtype: Any) -> npt.NDArray[Any]:
    """Return a column of numbers, bools or times; None is NULL."""
    mask = [value is None for value in values]
    plain = np.array([0 if value is None else value for value in values], dtype)
    return np.ma.MaskedArray(plain, mask) if any(mask) else plain


def typed(values: Sequence[Any]) -> ColumnData:
    """Return a column of plain values of any kind; None is NULL.

    Whole numbers make a BIGINT, other numbers a DOUBLE, bools a BOOLEAN, datetimes a TIMESTAMP
    (UTC); everything else, and values of several kinds, a VARCHAR: texts as they are, the rest as
    JSON.
    """
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return numbers_or_null(values, np.bool_)
    if kinds == {int} and all(
        value is None or -_INT64_MAX <= value <= _INT64_MAX for value in values
    ):
        return numbers_or_null(values, np.int64)
    if kinds and kinds <= {int, float}:
        return numbers_or_null(values, np.float64)
    if kinds == {datetime}:
        return numbers_or_null([_microseconds(value) for value in values], "M8[us]")
    return coded(None if value is None else plain_text(value) for value in values)


def _microseconds(value: datetime | None) -> int | None:
    if value is None:
        return None
    span = value - _START
    return (span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds


def plain_text(value: Any) -> str:
    """Return a text as it is, and anything else as JSON; NUL, which DuckDB refuses, as U+2400."""
    text = value if isinstance(value, str) else json_text(value)
    return text.replace("\0", "\u2400")


def json_text(value: Any) -> str:
    """Return a plain value as JSON: bytes as hexadecimal digits, datetimes in ISO 8601."""
    return json.dumps(_jsonable(value), ensure_ascii=False, separators=(", ", ": "))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
