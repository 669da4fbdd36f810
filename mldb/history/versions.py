"""The versions of a name along one lineage."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Final

import numpy as np

from mldb import keys
from mldb.log.index.address import Lsn
from mldb.log.index.bulk import VersionColumns
from mldb.log.index.pause import collection_paused
from mldb.names import check_name
from mldb.tensors.codec import unpack_descriptor
from mldb.tensors.scope import Scope


@dataclass(frozen=True, slots=True)
class Version:
    """One stored version of a tensor name.

    ``nbytes`` is its decoded size, ``stored_bytes`` what it takes on disk: 0 for one that has its
    bytes from another version.
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


_new_version: Callable[[type[Version]], Version] = object.__new__
_SETTERS: Final[tuple[Callable[[Version, object], None], ...]] = tuple(
    getattr(Version, field.name).__set__ for field in fields(Version)
)
_UNIX_START: Final = datetime(1970, 1, 1, tzinfo=UTC)


def history_of(scope: Scope, name: str) -> list[Version]:
    """Return the versions of *name* that the lineage of *scope* leads through, oldest first."""
    versions: list[Version] = []
    with collection_paused():
        for part in scope.view.history(keys.TENSORS + check_name(name), scope.intervals):
            versions += _versions_of(scope, part)
    return versions


def _versions_of(scope: Scope, part: VersionColumns) -> list[Version]:
    """Make the versions of one part of the log; each distinct descriptor is decoded once."""
    epochs, times = part.epochs, part.times
    if epochs is None or times is None:  # commits of another part
        rows = [scope.view.commit_at(lsn) for lsn in part.lsns]
        epochs = [0 if row is None else row.epoch for row in rows]
        times = [0 if row is None else row.time for row in rows]
    known = {attr: unpack_descriptor(attr) for attr in set(part.attrs)}
    kinds = [known[attr] for attr in part.attrs]
    return _made(
        list(map(Lsn, part.lsns)),
        epochs,
        _moments(times),
        [what.shape for what in kinds],
        [what.dtype for what in kinds],
        [what.nbytes for what in kinds],
        part.lengths,
        [digest.hex() for digest in part.digests],
    )


def _moments(times: list[int]) -> list[datetime]:
    """The times of commits as ``to_time`` makes them."""
    since = np.array(times, np.int64) // 1000
    return list(map(_UNIX_START.__add__, since.astype("m8[us]").tolist()))


def _made(*columns: Sequence[object]) -> list[Version]:
    """Make versions of their fields in order, column by column: half of what the class takes."""
    made = [_new_version(Version) for _ in columns[0]]
    for set_field, column in zip(_SETTERS, columns, strict=True):
        deque(map(set_field, made, column), maxlen=0)
    return made
