"""What a query sees: one moment of a store, over columns that all queries of a handle share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mldb import keys
from mldb.arrays import Numbers
from mldb.lake.states import LakeStates
from mldb.query.columns import ColumnData, moments
from mldb.query.commits import CommitColumns
from mldb.query.rows import SpaceRows
from mldb.tensors.codec import unpack_metadata
from mldb.tensors.scope import Scope

_DECODED_MAX = 1 << 14
"""Metadata that are kept decoded; most are a few dozen bytes."""


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
        self._decoded: dict[bytes, dict[str, Any]] = {}

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

    def decoded(self, attr: bytes) -> dict[str, Any]:
        """Return the metadata of an attr, not to be changed. Raises CorruptError."""
        found = self._decoded.get(attr)
        if found is None:
            found = unpack_metadata(attr)
            if len(self._decoded) >= _DECODED_MAX:
                self._decoded.clear()
            self._decoded[attr] = found
        return found


@dataclass(frozen=True, slots=True)
class StoreMoment:
    """One snapshot that a query asks about. It lives as long as the query does.

    ``memo`` keeps what two tables of one query both need; ``check`` ends what takes long, when the
    query shall end.
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

    def metadata(self) -> dict[bytes, dict[str, Any]]:
        """The metadata of each tensor that exists and has any, by its name."""
        found: dict[bytes, dict[str, Any]] | None = self.memo.get("metadata")
        if found is None:
            rows, newest = self.newest(keys.METADATA)
            found = self.memo["metadata"] = {
                rows.keys[code]: self.catalogue.decoded(rows.attrs[attr])
                for code, attr in zip(
                    rows.key_codes(newest).tolist(),
                    rows.take("attr", newest).tolist(),
                    strict=True,
                )
            }
        return found

    def commit_columns(self, lsns: Numbers) -> dict[str, ColumnData]:
        """The columns ``lsn``, ``epoch`` and ``time`` of things that these commits stored."""
        epochs, times, is_unknown = self.catalogue.commits(self.scope).of(lsns)
        return {
            "lsn": lsns,
            "epoch": np.ma.MaskedArray(epochs, is_unknown),
            "time": moments(times, is_unknown),
        }
