"""What a query sees: one moment of a store, over columns that all queries of a handle share."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from mldb import keys
from mldb.arrays import Numbers
from mldb.deferred import dataclass
from mldb.log.checksum import digest128
from mldb.query.columns import ColumnData, json_text, moments
from mldb.query.commits import CommitColumns
from mldb.query.rows import SpaceRows
from mldb.tensors.codec import unpack_metadata
from mldb.tensors.scope import Scope

if TYPE_CHECKING:
    from mldb.lake.states import LakeStates

_DECODED_MAX: Final = 1 << 14
"""Metadata that are kept decoded; most are a few dozen bytes."""
_DERIVED_ROWS: Final = 1 << 18
"""Names in what is kept of several moments, together."""

_Made = TypeVar("_Made")


class DecodedMetadata:
    """Metadata of one version: the fields, not to be changed, and all of them as JSON."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields

    @cached_property
    def text(self) -> str | None:
        """As JSON; None where there are none."""
        return json_text(self.fields) if self.fields else None


NO_METADATA: Final = DecodedMetadata({})


class Catalogue:
    """The columns of the key spaces of one handle. For one thread at a time.

    They grow with the store. A moment that is asked about is held (``mldb.history.as_of.held``), so
    that columns of a newer view have all that it sees.
    """

    def __init__(self, lakes: Callable[[], LakeStates]) -> None:
        """*lakes* gives what the handle knows of its lakes."""
        self.lakes = lakes
        self._spaces: dict[bytes, SpaceRows] = {}
        self._commits = CommitColumns()
        self._decoded: dict[bytes, DecodedMetadata] = {}
        self._derived: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def space(self, scope: Scope, space: bytes) -> SpaceRows:
        """Return the versions of a key space, those of *scope* among them. Raises CorruptError."""
        rows = self._spaces.get(space)
        if rows is None:
            rows = self._spaces[space] = SpaceRows(space)
        rows.bring_up_to(scope.view)
        return rows

    def commits(self, scope: Scope) -> CommitColumns:
        """Return the table of commits. Raises CorruptError."""
        self._commits.bring_up_to(scope.view)
        return self._commits

    def decoded(self, attr: bytes) -> DecodedMetadata:
        """Return the metadata of an attr. Raises CorruptError."""
        found = self._decoded.get(attr)
        if found is None:
            found = DecodedMetadata(unpack_metadata(attr))
            if len(self._decoded) >= _DECODED_MAX:
                self._decoded.clear()
            self._decoded[attr] = found
        return found

    def derived(self, key: Hashable, size: int, make: Callable[[], _Made]) -> _Made:
        """Return what *make* makes of *size* names, kept under *key* while there is room."""
        found = self._derived.get(key)
        if found is not None:
            self._derived.move_to_end(key)
            kept: _Made = found[0]
            return kept
        made = make()
        self._derived[key] = made, size + 1
        while len(self._derived) > 1 and sum(n for _, n in self._derived.values()) > _DERIVED_ROWS:
            self._derived.popitem(last=False)
        return made


@dataclass(frozen=True, slots=True)
class StoreMoment:
    """One snapshot that a query asks about. It lives as long as the query does.

    All moments of a query have one view. ``memo`` keeps what two tables of one query both need;
    ``check`` ends what takes long, when the query shall end.
    """

    scope: Scope
    catalogue: Catalogue
    check: Callable[[], None]
    memo: dict[str, Any] = field(default_factory=dict)

    def rows(self, space: bytes) -> SpaceRows:
        """The versions of a key space."""
        return self.catalogue.space(self.scope, space)

    def newest(self, space: bytes) -> tuple[SpaceRows, Numbers]:
        """The versions of a key space, and the rows of those that exist, by key."""
        rows = self.rows(space)
        found: Numbers | None = self.memo.get(f"newest {space!r}")
        if found is None:
            found = self.memo[f"newest {space!r}"] = rows.newest(self.scope.intervals)
        return rows, found

    def newest_key(self, space: bytes) -> Hashable:
        """What names the keys of a space that exist and their attrs, at whatever moment."""
        rows, newest = self.newest(space)
        codes, attrs = rows.key_codes(newest), rows.take("attr", newest)
        return space, rows.number, digest128(codes.astype("<i8").tobytes() + attrs.tobytes())

    def metadata(self) -> Mapping[bytes, DecodedMetadata]:
        """The metadata of each tensor that exists and has any, by its name."""
        found: Mapping[bytes, DecodedMetadata] | None = self.memo.get("metadata")
        if found is None:
            rows, newest = self.newest(keys.METADATA)
            key = ("metadata", self.newest_key(keys.METADATA))

            def decoded() -> dict[bytes, DecodedMetadata]:
                codes, attrs = rows.key_codes(newest).tolist(), rows.take("attr", newest).tolist()
                return {
                    rows.keys[code]: self.catalogue.decoded(rows.attrs[attr])
                    for code, attr in zip(codes, attrs, strict=True)
                }

            found = self.catalogue.derived(key, len(newest), decoded)
            self.memo["metadata"] = found
        return found

    def counted(self, space: bytes, count: Callable[[], Counter[str]]) -> Counter[str]:
        """What *count* counts of the keys of a space that exist, kept while they are the same."""
        return self.catalogue.derived(("keys", self.newest_key(space)), 0, count)

    def commit_columns(self, lsns: Numbers) -> dict[str, ColumnData]:
        """The columns ``lsn``, ``epoch`` and ``time`` of things that these commits stored."""
        epochs, times, is_unknown = self.catalogue.commits(self.scope).of(lsns)
        return {
            "lsn": lsns,
            "epoch": np.ma.MaskedArray(epochs, is_unknown) if is_unknown.any() else epochs,
            "time": moments(times, is_unknown),
        }
