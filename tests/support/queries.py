"""What the tests of queries share: columns of a store, and a locked engine with their relations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import Any

import duckdb

from mldb.query.parsed import STATISTICS, STATISTICS_TABLES, ParsedQuery, TableUse, fold_name
from mldb.query.rewrite import parse_query

_STATISTICS = " ".join(f"{name}:DOUBLE" for name in sorted(STATISTICS))
_COMMIT = "lsn:BIGINT epoch:BIGINT time:TIMESTAMP"
_ARRAY = "dtype:VARCHAR shape:INTEGER[] ndim:INTEGER size:BIGINT nbytes:BIGINT stored_bytes:BIGINT"
_COLUMNS = {
    "tensors": "name:VARCHAR type:VARCHAR layer:VARCHAR position:BIGINT creation_time:TIMESTAMP "
    f"{_COMMIT} {_ARRAY} encoding:VARCHAR layout:VARCHAR versions:BIGINT {_STATISTICS} "
    "lr:DOUBLE Note:VARCHAR odd-key:VARCHAR",
    "versions": f"name:VARCHAR {_COMMIT} {_ARRAY} encoding:VARCHAR is_deleted:BOOLEAN "
    f"{_STATISTICS}",
    "relationships": f"source:VARCHAR target:VARCHAR kind:VARCHAR {_COMMIT} weight:DOUBLE",
    "checkpoints": "name:VARCHAR epoch:BIGINT step:BIGINT lsn:BIGINT time:TIMESTAMP tensors:BIGINT "
    "nbytes:BIGINT interrupted:BOOLEAN loss:DOUBLE std:DOUBLE",
    "metrics": f"name:VARCHAR value:DOUBLE step:BIGINT {_COMMIT}",
    "events": f"{_COMMIT} event:VARCHAR name:VARCHAR detail:VARCHAR",
    "splats": "lake:VARCHAR id:BIGINT label:BIGINT kappa:DOUBLE alpha:DOUBLE norm:DOUBLE "
    "min_cos:DOUBLE epoch:BIGINT lsn:BIGINT",
    "segments": "number:BIGINT id:VARCHAR kind:VARCHAR nbytes:BIGINT first_lsn:BIGINT "
    "last_lsn:BIGINT commits:BIGINT entries:BIGINT",
}
TYPES: dict[str, dict[str, str]] = {
    table: dict(column.split(":") for column in columns.split())
    for table, columns in _COLUMNS.items()
}
"""The columns of each table, each with its type; two of tensors are no plain words."""

_ROWS = {"metrics": 4, "relationships": 5}
_VALUES = {
    "VARCHAR": "(['conv1', 'conv2', 'wide', 'layer', 'it''s', 'a.b', '{\"a\": 1}'])[1 + i * k % 7]",
    "BIGINT": "i % 5",
    "INTEGER": "i % 3",
    "DOUBLE": "(i * 7 % 11) / 4.0",
    "TIMESTAMP": "TIMESTAMP '2026-01-01' + INTERVAL (i) HOUR",
    "INTEGER[]": "[i % 4 + 1, 3]",
    "BOOLEAN": "i % 2 = 0",
}


def columns_of(table: str) -> list[str]:
    """Return the columns that the tables of these tests have."""
    return list(TYPES[table])


def parse(text: str) -> ParsedQuery:
    """Parse *text* against the tables of these tests."""
    return parse_query(text, columns_of)


def relation_columns(use: TableUse) -> list[str]:
    """Return the columns of the relation that an engine makes for *use*, at least one."""
    known = TYPES[use.table]
    if use.columns is not None:
        return [name for name in known if fold_name(name) in use.columns] or list(known)[:1]
    hidden = STATISTICS - use.named if use.table in STATISTICS_TABLES else frozenset()
    return [name for name in known if fold_name(name) not in hidden]


def table_sql(name: str, table: str, columns: Sequence[str]) -> str:
    """Return the SQL that makes *columns* of *table* under *name*, always with the same values."""
    values = ", ".join(
        f'{_VALUES[TYPES[table][one]].replace("* k", "* " + str(1 + len(one) % 6))} AS "{one}"'
        for one in columns
    )
    return (
        f'CREATE TABLE "{name}" AS SELECT {values} '
        f"FROM (SELECT unnest(range({_ROWS.get(table, 24)})) AS i)"
    )


class LockedEngine:
    """A locked engine in memory that holds the relations put into it. One thread."""

    def __init__(self) -> None:
        settings: dict[str, Any] = {"enable_external_access": "false", "threads": 1}
        self._connection = duckdb.connect(":memory:", config=settings)
        for setting in (
            *("autoinstall_known_extensions=false", "autoload_known_extensions=false"),
            *("allow_community_extensions=false", "memory_limit='256MB'"),
            *("max_temp_directory_size='0GB'", "lock_configuration=true"),
        ):
            self._connection.execute(f"SET {setting}")

    @contextmanager
    def relations(self, query: ParsedQuery) -> Iterator[None]:
        """Hold the relations that *query* says it reads, and no more, for the ``with`` block."""
        with self.tables({use.relation: (use.table, relation_columns(use)) for use in query.uses}):
            yield

    @contextmanager
    def tables(self, made: Mapping[str, tuple[str, Sequence[str]]]) -> Iterator[None]:
        """Hold the tables of *made*, a name with a table and columns of it for each."""
        for name, (table, columns) in made.items():
            self._connection.execute(table_sql(name, table, columns))
        try:
            yield
        finally:
            for name in made:
                self._connection.execute(f'DROP TABLE "{name}"')

    def rows(self, sql: str, *, seconds: float = 5.0) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Run *sql* and return its columns and rows; it is interrupted after *seconds*."""
        timer = Timer(seconds, self._connection.interrupt)
        timer.start()
        try:
            done = self._connection.execute(sql)
            return [one[0] for one in done.description or ()], done.fetchall()
        finally:
            timer.cancel()
            timer.join()

    def state(self) -> str:
        """Return all that a query must not change: tables, their rows, functions, settings."""
        run = self._connection.execute
        queries = (
            "SELECT table_name, sql FROM duckdb_tables() ORDER BY ALL",
            "SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY ALL",
            "SELECT function_name FROM duckdb_functions() WHERE NOT internal ORDER BY ALL",
            "SELECT name, value FROM duckdb_settings() ORDER BY ALL",
            "SELECT database_name, path FROM duckdb_databases() ORDER BY ALL",
        )
        catalogue = [run(sql).fetchall() for sql in queries]
        rows = [run(f'SELECT * FROM "{name}"').fetchall() for name, _ in catalogue[0]]
        return repr((catalogue, rows))

    def close(self) -> None:
        self._connection.close()


