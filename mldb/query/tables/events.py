"""TableKind ``events``: what happened up to a moment, on every lineage, in log order."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import numpy as np

from mldb.compaction.retention import Retention
from mldb.history.events import Event, events_of
from mldb.query.catalogue import StoreMoment
from mldb.query.columns import ColumnData, TableColumns, coded, json_text, moments
from mldb.query.tables.table import TableAsk, TableKind

_OF_EVERY: Final = frozenset({"lsn", "epoch", "time"})
_NAMES: Final = ("name", "lake", "source")
"""The field that says what an event is about; the first of these that it has."""
_CHECKED_EVERY: Final = 256


def _read(moment: StoreMoment, asked: TableAsk) -> TableColumns:
    log, high = moment.scope.source.log, moment.scope.commit.lsn
    hold, view = log.hold(1)  # what every commit has still to tell stays readable
    lsns, epochs, times = list[int](), list[int](), list[int]()
    kinds, names, details = list[str](), list[str | None](), list[str]()
    try:
        for place, (row, frames, file) in enumerate(log.batches(view, 1, high)):
            if place % _CHECKED_EVERY == 0:
                moment.check()
            for event in events_of(row, frames, file):
                lsns.append(row.lsn)
                epochs.append(row.epoch)
                times.append(row.time)
                name, detail = _told(event)
                kinds.append(type(event).__name__)
                names.append(name)
                details.append(json_text(detail) if "detail" in asked.columns else "")
    finally:
        hold.release()
    columns: dict[str, ColumnData] = {
        "lsn": np.array(lsns, np.int64),
        "epoch": np.array(epochs, np.int64),
        "time": moments(np.array(times, np.int64)),
        "event": coded(kinds),
        "name": coded(names),
        "detail": coded(details),
    }
    return TableColumns(columns, len(lsns))


def _told(event: Event) -> tuple[str | None, dict[str, Any]]:
    """What an event is about, and everything else that it says."""
    fields = {
        field.name: getattr(event, field.name)
        for field in dataclasses.fields(event)
        if field.name not in _OF_EVERY
    }
    about = next((name for name in _NAMES if name in fields), None)
    named = None if about is None else fields.pop(about)
    return named, {
        name: dataclasses.asdict(value) if isinstance(value, Retention) else value
        for name, value in fields.items()
    }


EVENTS_TABLE: Final = TableKind(("lsn", "epoch", "time", "event", "name", "detail"), _read)
