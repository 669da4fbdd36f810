"""All tables by name. Each is loaded when a query first asks for it: a query starts sooner so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Final

from mldb.query.tables.table import TableKind


def _tensors() -> TableKind:
    from mldb.query.tables.tensors import TENSORS_TABLE

    return TENSORS_TABLE


def _versions() -> TableKind:
    from mldb.query.tables.versions import VERSIONS_TABLE

    return VERSIONS_TABLE


def _relationships() -> TableKind:
    from mldb.query.tables.relationships import RELATIONSHIPS_TABLE

    return RELATIONSHIPS_TABLE


def _checkpoints() -> TableKind:
    from mldb.query.tables.checkpoints import CHECKPOINTS_TABLE

    return CHECKPOINTS_TABLE


def _metrics() -> TableKind:
    from mldb.query.tables.metrics import METRICS_TABLE

    return METRICS_TABLE


def _events() -> TableKind:
    from mldb.query.tables.events import EVENTS_TABLE

    return EVENTS_TABLE


def _splats() -> TableKind:
    from mldb.query.tables.splats import SPLATS_TABLE

    return SPLATS_TABLE


def _segments() -> TableKind:
    from mldb.query.tables.segments import SEGMENTS_TABLE

    return SEGMENTS_TABLE


_TABLES: Final[Mapping[str, Callable[[], TableKind]]] = {
    "tensors": _tensors,
    "versions": _versions,
    "relationships": _relationships,
    "checkpoints": _checkpoints,
    "metrics": _metrics,
    "events": _events,
    "splats": _splats,
    "segments": _segments,
}


@cache
def table_called(name: str) -> TableKind:
    """Return the table of this name, one of QUERY_TABLES."""
    return _TABLES[name]()
