"""TableKind ``checkpoints``: those of the lineage, the newest of each name, with their metrics."""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np

from mldb import keys
from mldb.arrays import Numbers
from mldb.history.kinds.checkpoints import CheckpointInfo, unpack_checkpoint
from mldb.query.catalogue import StoreMoment
from mldb.query.columns import ColumnData, TableColumns, coded, json_text, typed
from mldb.query.fields import count_keys_in, field_columns
from mldb.query.tables.table import TableAsk, TableKind


def _found(moment: StoreMoment) -> tuple[Numbers, list[CheckpointInfo]]:
    """The commits of the checkpoints, oldest first, and what they say."""
    rows, found = moment.newest(keys.CHECKPOINTS)
    codes = rows.key_codes(found).tolist()
    found = found[
        np.array([bool(rows.keys[code]) for code in codes], np.bool_)
    ]  # the other is the newest of any name
    lsns = rows.take("commit", found).astype(np.int64)
    order = np.argsort(lsns, kind="stable")
    found, lsns = found[order], lsns[order]
    infos = [
        unpack_checkpoint(keys.CHECKPOINTS + rows.keys[code], rows.attrs[attr])
        for code, attr in zip(
            rows.key_codes(found).tolist(), rows.take("attr", found).tolist(), strict=True
        )
    ]
    return lsns, infos


def _read(moment: StoreMoment, asked: TableAsk) -> TableColumns:
    lsns, infos = _found(moment)
    metrics = [info.metrics for info in infos]
    steps = [info.step for info in infos]
    own: dict[str, ColumnData] = {
        "name": coded(info.name for info in infos),
        "step": typed(steps) if any(step is not None for step in steps) else _no_steps(len(infos)),
        **moment.commit_columns(lsns),
        "tensors": np.array([info.tensors for info in infos], np.int64),
        "nbytes": np.array([info.nbytes for info in infos], np.int64),
        "interrupted": np.array([info.interrupted for info in infos], np.bool_),
        "metrics": coded(json_text(one) if one else None for one in metrics),
        **field_columns(asked.fields, metrics),
    }
    return TableColumns(own, len(infos))


def _no_steps(rows: int) -> ColumnData:
    return np.ma.MaskedArray(np.zeros(rows, np.int64), True)


def _keys_at(moment: StoreMoment) -> Counter[str]:
    return moment.counted(
        keys.CHECKPOINTS, lambda: count_keys_in(info.metrics for info in _found(moment)[1])
    )


CHECKPOINTS_TABLE: Final = TableKind(
    (
        *("name", "epoch", "step", "lsn", "time", "tensors", "nbytes", "interrupted"),
        "metrics",
    ),
    _read,
    _keys_at,
    "metric",
)
