"""How many patches lead to each version of a tensor, and what they take."""

from __future__ import annotations

import mldb
from mldb import keys
from mldb.log import format as fmt
from mldb.log.index.address import Entry
from tests.support.compacting import view_of


def links(db: mldb.MLDatabase, name: str = "w") -> list[int]:
    """How many patches a read of each version goes through, oldest first.

    What retention dropped, and still lies in a segment that was not rewritten, is left out.
    """
    view, key = view_of(db), keys.TENSORS + name.encode()
    found: list[int] = []
    for version in view.versions(key):
        count, at, owner = 0, version, key
        while at is not None and at.encoding == fmt.ENCODING_PATCH:
            owner = at.owner or owner
            below = view.version_at(owner, at.base)
            count += 1
            if below is None:
                count = 0  # it was dropped, and this one with it
                break
            at = below
        found.append(count)
    return found


def patches_of(db: mldb.MLDatabase, name: str = "w") -> list[Entry]:
    """The versions of a tensor that are patches, oldest first."""
    versions = view_of(db).versions(keys.TENSORS + name.encode())
    return [entry for entry in versions if entry.encoding == fmt.ENCODING_PATCH]
