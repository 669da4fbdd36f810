"""The kinds of events: of each its number, how it is written and how it is read, side by side.

The numbers are part of the format (FORMAT.md section 5). A kind with the must-understand bit stops
a reader that does not know it; others are skipped and kept.

A *builder* has the name of its event (:func:`~mldb.history.kinds.tensors.tensor_stored`). It makes
a record, or a :class:`~mldb.history.kinds.changes.KeyChange` where there is no payload. A *reader*
is called ``read_`` and that name; it yields the fields that the event has after ``lsn``, ``epoch``
and ``time``. ``mldb.history.events`` has the events themselves and says which reader makes which.
"""

from __future__ import annotations

from typing import Final

from mldb.history.kinds.checkpoints import CHECKPOINT_TAKEN
from mldb.history.kinds.lakes import LAKE_CREATED, SPLATS_ADDED, SPLATS_DELETED
from mldb.history.kinds.relationships import RELATIONSHIP_CREATED, RELATIONSHIP_DELETED
from mldb.history.kinds.tensors import METADATA_SET, TENSOR_DELETED, TENSOR_STORED
from mldb.history.kinds.timeline import PIN_CLEARED, PIN_SET, REWOUND, TAG_DELETED, TAG_SET
from mldb.log import format as fmt

__all__ = [
    "BRANCH_DELETED",
    "BRANCH_SET",
    "CHECKPOINT_TAKEN",
    "CONSOLIDATION_UNDONE",
    "KNOWN_KINDS",
    "LAKE_CREATED",
    "METADATA_SET",
    "METRICS_LOGGED",
    "PIN_CLEARED",
    "PIN_SET",
    "RELATIONSHIP_CREATED",
    "RELATIONSHIP_DELETED",
    "RETENTION_SET",
    "REWOUND",
    "SPLATS_ADDED",
    "SPLATS_CONSOLIDATED",
    "SPLATS_DELETED",
    "TAG_DELETED",
    "TAG_SET",
    "TENSOR_DELETED",
    "TENSOR_PATCHED",
    "TENSOR_STORED",
]

# Reserved: a store that has one was written by a later version.
TENSOR_PATCHED: Final = 17 | fmt.MUST_UNDERSTAND
RETENTION_SET: Final = 27 | fmt.MUST_UNDERSTAND
SPLATS_CONSOLIDATED: Final = 32 | fmt.MUST_UNDERSTAND
CONSOLIDATION_UNDONE: Final = 33 | fmt.MUST_UNDERSTAND
METRICS_LOGGED: Final = 34 | fmt.MUST_UNDERSTAND
BRANCH_SET: Final = 35 | fmt.MUST_UNDERSTAND
BRANCH_DELETED: Final = 36 | fmt.MUST_UNDERSTAND

_READ = (
    *(TENSOR_STORED, TENSOR_DELETED, METADATA_SET, RELATIONSHIP_CREATED, RELATIONSHIP_DELETED),
    *(CHECKPOINT_TAKEN, TAG_SET, TAG_DELETED, PIN_SET, PIN_CLEARED, REWOUND),
    *(LAKE_CREATED, SPLATS_ADDED, SPLATS_DELETED),
)
KNOWN_KINDS: Final = frozenset(kind & ~fmt.MUST_UNDERSTAND for kind in _READ)
"""Numbers, without the bit, of the kinds that this version writes and reads."""
