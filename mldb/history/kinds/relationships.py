"""The graph: RelationshipCreated, RelationshipDeleted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mldb import keys
from mldb.history.kinds import RELATIONSHIP_CREATED, RELATIONSHIP_DELETED
from mldb.history.kinds.changes import KeyChange
from mldb.log.frame import Draft
from mldb.tensors.codec import unpack_metadata


def relationship_created(
    source: bytes, target: bytes, kind: bytes, metadata: bytes
) -> tuple[KeyChange, KeyChange]:
    """source -> target of this kind, with packed metadata; it is found by either end."""
    return (
        KeyChange(RELATIONSHIP_CREATED, keys.relation_key(source, kind, target), metadata),
        KeyChange(RELATIONSHIP_CREATED, keys.reverse_key(source, kind, target), metadata),
    )


def read_relationship_created(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield source, target, kind and metadata of each relationship."""
    for draft in drafts:
        if draft.key[:1] == keys.RELATIONS:
            source, kind, target = keys.split_relation(draft.key)
            yield source, target, kind, unpack_metadata(draft.attr)


def relationship_deleted(source: bytes, target: bytes, kind: bytes) -> tuple[KeyChange, KeyChange]:
    """The end of source -> target of this kind."""
    return (
        KeyChange(RELATIONSHIP_DELETED, keys.relation_key(source, kind, target), None),
        KeyChange(RELATIONSHIP_DELETED, keys.reverse_key(source, kind, target), None),
    )


def read_relationship_deleted(drafts: list[Draft], extra: Any) -> Iterator[tuple[Any, ...]]:
    """Yield source, target and kind of each relationship."""
    for draft in drafts:
        if draft.key[:1] == keys.RELATIONS:
            source, kind, target = keys.split_relation(draft.key)
            yield source, target, kind
