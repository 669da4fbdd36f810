"""TableKind ``splats``: the live rows of every lake, without their vectors, with user columns."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.arrays import Numbers
from mldb.errors import InvalidTypeError
from mldb.lake.projection import names
from mldb.lake.rows.live import Rows, rows_in
from mldb.query.catalogue import StoreMoment
from mldb.query.columns import Coded, ColumnData, TableColumns, coded
from mldb.query.tables.table import TableAsk, TableKind

_FLOATS: Final = ("kappa", "alpha", "norm", "min_cos")
_OWN: Final = frozenset({"mu", "id", "label", *_FLOATS})


def _lakes(moment: StoreMoment) -> dict[str, Rows]:
    """The live rows of each lake."""
    found: dict[str, Rows] | None = moment.memo.get("lakes")
    if found is None:
        known = moment.catalogue.lakes()
        found = moment.memo["lakes"] = {
            name: rows_in(moment.scope, name, known) for name in names(moment.scope)
        }
    return found


def _read(moment: StoreMoment, asked: TableAsk) -> TableColumns:
    lakes = _lakes(moment)
    counts = [len(rows) for rows in lakes.values()]
    own: dict[str, ColumnData] = {
        "lake": Coded(np.repeat(np.arange(len(counts)), counts), list(lakes)),
    }
    for name in ("id", "label", *_FLOATS):
        if name in asked.columns:
            own[name] = _joined([_gathered(rows, name) for rows in lakes.values()], counts)
    if asked.columns & {"lsn", "epoch"}:
        lsns = [_commits(rows) for rows in lakes.values()]
        own |= moment.commit_columns(np.concatenate([np.empty(0, np.int64), *lsns]))
    for column, name in asked.fields.items():
        moment.check()
        own[column] = _joined([_gathered(rows, name) for rows in lakes.values()], counts)
    return TableColumns(own, sum(counts))


def _gathered(rows: Rows, name: str) -> npt.NDArray[Any] | None:
    """A column of the live rows; None where the lake has no such column for all of them."""
    if name not in rows.columns or rows.columns[name][1]:
        return None
    try:
        found: npt.NDArray[Any] = rows.gather(name, slice(0, len(rows)))
    except InvalidTypeError:
        return None
    return found


def _joined(parts: list[npt.NDArray[Any] | None], counts: list[int]) -> ColumnData:
    """One column of those of several lakes; NULL where a lake has none."""
    kinds = {part.dtype.kind for part in parts if part is not None}
    if not kinds <= set("biuf"):
        return coded(
            None if value is None else str(value)
            for part, count in zip(parts, counts, strict=True)
            for value in ([None] * count if part is None else part.tolist())
        )
    dtype: Any = np.bool_ if kinds == {"b"} else np.float64 if "f" in kinds else np.int64
    if kinds == {"u"}:
        dtype = np.uint64
    values = [
        np.zeros(count, dtype) if part is None else part.astype(dtype)
        for part, count in zip(parts, counts, strict=True)
    ]
    joined: npt.NDArray[Any] = np.concatenate([np.zeros(0, dtype), *values])
    if all(part is not None for part in parts):
        return joined
    return np.ma.MaskedArray(joined, np.repeat([part is None for part in parts], counts))


def _commits(rows: Rows) -> Numbers:
    """The commit that stored each live row."""
    chain, size = rows.chain, rows.state.size
    stops = chain.stops.first(size.blocks)
    commits = np.repeat(chain.commits.first(size.blocks), np.diff(stops, prepend=0))
    live = chain.live(size)
    found: Numbers = commits if live is None else commits[live]
    return found


def _keys_at(moment: StoreMoment) -> Counter[str]:
    """User columns that hold one value for each row."""
    counts: Counter[str] = Counter()
    for rows in _lakes(moment).values():
        counts.update(
            name for name, (_, shape) in rows.columns.items() if name not in _OWN and not shape
        )
    return counts


SPLATS_TABLE: Final = TableKind(
    ("lake", "id", "label", *_FLOATS, "epoch", "lsn"), _read, _keys_at, "column"
)
