"""The kinds of events by number, and the records that carry them without a payload.

The numbers are part of the format (FORMAT.md section 5). A kind with the must-understand bit stops
a reader that does not know it; others are skipped and kept. What a record means as an event is
decoded in ``mldb.history.events``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgpack

from mldb.log import format as fmt
from mldb.log.frame import Draft, Record

_MUST = fmt.MUST_UNDERSTAND

TENSOR_STORED: Final = 16 | _MUST
TENSOR_PATCHED: Final = 17 | _MUST  # reserved
TENSOR_DELETED: Final = 18 | _MUST
METADATA_SET: Final = 19 | _MUST
RELATIONSHIP_CREATED: Final = 20 | _MUST
RELATIONSHIP_DELETED: Final = 21 | _MUST
CHECKPOINT_TAKEN: Final = 22 | _MUST
TAG_SET: Final = 23 | _MUST
TAG_DELETED: Final = 24 | _MUST
PIN_SET: Final = 25 | _MUST
PIN_CLEARED: Final = 26 | _MUST
RETENTION_SET: Final = 27 | _MUST  # reserved
REWOUND: Final = 28 | _MUST
LAKE_CREATED: Final = 29 | _MUST
SPLATS_ADDED: Final = 30 | _MUST
SPLATS_DELETED: Final = 31 | _MUST
SPLATS_CONSOLIDATED: Final = 32 | _MUST  # reserved
CONSOLIDATION_UNDONE: Final = 33 | _MUST  # reserved

_IMPLEMENTED = (
    *(TENSOR_STORED, TENSOR_DELETED, METADATA_SET, RELATIONSHIP_CREATED, RELATIONSHIP_DELETED),
    *(CHECKPOINT_TAKEN, TAG_SET, TAG_DELETED, PIN_SET, PIN_CLEARED, REWOUND),
    *(LAKE_CREATED, SPLATS_ADDED, SPLATS_DELETED),
)
KNOWN_KINDS: Final = frozenset(kind & ~_MUST for kind in _IMPLEMENTED)


def tombstones(kind: int, names: Iterable[bytes]) -> Record:
    """A record that ends these keys."""
    return Record(kind, [Draft(key, fmt.ENTRY_TOMBSTONE, 0, 0, 0, b"", 0, b"") for key in names])


def marks(kind: int, items: Iterable[tuple[bytes, bytes]], extra: object = None) -> Record:
    """A record that sets keys to attrs, without a payload."""
    return Record(kind, [Draft(key, 0, 0, 0, 0, b"", 0, attr) for key, attr in items], extra=extra)


def pack_plain(value: object) -> bytes:
    """msgpack of plain values."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed
