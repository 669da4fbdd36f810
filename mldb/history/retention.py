"""The retention of a store as a view has it, and the commits that it leaves alone."""

from __future__ import annotations

from collections.abc import Sequence

from mldb import keys
from mldb.compaction.retention import Retention, Roots
from mldb.history import tags
from mldb.history.kinds import METADATA_SET, TENSOR_STORED
from mldb.history.kinds.retention import unpack_retention
from mldb.log.index.address import Lsn
from mldb.log.view import View


def retention_of(view: View, lsn: int | None = None) -> Retention:
    """Return the policy in force at commit *lsn* of the log, on whatever lineage; None is now."""
    found = view.newest(keys.RETENTION, ((1, view.commit.lsn if lsn is None else lsn),))
    return Retention() if found is None else unpack_retention(found.attr)


def retention_history(view: View) -> list[tuple[Lsn, Retention]]:
    """Return the policies that were set, with the commits that did, oldest first."""
    found = view.versions(keys.RETENTION)
    return [(Lsn(entry.commit_lsn), unpack_retention(entry.attr)) for entry in found]


def roots_of(view: View) -> Roots:
    """Return the commits that tags, pins and checkpoints name."""
    named = frozenset(map(int, (*tags.tags(view).values(), *tags.pins(view))))
    checkpoints: list[int] = []
    for part in view.history(keys.LATEST_CHECKPOINT, view.intervals):
        checkpoints += part.lsns
    return Roots(named, tuple(checkpoints))


def is_store_wide(key: bytes) -> bool:
    """Whether a key belongs to the store, so that no rewind touches it."""
    return key[:1] in (keys.TAGS, keys.PINS, keys.RETENTION)


def is_curve(key: bytes) -> bool:
    """Whether the versions of a key are points of curves: a kept commit keeps those before it."""
    return key[:1] == keys.METRICS


def kind_of_rest(kind: int, left: Sequence[bytes]) -> int:
    """The kind of an event of which only these keys are left: metadata without their tensors."""
    if kind == TENSOR_STORED and left and all(key[:1] == keys.METADATA for key in left):
        return METADATA_SET
    return kind
