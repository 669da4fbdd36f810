"""DuckDB as the engine of queries: one locked, empty, in-memory database for each handle.

Nothing in it can reach a file, the network, a setting or a variable of Python: external access is
off and the configuration is locked when it is made (DuckDB, "Securing DuckDB"). What a query may
say is decided before, in ``mldb.query.rewrite``; this is the second fence. Tables come in as NumPy
columns and stay until others need the room.
"""

from __future__ import annotations

import ctypes
import os
import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from mldb.errors import LimitError, QueryError
from mldb.query.columns import TEXT_TYPE, Coded, TableColumns
from mldb.query.fetching import Answer, fetched
from mldb.query.fields import HIDDEN
from mldb.query.running import StoppedError

MEMORY_BYTES: Final = 1 << 30
"""What DuckDB may take for a query and for the tables that are kept, together."""
KEPT_BYTES: Final = 256 << 20
"""Of it, for tables that are kept."""
RESULT_BYTES: Final = 2 << 30
"""What the rows of an answer may take in Python, as reckoned."""
_THREADS_MAX: Final = 4
_FEW_ROWS: Final = 1 << 16
"""So many rows of an answer need no look at its size."""
_GROWING: Final = re.compile(r"with|values|unnest|range|generate|repeat", re.IGNORECASE)
"""What can make more rows than the tables of a query have together."""
_EXPANDED_MAX: Final = 1 << 14
"""Rows up to which texts are handed over one by one; a dictionary costs as much as that."""
_TEXT_BYTES: Final = 64  # of a value of text, as reckoned
_CELL_BYTES: Final = {"BOOLEAN": 1, "INTEGER": 4, "BIGINT": 8, "DOUBLE": 8, "TIMESTAMP": 8}
_RESULT: Final = f"{HIDDEN}result"
_CODED_NAME: Final = f"{HIDDEN}name"
_CODED_LSN: Final = f"{HIDDEN}lsn"

Statistic = Callable[[str, str, int], "float | None"]
"""From which statistic, of which tensor, of which commit, to its value."""


class Relation(NamedTuple):
    """A table as one query sees it: how it is called, what it holds, and which columns are seen.

    ``key`` names its contents, which never change; ``make`` makes them where they are not kept.
    ``statistics`` are those of the columns that are computed when they are looked at.
    """

    name: str
    key: Hashable
    make: Callable[[], TableColumns]
    columns: Sequence[str]
    statistics: Sequence[str]


def _config() -> dict[str, str | bool | int | float | list[str]]:
    return {
        "enable_external_access": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "temp_directory": "",  # else it is made in the working folder, however small it may be
        "max_temp_directory_size": "0GB",
        "python_enable_replacements": "false",
        "memory_limit": f"{MEMORY_BYTES >> 20}MiB",
        "threads": str(min(os.cpu_count() or 1, _THREADS_MAX)),
    }


