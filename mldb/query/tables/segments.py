"""TableKind ``segments``: the files of the log as they are now; files have no past."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mldb.log import format as fmt
from mldb.log.sealed import SealedPart
from mldb.query.catalogue import StoreMoment
from mldb.query.columns import TableColumns, coded
from mldb.query.tables.table import TableAsk, TableKind


def _read(moment: StoreMoment, asked: TableAsk) -> TableColumns:
    view = moment.scope.view
    counted = bool(asked.columns & {"commits", "entries"})
    rows = []
    for number, part in enumerate(view.sealed):
        if number % 64 == 0:
            moment.check()
        kind = "compacted" if part.info.kind == fmt.FILE_COMPACTED else "sealed"
        counts = _counts(part) if counted else (0, 0)
        rows.append((number, part.info.id.hex(), kind, part.info.length, *_range(part), *counts))
    if view.active_id:
        rows.append((len(rows), view.active_id.hex(), "active", *_active(moment)))
    columns: list[Any] = [list(column) for column in zip(*rows, strict=True)] or [[]] * 8
    names = ("number", "id", "kind", "nbytes", "first_lsn", "last_lsn", "commits", "entries")
    return TableColumns(
        {
            name: coded(column) if name in ("id", "kind") else np.array(column, np.int64)
            for name, column in zip(names, columns, strict=True)
        },
        len(rows),
    )


def _range(part: SealedPart) -> tuple[int, int]:
    return part.first_lsn, part.last_lsn


def _counts(part: SealedPart) -> tuple[int, int]:
    index = part.own_index()
    return index.commit_count(), index.entry_count()


def _active(moment: StoreMoment) -> tuple[int, int, int, int, int]:
    """Bytes, first and last commit, commits and versions of the segment that is appended to."""
    stats, view = moment.scope.source.log.stats(), moment.scope.view
    parts = [part for part in view.active if part.commit_count()]
    low = min((part.first_lsn for part in parts), default=0)
    high = min(max((part.last_lsn for part in parts), default=0), view.commit.lsn)
    commits = sum(part.commit_count() for part in parts)
    return stats["active_bytes"], low, high, commits, sum(part.entry_count() for part in parts)


SEGMENTS_TABLE: Final = TableKind(
    ("number", "id", "kind", "nbytes", "first_lsn", "last_lsn", "commits", "entries"),
    _read,
    is_kept=False,
)