class EngineReader:
    """Reads SQL with the engine's own parser: what does a text refer to? One thread."""

    def __init__(self) -> None:
        self._connection = duckdb.connect(":memory:")

    def parts(self, sql: str) -> dict[str, set[str]] | None:
        """Return the tables, table functions, functions and tables of WITH in *sql*, folded.

        None where the engine's parser refuses it.
        """
        row = self._connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
        assert row is not None
        tree = json.loads(row[0])
        if tree["error"]:
            return None
        assert len(tree["statements"]) == 1
        found: dict[str, set[str]] = {"tables": set(), "sources": set(), "calls": set()}
        found["with"] = set()
        for node in _objects(tree):
            if node.get("type") == "BASE_TABLE":
                path = (node["catalog_name"], node["schema_name"], node["table_name"])
                found["tables"].add(".".join(part for part in path if part))
            elif node.get("type") == "TABLE_FUNCTION":
                found["sources"].add(node["function"]["function_name"].lower())
            elif "function_name" in node and not node.get("is_operator"):
                found["calls"].add(node["function_name"].lower())
            if "cte_map" in node:
                found["with"].update(fold_name(one["key"]) for one in node["cte_map"]["map"])
        return found

    def close(self) -> None:
        self._connection.close()


def _objects(tree: object) -> Iterator[dict[str, Any]]:
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
