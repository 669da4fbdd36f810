"""The kinds of events: here their numbers; beside it, how each is written and how it is read.

The numbers are part of the format (FORMAT.md section 5). A kind with the must-understand bit stops
a reader that does not know it; others are skipped and kept.

The modules of this package have the kinds of one subject each. A *builder* has the name of its
event (:func:`~mldb.history.kinds.tensors.tensor_stored`). It makes a record, or a
:class:`~mldb.history.kinds.changes.KeyChange` where there is no payload. Beside it stands a
*reader*, ``read_`` and the same name; it yields the fields that the event has after ``lsn``,
``epoch`` and ``time``. ``mldb.history.events`` has the events and says which reader makes which.
"""

from __future__ import annotations

from typing import Final

from mldb.log import format as fmt

_MUST = fmt.MUST_UNDERSTAND

TENSOR_STORED: Final = 16 | _MUST
TENSOR_PATCHED: Final = 17 | _MUST
TENSOR_DELETED: Final = 18 | _MUST
METADATA_SET: Final = 19 | _MUST
RELATIONSHIP_CREATED: Final = 20 | _MUST
RELATIONSHIP_DELETED: Final = 21 | _MUST
CHECKPOINT_TAKEN: Final = 22 | _MUST
TAG_SET: Final = 23 | _MUST
TAG_DELETED: Final = 24 | _MUST
PIN_SET: Final = 25 | _MUST
PIN_CLEARED: Final = 26 | _MUST
RETENTION_SET: Final = 27 | _MUST
REWOUND: Final = 28 | _MUST
LAKE_CREATED: Final = 29 | _MUST
SPLATS_ADDED: Final = 30 | _MUST
SPLATS_DELETED: Final = 31 | _MUST
SPLATS_CONSOLIDATED: Final = 32 | _MUST
CONSOLIDATION_UNDONE: Final = 33 | _MUST
METRICS_LOGGED: Final = 34 | _MUST
BRANCH_SET: Final = 35 | _MUST  # reserved
BRANCH_DELETED: Final = 36 | _MUST  # reserved
LAKE_POLICY_SET: Final = 37 | _MUST

_IMPLEMENTED = (
    *(
        TENSOR_STORED,
        TENSOR_PATCHED,
        TENSOR_DELETED,
        METADATA_SET,
        RELATIONSHIP_CREATED,
        RELATIONSHIP_DELETED,
    ),
    *(CHECKPOINT_TAKEN, TAG_SET, TAG_DELETED, PIN_SET, PIN_CLEARED, REWOUND),
    *(LAKE_CREATED, SPLATS_ADDED, SPLATS_DELETED, RETENTION_SET),
    *(SPLATS_CONSOLIDATED, CONSOLIDATION_UNDONE, LAKE_POLICY_SET, METRICS_LOGGED),
)
KNOWN_KINDS: Final = frozenset(kind & ~_MUST for kind in _IMPLEMENTED)
"""Numbers, without the bit, of the kinds that this version writes and reads."""
