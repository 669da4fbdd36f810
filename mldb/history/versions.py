"""The versions of a name along one lineage."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from itertools import islice
from typing import Final

import numpy as np

from mldb import keys
from mldb.deferred import dataclass
from mldb.errors import VersionGoneError
from mldb.log import format as fmt
from mldb.log.index.address import Entry, Lsn, to_time
from mldb.log.index.bulk import VersionColumns
from mldb.log.index.lineage import is_visible
from mldb.log.index.pause import collection_paused
from mldb.names import check_name
from mldb.tensors.codec import unpack_descriptor
from mldb.tensors.scope import Scope, names_prefix


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


def entry_of(scope: Scope, name: str, lsn: int) -> Entry:
    """Return the version of *name* that commit *lsn* of this lineage stored.

    Raises InvalidNameError, VersionGoneError.
    """
    entry = scope.view.version_at(keys.TENSORS + check_name(name), int(lsn))
    if (
        entry is None
        or entry.flags & fmt.ENTRY_TOMBSTONE
        or not is_visible(entry.commit_lsn, scope.intervals)
    ):
        raise VersionGoneError(
            f"this lineage has no version of {name[:80]!r} of commit {int(lsn)}; "
            "db.history(name) lists those there are."
        )
    return entry


def listing_of(scope: Scope, prefix: str, count: int | None = None) -> dict[str, Version]:
    """Return the version of each tensor whose name starts with *prefix*, in byte order of names.

    Of the first *count* only, None for all; not many more than these are decoded.
    """
    with collection_paused():
        found = list(islice(scope.view.live(names_prefix(prefix), scope.intervals), count))
        names = keys.plain_names([key for key, _ in found])
        return dict(zip(names, _versions_at(scope, [entry for _, entry in found]), strict=True))


def _versions_at(scope: Scope, entries: Sequence[Entry]) -> Iterator[Version]:
    """Make the versions of entries; each distinct commit and descriptor is looked up once."""
    lsns = {entry.commit_lsn for entry in entries}
    rows = {lsn: scope.view.commit_at(lsn) for lsn in lsns}  # None: pruned
    commits = {
        lsn: (Lsn(lsn), 0 if row is None else row.epoch, to_time(0 if row is None else row.time))
        for lsn, row in rows.items()
    }
    known = {attr: unpack_descriptor(attr) for attr in {entry.attr for entry in entries}}
    for entry in entries:
        what = known[entry.attr]
        yield Version(
            *commits[entry.commit_lsn],
            what.shape,
            what.dtype,
            what.nbytes,
            entry.length,
            entry.digest.hex(),
        )


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
