"""TableKind ``versions``: every version of every tensor along the lineage, deletions among them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from mldb import keys
from mldb.log import format as fmt
from mldb.query.catalogue import StoreMoment
from mldb.query.columns import Coded, ColumnData, TableColumns
from mldb.query.tables.descriptors import DESCRIBED, described, encodings
from mldb.query.tables.table import TableAsk, TableKind


def _read(moment: StoreMoment, asked: TableAsk) -> TableColumns:
    rows = moment.rows(keys.TENSORS)
    found = rows.visible(moment.scope.intervals)
    wanted = asked.columns
    lsns = rows.take("commit", found).astype(np.int64)
    gone = rows.take("flags", found) & fmt.ENTRY_TOMBSTONE != 0
    names = Coded(rows.key_codes(found), [key.decode() for key in rows.keys])
    own: dict[str, ColumnData] = {"name": names, **described(rows, found, wanted)}
    if wanted & {"epoch", "time"}:
        own |= moment.commit_columns(lsns)
    own["lsn"] = lsns
    if "stored_bytes" in wanted:
        own["stored_bytes"] = np.ma.MaskedArray(rows.take("length", found).astype(np.int64), gone)
    if "encoding" in wanted:
        own["encoding"] = encodings(rows, found)
    own["is_deleted"] = gone
    versions = None
    if asked.statistics:
        versions = replace(names, codes=np.where(gone, -1, names.codes)), lsns
    return TableColumns(own, len(found), versions)


VERSIONS_TABLE: Final = TableKind(
    (
        *("name", "lsn", "epoch", "time", *DESCRIBED[:5], "stored_bytes", "encoding"),
        "is_deleted",
    ),
    _read,
)
