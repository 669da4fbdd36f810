"""The functions of queries: each is the engine's, and no other of the engine's is let in."""

from __future__ import annotations

import duckdb
import pytest

from mldb.errors import QueryError
from mldb.query.functions import FUNCTIONS, GROWTH_MAX, TABLE_FUNCTIONS, why_refused
from tests.support.queries import parse

# Written as functions, and syntax to the engine.
SYNTAX = frozenset({"coalesce", "if", "ifnull", "nullif", "grouping", "unnest", "position", "now"})


def engine_functions(kind: str = "%") -> frozenset[str]:
    with duckdb.connect(":memory:") as connection:
        found = connection.execute(
            "SELECT DISTINCT lower(function_name) FROM duckdb_functions() "
            "WHERE function_type LIKE ?",
            [kind],
        )
        return frozenset(name for (name,) in found.fetchall())


def test_every_function_is_one_of_the_engine() -> None:
    assert sorted(FUNCTIONS - engine_functions() - SYNTAX) == []
    assert set(TABLE_FUNCTIONS) <= FUNCTIONS
    assert all(why_refused(name) is None for name in FUNCTIONS)


@pytest.mark.slow
def test_every_other_function_of_the_engine_is_refused() -> None:
    others = {name for name in engine_functions() - FUNCTIONS if name.isidentifier()}
    assert len(others) > 500
    for name in others:
        with pytest.raises(QueryError):
            parse(f"SELECT {name}(1)")


def test_no_other_function_gives_a_table() -> None:
    others = engine_functions("table%") - {*TABLE_FUNCTIONS, "unnest"}
    assert len(others) > 80
    for name in others:
        with pytest.raises(QueryError):
            parse(f"SELECT * FROM {name}('x')")


def test_nothing_that_reaches_outside_is_allowed() -> None:
    words = (
        "read_",
        "_scan",
        "duckdb_",
        "pragma_",
        "current_s",
        "getenv",
        "nextval",
        "glob",
        "query",
    )
    assert not [name for name in FUNCTIONS if any(word in name for word in words)]


@pytest.mark.parametrize(
    "call",
    [
        *("repeat('ab', 1000)", "lpad(name, 20, ' ')", "rpad(name, 0, ' ')", "range(1000000)"),
        *("range(-5, 5)", "generate_series(10, 1, -3)", "range(0, 1000000000, 1000)"),
        *("replace(name, 'layer', 'l')", "replace(name, '.', '/')", "replace(name, 'a', '')"),
        "regexp_replace(name, '[0-9]+', '<number>', 'g')",
    ],
)
def test_sizes_within_the_limits_pass(call: str) -> None:
    assert parse(f"SELECT {call} FROM tensors").sql


def test_replacements_are_bounded_together() -> None:
    doubled = "name"
    for _ in range(GROWTH_MAX.bit_length() - 1):
        doubled = f"replace({doubled}, 'a', 'aa')"
    assert parse(f"SELECT {doubled} FROM tensors").sql
    with pytest.raises(QueryError, match="can make a text too long"):
        parse(f"SELECT replace({doubled}, 'a', 'aa') FROM tensors")
    with pytest.raises(QueryError, match="can make a text too long"):
        parse(f"WITH x AS (SELECT {doubled} AS n FROM tensors) SELECT replace(n, 'b', 'bb') FROM x")


@pytest.mark.parametrize(
    "call",
    [
        *("repeat('ab')", "lpad(name)", "range()", "range(1, 2, 3, 4)", "replace(name, 'a')"),
        *("replace()", "regexp_replace(name)", "range('a')", "repeat('a', 1e3)", "range(1.5)"),
        *("repeat('a', '3')", "lpad(name, epoch, ' ')", "range(0, 10000000)"),
    ],
)
def test_calls_without_a_size_are_refused(call: str) -> None:
    with pytest.raises(QueryError):
        parse(f"SELECT {call} FROM tensors")
