"""TableKind ``relationships``: the graph at a moment, with the keys of its metadata."""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np

from mldb import keys
from mldb.query.catalogue import DecodedMetadata, StoreMoment
from mldb.query.columns import ColumnData, TableColumns, coded
from mldb.query.fields import count_keys_in, field_columns
from mldb.query.tables.table import TableAsk, TableKind


def _metadata(moment: StoreMoment) -> list[DecodedMetadata]:
    rows, found = moment.newest(keys.RELATIONS)
    attrs = rows.take("attr", found).tolist()
    return [moment.catalogue.decoded(rows.attrs[attr]) for attr in attrs]


def _read(moment: StoreMoment, asked: TableAsk) -> TableColumns:
    rows, found = moment.newest(keys.RELATIONS)
    ends = [
        keys.split_relation(keys.RELATIONS + rows.keys[code])
        for code in rows.key_codes(found).tolist()
    ]
    metadata = _metadata(moment)
    own: dict[str, ColumnData] = {
        "source": coded(source for source, _, _ in ends),
        "target": coded(target for _, _, target in ends),
        "kind": coded(kind for _, kind, _ in ends),
        **moment.commit_columns(rows.take("commit", found).astype(np.int64)),
    }
    if "metadata" in asked.columns:
        own["metadata"] = coded(one.text for one in metadata)
    own |= field_columns(asked.fields, [one.fields for one in metadata])
    return TableColumns(own, len(found))


def _keys_at(moment: StoreMoment) -> Counter[str]:
    return moment.counted(
        keys.RELATIONS, lambda: count_keys_in(one.fields for one in _metadata(moment))
    )


RELATIONSHIPS_TABLE: Final = TableKind(
    ("source", "target", "kind", "lsn", "epoch", "time", "metadata"), _read, _keys_at
)
