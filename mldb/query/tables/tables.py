"""All tables by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mldb.query.tables.checkpoints import CHECKPOINTS_TABLE
from mldb.query.tables.events import EVENTS_TABLE
from mldb.query.tables.metrics import METRICS_TABLE
from mldb.query.tables.relationships import RELATIONSHIPS_TABLE
from mldb.query.tables.segments import SEGMENTS_TABLE
from mldb.query.tables.splats import SPLATS_TABLE
from mldb.query.tables.table import TableKind
from mldb.query.tables.tensors import TENSORS_TABLE
from mldb.query.tables.versions import VERSIONS_TABLE

TABLES: Final[Mapping[str, TableKind]] = {
    "tensors": TENSORS_TABLE,
    "versions": VERSIONS_TABLE,
    "relationships": RELATIONSHIPS_TABLE,
    "checkpoints": CHECKPOINTS_TABLE,
    "metrics": METRICS_TABLE,
    "events": EVENTS_TABLE,
    "splats": SPLATS_TABLE,
    "segments": SEGMENTS_TABLE,
}
