"""TableKind ``metrics``: the curves of a run along the lineage."""

from __future__ import annotations

from typing import Final

import numpy as np

from mldb.query.catalogue import StoreMoment
from mldb.query.columns import ColumnData, TableColumns, coded
from mldb.query.tables.table import Asked, TableKind


def _read(moment: StoreMoment, asked: Asked) -> TableColumns:
    none = np.zeros(0, np.int64)
    columns: dict[str, ColumnData] = {
        "name": coded([]),
        "value": np.zeros(0),
        "step": none,
        **moment.commit_columns(none),
    }
    return TableColumns(columns, 0)


METRICS_TABLE: Final = TableKind(("name", "value", "step", "epoch", "time", "lsn"), _read)
