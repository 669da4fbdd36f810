"""What can be asked of a lake: the read surface of its head and of a lake fixed at a commit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from mldb.arrays import Numbers
from mldb.closing import Closing
from mldb.errors import InvalidTypeError
from mldb.history.snapshot import StateSnapshot
from mldb.integers import integer
from mldb.lake import projection
from mldb.lake.consolidation.told import sources_of
from mldb.lake.host import Host
from mldb.lake.on_host import as_ids
from mldb.lake.rows.live import Rows, found_rows, rows_in
from mldb.lake.stream.settings import names_of
from mldb.log.index.address import Lsn
from mldb.tensors.scope import Scope


class LakeSurface(ABC):
    """What can be asked of a lake at its head and of a lake at a commit alike. Any thread."""

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        self.name = name

    @abstractmethod
    def _scope(self) -> Scope:
        """What is seen: the head, or a commit."""

    def rows(self) -> Rows:
        """The live rows, for gathers by row number. Raises MissingError, CorruptError.

        Cost: O(rows) for the first look at a lake, where no hint of it is saved; then O(rows added
        or removed since).
        """
        return self.rows_at(self._scope())

    def rows_at(self, scope: Scope) -> Rows:
        """The live rows in *scope*, by what is known of the lake at any commit."""
        rows = rows_in(scope, self.name, self._host.known)
        self._host.known.save(rows.state, scope)
        return rows

    def __len__(self) -> int:
        """How many live rows; 0 for a lake that does not exist yet."""
        scope = self._scope()
        return 0 if projection.find_lake(scope, self.name) is None else len(self.rows_at(scope))

    def get(self, ids: Any = None, *, fields: Sequence[str] = ("mu",)) -> dict[str, Any]:
        """Return columns by name, [n, ...] arrays of the caller's own, for *ids* or all rows.

        Fields are mu, norm, kappa, alpha, min_cos, id, label and user columns. Raises MissingError
        for an id without a live row, InvalidTypeError for a column that was added in shapes, or in
        dtypes, that do not fit together (int64 and float32, say: no dtype holds both exactly).

        Cost: O(n · dim), and a search for each id; as :meth:`rows` for a first look.
        """
        chosen_fields = names_of("fields", fields)
        rows = self.rows()
        if ids is None:
            return {name: rows.gather(name, slice(0, len(rows))) for name in chosen_fields}
        stored = found_rows(rows, as_ids(ids))
        return {name: rows.gather_stored(name, stored) for name in chosen_fields}

    def ids(self) -> Numbers:
        """The ids of the live rows, int64, in row order (a copy).

        Cost: O(rows).
        """
        return self.rows().ids().copy()

    def sources(self, row_id: int, *, deep: bool = False) -> Numbers:
        """Return the ids that a splat was merged of, int64 [n], ascending; [0] for an added row.

        They have ended: read them at a commit before. *deep*: down to rows that were added. The
        splat may have ended since. Raises MissingError for an id that no row ever had.

        Cost: O(sources), deep O(all of them below).
        """
        rows = self.rows()
        found = sources_of(rows, integer("row_id", row_id))
        if not deep:
            return found
        added: list[int] = []
        todo = found.tolist()
        while todo:
            one = todo.pop()
            below = sources_of(rows, one).tolist()
            todo += below
            added += [] if below else [one]
        return np.array(sorted(added), np.int64)

    def __reduce__(self) -> NoReturn:
        """A lake belongs to an open store."""
        raise InvalidTypeError(
            "a lake is not pickled; send the path of the store and the lake's name. The dataset "
            "that lake.export_to_dataloader() makes travels to workers."
        )


class LakeSnapshot(LakeSurface, Closing):
    """A lake fixed at one commit, made by ``lake.at(as_of)``. A context manager; any thread.

    While open its commit is registered, so that compaction keeps what it reads.
    """

    def __init__(self, host: Host, name: str, snapshot: StateSnapshot) -> None:
        """*snapshot* is this one's own: it is closed with it. Raises MissingError."""
        super().__init__(host, name)
        self._snapshot = snapshot
        try:
            info, _ = projection.require_lake(self._scope(), name)
        except BaseException:
            snapshot.close()
            raise
        self.dim, self.geometry = info.dim, info.geometry

    def _scope(self) -> Scope:
        return self._snapshot._scope()

    @property
    def lsn(self) -> Lsn:
        """The commit."""
        return self._snapshot.lsn

    @property
    def epoch(self) -> int:
        """The epoch of that commit."""
        return self._snapshot.epoch

    def close(self) -> None:
        """Give the commit free for retention. Closing twice is harmless."""
        self._snapshot.close()

    def __repr__(self) -> str:
        """One line."""
        return f"<LakeSnapshot {self.name!r} epoch={self.epoch} lsn={self.lsn}>"
