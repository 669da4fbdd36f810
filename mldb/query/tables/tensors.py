"""TableKind ``tensors``: what exists at a moment, and the layers that relationships speak of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from mldb import keys
from mldb.arrays import Numbers
from mldb.query.catalogue import NO_METADATA, StoreMoment
from mldb.query.columns import (
    Coded,
    ColumnData,
    TableColumns,
    coded,
    moments,
    plain_text,
    typed,
)
from mldb.query.fields import count_keys_in, field_columns
from mldb.query.rows import SpaceRows
from mldb.query.tables.descriptors import DESCRIBED, described, encodings
from mldb.query.tables.layers import layers_at
from mldb.query.tables.table import TableAsk, TableKind

LAYER_TYPE: Final = "layer"
_OF_METADATA: Final = ("type", "layer", "position")
_COMMITTED: Final = frozenset({"time", "epoch", "lsn"})


def _read(moment: StoreMoment, asked: TableAsk) -> TableColumns:
    rows, found = moment.newest(keys.TENSORS)
    names = [rows.keys[code].decode() for code in rows.key_codes(found).tolist()]
    layers = layers_at(moment)
    every = [*names, *layers]
    wanted = asked.columns
    own: dict[str, ColumnData] = {"name": Coded(np.arange(len(every)), every)}
    own |= _padded(_stored(moment, rows, found, wanted), len(layers))
    metadata = moment.metadata()
    codes = rows.key_codes(found).tolist()
    decoded = [metadata.get(rows.keys[code], NO_METADATA) for code in codes]
    fields = [one.fields for one in decoded]
    fields += [{"type": LAYER_TYPE, "position": place} for place in layers.values()]
    own |= _of_metadata(fields, wanted)
    if "metadata" in wanted:
        own["metadata"] = coded([*(one.text for one in decoded), *(None for _ in layers)])
    own |= field_columns(asked.fields, [*fields[: len(names)], *({} for _ in layers)])
    versions = None
    if asked.statistics:
        lsns = np.zeros(len(every), np.int64)
        lsns[: len(names)] = rows.take("commit", found)
        is_tensor = np.arange(len(every)) < len(names)
        versions = Coded(np.where(is_tensor, np.arange(len(every)), -1), every), lsns
    return TableColumns(own, len(every), versions)


def _stored(
    moment: StoreMoment, rows: SpaceRows, found: Numbers, wanted: frozenset[str]
) -> dict[str, ColumnData]:
    """The columns that the newest versions themselves have."""
    own: dict[str, ColumnData] = dict(described(rows, found, wanted))
    if wanted & _COMMITTED:
        own |= moment.commit_columns(rows.take("commit", found).astype(np.int64))
    if "stored_bytes" in wanted:
        own["stored_bytes"] = rows.take("length", found).astype(np.int64)
    if "encoding" in wanted:
        own["encoding"] = encodings(rows, found)
    if wanted & {"creation_time", "versions"}:
        lives = rows.lives(moment.scope.intervals)
        codes = rows.key_codes(found)
        own["versions"] = lives.counts[codes]
        _, times, is_unknown = moment.catalogue.commits(moment.scope).of(lives.first[codes])
        own["creation_time"] = moments(times, is_unknown)
    return own


def _padded(columns: dict[str, ColumnData], count: int) -> dict[str, ColumnData]:
    """Give columns *count* NULLs more, for what is no tensor."""
    return {name: _with_nulls(column, count) for name, column in columns.items()}


def _with_nulls(column: ColumnData, count: int) -> ColumnData:
    if not count:
        return column
    if isinstance(column, Coded):
        return replace(column, codes=np.append(column.codes, np.full(count, -1, np.int64)))
    zeros: Any = np.zeros(count, column.dtype)
    mask = np.append(np.ma.getmaskarray(column), np.ones(count, np.bool_))
    return np.ma.MaskedArray(np.append(np.ma.getdata(column), zeros), mask)


def _of_metadata(
    fields: Sequence[Mapping[str, Any]], wanted: frozenset[str]
) -> dict[str, ColumnData]:
    """Type, layer and position."""
    own: dict[str, ColumnData] = {}
    for name in ("type", "layer"):
        if name in wanted:
            values = [one.get(name) for one in fields]
            own[name] = coded(None if value is None else plain_text(value) for value in values)
    if "position" in wanted:
        values = [one.get("position") for one in fields]
        some = any(value is not None for value in values)
        own["position"] = (
            typed(values) if some else np.ma.MaskedArray(np.zeros(len(fields), np.int64), True)
        )
    return own


def _keys_at(moment: StoreMoment) -> Counter[str]:
    return moment.counted(keys.METADATA, lambda: _counted(moment))


def _counted(moment: StoreMoment) -> Counter[str]:
    counts = count_keys_in(one.fields for one in moment.metadata().values())
    for name in _OF_METADATA:
        counts.pop(name, None)
    return counts


TENSORS_TABLE: Final = TableKind(
    (
        *("name", "type", "layer", "position", "creation_time", "time", "epoch", "lsn"),
        *(*DESCRIBED[:5], "stored_bytes", "encoding", "layout", "versions", "metadata"),
    ),
    _read,
    _keys_at,
)
