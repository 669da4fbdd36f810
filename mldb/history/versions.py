"""The versions of a name along one lineage."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from mldb import keys
from mldb.log import format as fmt
from mldb.log.index.address import Lsn, to_time
from mldb.log.index.lineage import is_visible
from mldb.names import check_name
from mldb.tensors.codec import unpack_descriptor
from mldb.tensors.scope import Scope


@dataclass(frozen=True, slots=True)
class Version:
    """One stored version of a tensor name.

    ``nbytes`` is its decoded size, ``stored_bytes`` what it takes on disk.
    """

    lsn: Lsn
    epoch: int
    time: datetime
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    stored_bytes: int
    digest: str
    """xxh3-128 of the decoded bytes; equal digests mean equal bytes."""


def history_of(scope: Scope, name: str) -> list[Version]:
    """Return the versions of *name* that the lineage of *scope* leads through, oldest first."""
    versions: list[Version] = []
    for entry in scope.view.versions(keys.TENSORS + check_name(name)):
        if entry.flags & fmt.ENTRY_TOMBSTONE or not is_visible(entry.commit_lsn, scope.intervals):
            continue
        row = scope.view.commit_at(entry.commit_lsn)
        what = unpack_descriptor(entry.attr)
        versions.append(
            Version(
                Lsn(entry.commit_lsn),
                0 if row is None else row.epoch,
                to_time(0 if row is None else row.time),
                what.shape,
                what.dtype,
                what.nbytes,
                entry.length,
                entry.digest.hex(),
            )
        )
    return versions
