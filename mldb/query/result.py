"""What a query answered: rows, and the same as NumPy, pandas, Arrow or polars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.errors import UsageError

_SHOWN_ROWS: Final = 20
_SHOWN_WIDTH: Final = 40

ResultRow = tuple[Any, ...]


class QueryResult:
    """The rows of a query, all of them in memory: it needs no open store.

    Iterating and ``len`` are over rows, which are tuples; NULL is None, times are aware datetimes
    in UTC. Any thread, but for :meth:`fetchone`, which goes on from the last call.
    """

    def __init__(self, columns: Sequence[str], arrays: Sequence[npt.NDArray[Any]]) -> None:
        """*arrays* has one array for each column, masked where there are NULLs."""
        self._columns = tuple(columns)
        self._arrays = tuple(arrays)
        self._rows: list[ResultRow] | None = None
        self._next = 0

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in order."""
        return list(self._columns)

    def fetchall(self) -> list[ResultRow]:
        """Return all rows."""
        return list(self._made_rows())

    def fetchone(self) -> ResultRow | None:
        """Return the next row, None behind the last."""
        rows = self._made_rows()
        if self._next >= len(rows):
            return None
        self._next += 1
        return rows[self._next - 1]

    def __iter__(self) -> Iterator[ResultRow]:
        return iter(self._made_rows())

    def __len__(self) -> int:
        return len(self._arrays[0]) if self._arrays else 0

    def _made_rows(self) -> list[ResultRow]:
        if self._rows is None:
            self._rows = list(zip(*map(_values, self._arrays), strict=True))
        return self._rows

    # --- as columns -------------------------------------------------------------------------------

    def to_numpy(self) -> dict[str, npt.NDArray[Any]]:
        """Return a dict of arrays, copies, by column: masked where there are NULLs.

        Texts are arrays of str with None for NULL, times datetime64[us] in UTC, lists arrays of
        lists. Of columns of one name the last one is there.
        """
        return {name: array.copy() for name, array in self._pairs()}

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame: numbers with NULLs are nullable columns (Int64, boolean).

        Raises UsageError without pandas.
        """
        pandas = _package("pandas", "pip install pandas")
        series = [_pandas_column(pandas, array) for array in self._arrays]
        frame = pandas.DataFrame(dict(enumerate(series)))
        frame.columns = list(self._columns)
        return frame

    def to_arrow(self) -> Any:
        """Return an Arrow table. Raises UsageError without pyarrow."""
        pyarrow = _package("pyarrow", "pip install pyarrow")
        columns = [_arrow_column(pyarrow, array) for array in self._arrays]
        return pyarrow.Table.from_arrays(columns, names=list(self._columns))

    def to_polars(self) -> Any:
        """Return a polars DataFrame. Raises UsageError without polars."""
        polars = _package("polars", "pip install polars")
        return polars.DataFrame(
            {name: _polars_column(polars, name, array) for name, array in self._pairs()}
        )

    def _pairs(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        return zip(self._columns, self._arrays, strict=True)

    # --- shown ------------------------------------------------------------------------------------

    def _shown(self) -> tuple[list[list[str]], int]:
        """The first rows as texts, and how many are left out."""
        first = [_values(array[:_SHOWN_ROWS]) for array in self._arrays]
        rows = [[_text(value) for value in row] for row in zip(*first, strict=True)]
        return rows, len(self) - len(rows)

    def __repr__(self) -> str:
        """A small table of the first rows; characters that steer a terminal are escaped."""
        rows, left = self._shown()
        lines = [[_text(name) for name in self._columns], *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        texts.insert(1, "  ".join("-" * width for width in widths))
        count = f"{len(self)} row" + ("" if len(self) == 1 else "s")
        return "\n".join([*texts, f"({count})" if not left else f"({count}, {left} not shown)"])

    def _repr_html_(self) -> str:
        """The same for notebooks; everything is escaped."""
        import html  # its tables take a while to load

        rows, left = self._shown()
        head = "".join(f"<th>{html.escape(_text(name))}</th>" for name in self._columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        more = f", {left} not shown" if left else ""
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<p>{len(self)} rows{more}</p>"
        )


def _values(array: npt.NDArray[Any]) -> list[Any]:
    """The values of a column as Python has them; None for NULL, datetimes in UTC."""
    if array.dtype.kind == "M":
        return [
            None if value is None else value.replace(tzinfo=UTC)
            for value in array.astype("M8[us]").tolist()
        ]
    return [_plain(value) for value in array.tolist()] if array.dtype == object else array.tolist()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value


def _text(value: Any) -> str:
    if value is None:
        return "NULL"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = "".join(
        one if one.isprintable() else ascii(one)[1:-1] for one in text[: _SHOWN_WIDTH + 1]
    )
    return text if len(text) <= _SHOWN_WIDTH else text[: _SHOWN_WIDTH - 1] + "…"


def _package(name: str, install: str) -> Any:
    import importlib

    try:
        module: ModuleType = importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{name} is not installed. Install it with: {install}. fetchall() and to_numpy() need "
            "nothing else."
        ) from error
    return module


def _pandas_column(pandas: Any, array: npt.NDArray[Any]) -> Any:
    if not isinstance(array, np.ma.MaskedArray):
        return pandas.Series(array)
    mask, data = np.ma.getmaskarray(array), np.ma.getdata(array)
    if data.dtype.kind in "iu":
        return pandas.Series(pandas.arrays.IntegerArray(data.copy(), mask))
    if data.dtype.kind == "b":
        return pandas.Series(pandas.arrays.BooleanArray(data.copy(), mask))
    if data.dtype.kind == "f":
        return pandas.Series(np.where(mask, np.nan, data))
    if data.dtype.kind == "M":
        return pandas.Series(np.where(mask, np.datetime64("NaT"), data))
    return pandas.Series(array.filled(None) if array.dtype == object else array.tolist())


def _arrow_column(pyarrow: Any, array: npt.NDArray[Any]) -> Any:
    if array.dtype == object:
        return pyarrow.array([_arrow_value(value) for value in array.tolist()])
    mask = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
    return pyarrow.array(np.ma.getdata(array), mask=mask)


def _arrow_value(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _polars_column(polars: Any, name: str, array: npt.NDArray[Any]) -> Any:
    if array.dtype == object or isinstance(array, np.ma.MaskedArray):
        return polars.Series(name, [_arrow_value(value) for value in array.tolist()])
    return polars.Series(name, array)
