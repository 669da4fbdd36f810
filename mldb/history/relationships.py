"""The relationship graph: source -> target of a kind, with metadata, as of any commit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Any

from mldb import keys
from mldb.deferred import dataclass
from mldb.errors import MissingError
from mldb.log.index.address import Entry, Lsn
from mldb.names import check_name
from mldb.tensors.codec import unpack_metadata
from mldb.tensors.scope import Scope


@dataclass(frozen=True, slots=True)
class Relationship:
    """One edge of the graph. ``lsn`` is the commit that created it or last changed its metadata."""

    source: str
    target: str
    kind: str
    lsn: Lsn
    metadata: dict[str, Any] = field(default_factory=dict)


def prefix_of(source: str | None, target: str | None, kind: str | None) -> bytes:
    """Return the narrowest key prefix that covers a query; both directions are indexed."""
    first = source if source is not None else target
    prefix = keys.RELATIONS if source is not None or target is None else keys.REVERSE
    if first is not None:
        prefix += check_name(first) + keys.NUL
        if kind is not None:
            prefix += check_name(kind) + keys.NUL
            if source is not None and target is not None:
                prefix += check_name(target)
    return prefix


def matches(key: bytes, source: str | None, target: str | None, kind: str | None) -> bool:
    """Tell whether the relationship of *key* answers a query."""
    found = keys.split_relation(key)
    return all(
        want is None or want == have
        for want, have in zip((source, kind, target), found, strict=True)
    )


def matching(
    scope: Scope, source: str | None, target: str | None, kind: str | None
) -> Iterator[tuple[bytes, Entry]]:
    """Yield (key, entry) of the relationships that exist in *scope* and match."""
    prefix = prefix_of(source, target, kind)
    for key, entry in scope.view.live(prefix, scope.intervals):
        if matches(key, source, target, kind):
            yield key, entry


def relationship(key: bytes, attr: bytes, lsn: int) -> Relationship:
    """Build a Relationship from its key and attr."""
    source, kind, target = keys.split_relation(key)
    return Relationship(source, target, kind, Lsn(lsn), unpack_metadata(attr))


def relationships_in(
    scope: Scope, source: str | None, target: str | None, kind: str | None
) -> list[Relationship]:
    """Return the matching relationships, sorted by source, kind and target."""
    found = [
        relationship(key, entry.attr, entry.commit_lsn)
        for key, entry in matching(scope, source, target, kind)
    ]
    return sorted(found, key=lambda item: (item.source, item.kind, item.target))


def require_relationship(exists: bool, source: str, target: str, kind: str) -> None:
    """Raise MissingError when the relationship does not exist."""
    if not exists:
        raise MissingError(
            f"there is no relationship {source!r} -> {target!r} of kind {kind!r}. Nothing was "
            "stored; db.relationships() lists what exists."
        )