class Engine:
    """One DuckDB database in memory. One query at a time; ``interrupt`` from any thread.

    A forked child must not use it, and never frees what it inherited: its threads are not there.
    """

    def __init__(self) -> None:
        import duckdb

        self._duckdb = duckdb
        self._connection = duckdb.connect(":memory:", config=_config())
        self._connection.execute("SET TimeZone = 'UTC'")
        self._connection.execute("SET lock_configuration = true")
        self._kept: OrderedDict[Hashable, tuple[str, int, int]] = OrderedDict()
        self._views: dict[str, str] = {}
        self._made = 0
        self._statistic: Statistic | None = None
        self._has_functions = False
        self._failure: BaseException | None = None
        _engines.add(self)

    def interrupt(self) -> None:
        """End what runs; nothing when nothing does."""
        self._connection.interrupt()

    def close(self) -> None:
        """Free the database. No query may run."""
        self._kept.clear()
        self._connection.close()

    def run(self, sql: str, relations: Sequence[Relation], statistic: Statistic) -> Answer:
        """Run one SELECT over *relations*.

        Raises QueryError for what DuckDB refuses, LimitError for more memory than there is, what
        *statistic* raises, and StoppedError when it was interrupted.
        """
        self._statistic, self._failure = statistic, None
        try:
            bound = 1
            for relation in relations:
                bound *= max(self._show(relation), 1) ** max(sql.count(relation.name), 1)
            if bound <= _FEW_ROWS and not _GROWING.search(sql):
                return fetched(self._connection.execute(sql))
            return self._measured(sql)
        except self._duckdb.Error as error:
            raise self._told(error) from None
        finally:
            self._statistic = None

    def _measured(self, sql: str) -> Answer:
        """Run a query whose rows may be many: they come out of the engine where they have room.

        The engine counts what it holds against its limit; what it hands out it does not.
        """
        made = self._connection.execute(f"CREATE OR REPLACE TEMP TABLE {_RESULT} AS {sql}")
        (rows,) = made.fetchone() or (0,)
        try:
            done = self._connection.execute(f"FROM {_RESULT}")
            size = rows * sum(
                _CELL_BYTES.get(str(item[1]), _TEXT_BYTES) for item in done.description
            )
            if size > RESULT_BYTES:
                raise LimitError(
                    f"the answer has {rows:,} rows, some {size >> 20} MiB; {RESULT_BYTES >> 20} "
                    "MiB may come into memory. Narrow it, select fewer columns, or add LIMIT."
                )
            return fetched(done)
        finally:
            self._connection.execute(f"DROP TABLE IF EXISTS {_RESULT}")

    def _told(self, error: Exception) -> BaseException:
        """Turn what DuckDB raised into ours."""
        if self._failure is not None:
            return self._failure
        if isinstance(error, self._duckdb.InterruptException):
            return StoppedError()
        if isinstance(error, self._duckdb.OutOfMemoryException):
            return LimitError(
                f"the query needs more than the {MEMORY_BYTES >> 20} MiB that queries may take. "
                "Narrow it, select fewer columns, or add LIMIT."
            )
        return QueryError(_message(str(error)))

    # --- tables -----------------------------------------------------------------------------------

    def _show(self, relation: Relation) -> int:
        """Have the query see a relation under its name; return how many rows it has."""
        if relation.statistics:
            self._make_functions()
        shown = [_quoted(name) for name in relation.columns]
        shown += [
            f"{HIDDEN}{name}({_CODED_NAME}, {_CODED_LSN}) AS {_quoted(name)}"
            for name in relation.statistics
        ]
        table, rows = self._table(relation.key, relation.make, relation.columns)
        view = f"SELECT {', '.join(shown)} FROM {table}"
        if self._views.get(relation.name) != view:
            self._views.pop(relation.name, None)
            self._connection.execute(
                f"CREATE OR REPLACE TEMP VIEW {_quoted(relation.name)} AS {view}"
            )
            self._views[relation.name] = view
        return rows

    def _table(
        self, key: Hashable, make: Callable[[], TableColumns], names: Sequence[str]
    ) -> tuple[str, int]:
        """Return name and rows of the table with this key, made when it is not there."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found[0], found[2]
        made = make()
        name = f"{HIDDEN}kept_{self._made}"
        self._made += 1
        columns: dict[str, Any] = {column: made.columns[column] for column in names}
        if made.versions is not None:
            columns[_CODED_NAME], columns[_CODED_LSN] = made.versions
        self._create(name, columns)
        self._kept[key] = name, sum(map(_bytes_of, columns.values())), made.rows
        self._make_room()
        return name, made.rows

    def _create(self, name: str, columns: dict[str, Any]) -> None:
        """Make a table of columns; texts of long ones go in as numbers into a list."""
        given: dict[str, Any] = {}
        taken, registered = [], [f"{HIDDEN}rows"]
        try:
            for number, (column, values) in enumerate(columns.items()):
                place = f"c{number}"
                if not isinstance(values, Coded):
                    place = _registered(given, place, values)
                elif len(values) <= _EXPANDED_MAX:
                    given[place] = _expanded(values)
                    place = f"CAST({place} AS {values.kind})"
                else:
                    given[place] = values.codes
                    registered.append(f"{HIDDEN}list_{number}")
                    place = self._listed(registered[-1], values, place)
                taken.append(f"{place} AS {_quoted(column)}")
            self._connection.register(registered[0], given)
            self._connection.execute(
                f"CREATE TABLE {name} AS SELECT {', '.join(taken)} FROM {registered[0]}"
            )
        finally:
            for view in registered:
                self._connection.unregister(view)

    def _listed(self, view: str, column: Coded, place: str) -> str:
        """Register the values of a long column; return the SQL of its values."""
        values = np.empty(len(column.values), object)
        values[:] = list(column.values)
        self._connection.register(view, {"i": np.arange(len(values)), "v": values})
        return (
            f"(SELECT list(CAST(v AS {column.kind}) ORDER BY i) FROM {view})[{place} + 1]"
            if len(values)
            else f"CAST(NULL AS {column.kind})"
        )

    def _make_room(self) -> None:
        """Drop the tables that were used longest ago, never the newest."""
        while len(self._kept) > 1 and sum(size for _, size, _ in self._kept.values()) > KEPT_BYTES:
            _, (name, _, _) = self._kept.popitem(last=False)
            self._connection.execute(f"DROP TABLE IF EXISTS {name}")

    # --- statistics -------------------------------------------------------------------------------

    def _make_functions(self) -> None:
        """Let SQL call for statistics: of the rows alone that pass what can be asked before."""
        from mldb.query.parsed import STATISTICS

        if self._has_functions:
            return
        for which in sorted(STATISTICS):
            self._connection.create_function(  # type: ignore[call-overload]
                f"{HIDDEN}{which}",
                self._function(which),
                [TEXT_TYPE, "BIGINT"],
                "DOUBLE",
                null_handling="special",
            )
        self._has_functions = True

    def _function(self, which: str) -> Callable[[str | None, int | None], float | None]:
        this = weakref.ref(self)  # DuckDB holds its functions, and the engine holds DuckDB

        def value(name: str | None, lsn: int | None) -> float | None:
            engine = this()
            if engine is None or engine._statistic is None or name is None or lsn is None:
                return None
            try:
                return engine._statistic(which, name, lsn)
            except BaseException as error:
                if engine._failure is None:
                    engine._failure = error
                raise

        return value


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """Keep a forked child from freeing DuckDB, which would wait for threads that are not there."""
    for engine in list(_engines):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine._connection))


os.register_at_fork(after_in_child=_leave_to_parent)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _registered(given: dict[str, Any], place: str, values: Any) -> str:
    """Give a column of numbers to the engine; return the SQL of its values.

    DuckDB takes NaN for NULL, so where they are goes in beside them.
    """
    given[place] = values
    if values.dtype.kind != "f":
        return place
    is_nan = np.isnan(np.ma.getdata(values)) & ~np.ma.getmaskarray(values)
    if not is_nan.any():
        return place
    given[f"{place}n"] = is_nan
    return f"CASE WHEN {place}n THEN 'NaN'::DOUBLE ELSE {place} END"


def _expanded(column: Coded) -> Any:
    """A column of texts, None where there is none."""
    values = np.empty(len(column.values) + 1, object)
    values[:-1] = list(column.values)
    return values[column.codes]  # the last one, None, is number -1


def _bytes_of(column: Any) -> int:
    return len(column) * _TEXT_BYTES if isinstance(column, Coded) else int(column.nbytes)


def _message(text: str) -> str:
    """What DuckDB says, in one line, without the part of the query that it shows."""
    first = text.split("\n\nLINE ", 1)[0].split("\n", 1)[0].strip()
    return f"the engine refused the query: {first[:500]}. Nothing was changed."
