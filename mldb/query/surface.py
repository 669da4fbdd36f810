"""The verbs of queries: ``sql`` and ``query``, of a database and of a snapshot alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from mldb.errors import QueryError
from mldb.history.as_of import AsOf
from mldb.history.reading import ReadSurface
from mldb.history.snapshot import StateSnapshot
from mldb.tensors.scope import Scope

if TYPE_CHECKING:
    from mldb.query.queries import Queries
    from mldb.query.result import QueryResult

_SECONDS = 30.0


class QuerySurface(ReadSurface):
    """What can be asked in SQL. Any thread; queries of one handle follow one another."""

    @abstractmethod
    def _queries(self) -> Queries:
        """What answers the queries of this handle."""

    def sql(self, text: str, *, as_of: AsOf = None, timeout: float = _SECONDS) -> QueryResult:
        """Return the rows that a SELECT asks for, as of *as_of*, and for tables with AS OF of that.

        Tables are tensors, versions, relationships, checkpoints, metrics, events, splats and
        segments; keys of metadata are columns. ``AS OF EPOCH 3``, ``LSN 17``, ``TAG 'best'`` or
        ``TIMESTAMP '...'`` may stand behind each. ``SELECT tensors WHERE type=weights`` is short
        for ``SELECT * FROM tensors WHERE type = 'weights'``. Names are compared without case.
        Everything that carries no AS OF is one snapshot. All rows come into memory.

        The columns mean, std, min, max, norm, zero_share and nan_share of tensors and versions are
        computed when a query names them, once for each value; ``mldb.query.statistics`` has the
        rules. A query that touches a damaged tensor raises CorruptError that names it; others do
        not.

        Raises QueryError, LimitError after *timeout* seconds and beyond 1 GiB of memory of the
        engine, MissingError and VersionGoneError for moments, CorruptError, ClosedError. Ctrl-C
        ends a query at once.

        Cost: O(versions and commits) for the columns of the tables named, once, then what was
        committed since; O(names) for a moment; O(bytes) of each tensor whose statistics are asked
        for the first time.
        """
        return self._queries().ask(self._scope, text, as_of, timeout)

    @property
    def query(self) -> QueryAccess:
        """Queries by the name that the original documents use: ``db.query.execute_query``."""
        return QueryAccess(self)


class QueryAccess:
    """What ``db.query`` is. Any thread; it lives as long as the handle."""

    def __init__(self, surface: QuerySurface) -> None:
        self._surface = surface

    def execute_query(self, text: str, *, as_of: AsOf = None) -> list[str]:
        """Return the first column of what a SELECT answers, names for the short form, as texts.

        ``execute_query("SELECT tensors WHERE type=weights ORDER BY creation_time")``. Raises what
        :meth:`QuerySurface.sql` raises, QueryError where the first column is no text.
        """
        surface = self._surface
        found = surface._queries().ask(surface._scope, text, as_of, _SECONDS, first_only=True)
        names = [row[0] for row in found if row[0] is not None]
        if not all(isinstance(name, str) for name in names):
            raise QueryError(
                f"execute_query returns names, and {found.columns[0]!r} is no column of texts. "
                "Select name first, or use db.sql."
            )
        return names


class Snapshot(StateSnapshot, QuerySurface):
    """A snapshot that can be asked in SQL: what ``db.at(as_of)`` returns."""

    def __init__(
        self, scope: Scope, guard: Callable[[], None], queries: Callable[[], Queries]
    ) -> None:
        super().__init__(scope, guard)
        self._asked = queries

    def _queries(self) -> Queries:
        return self._asked()
