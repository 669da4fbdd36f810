"""Table ``metrics``: every point of every curve along the lineage, by name and commit."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mldb.history.metrics import MetricColumns, metric_columns, metric_names
from mldb.query.catalogue import StoreMoment
from mldb.query.columns import Coded, ColumnData, TableColumns
from mldb.query.tables.table import Asked, TableKind

_NO_STEP: Final = -1


def _read(moment: StoreMoment, asked: Asked) -> TableColumns:
    names = metric_names(moment.scope)
    curves: list[MetricColumns] = []
    for name in names:
        moment.check()
        curves.append(metric_columns(moment.scope, name))
    counts = [len(curve) for curve in curves]
    steps = _joined([curve.step for curve in curves], np.int64)
    values = _joined([curve.value for curve in curves], np.float64)
    own: dict[str, ColumnData] = {
        "name": Coded(np.repeat(np.arange(len(names)), counts), names),
        "value": values,
        "step": np.ma.MaskedArray(steps, steps == _NO_STEP),
        "epoch": _joined([curve.epoch for curve in curves], np.int64),
        "time": _joined([curve.time for curve in curves], "M8[us]"),
        "lsn": _joined([curve.lsn for curve in curves], np.int64),
    }
    return TableColumns(own, len(values))


def _joined(parts: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *(part.astype(dtype) for part in parts)])


METRICS_TABLE: Final = TableKind(("name", "value", "step", "epoch", "time", "lsn"), _read)
