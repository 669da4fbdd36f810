"""What no store should answer is refused; what passes runs into the limits of the engine."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import duckdb
import pytest

from mldb.errors import QueryError
from mldb.query.limits import BRACKETS_MAX, SELECTS_MAX, TEXT_CHARACTERS_MAX
from tests.query.attacks import ATTACKS, attack_texts
from tests.support.queries import LockedEngine, parse


def test_there_are_many() -> None:
    texts = attack_texts()
    assert len(set(texts)) == len(texts) >= 300
    assert len(ATTACKS) == 14


@pytest.mark.parametrize("text", attack_texts())
def test_attacks_are_refused(text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(QueryError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.endswith(".")
    assert ".." not in message
    assert len(message) < 1000
    assert message.isprintable()
    assert not caplog.records


@pytest.mark.parametrize("name", ["duckdb_views", "pg_class", "sqlite_master", "duckdb_settings"])
def test_a_table_of_with_never_becomes_one_of_the_engine(name: str) -> None:
    """``SELECT … UNION ALL WITH x AS (…) SELECT … FROM x`` lost its WITH on the way to SQL.

    Where x was called as a table of the engine, that was read. It is refused now, and in SQL no
    table of WITH has a name of its own choice.
    """
    query = parse(f"WITH {name} AS (SELECT 1 AS a) SELECT {name}.a FROM {name}")
    engine = LockedEngine()
    assert engine.rows(query.sql) == (["a"], [(1,)])
    lost = query.sql[query.sql.index("SELECT", query.sql.index(")")) :]
    with pytest.raises(duckdb.CatalogException):
        engine.rows(lost)
    engine.close()


LARGE: dict[str, Callable[[int], str]] = {
    "brackets": lambda n: "SELECT " + "(" * n + "1" + ")" * n,
    "brackets without end": lambda n: "SELECT " + "(" * n,
    "lists": lambda n: "SELECT " + "[" * n + "1" + "]" * n,
    "calls": lambda n: "SELECT " + "abs(" * n + "1" + ")" * n,
    "subqueries": lambda n: "SELECT * FROM " + "(SELECT * FROM " * n + "tensors" + ")" * n,
    "case": lambda n: "SELECT " + "CASE WHEN true THEN " * n + "1" + " END" * n,
    "not": lambda n: "SELECT " + "NOT " * n + "true",
    "minus": lambda n: "SELECT " + "- " * n + "1",
    "sum": lambda n: "SELECT " + "1+" * n + "1",
    "or": lambda n: "SELECT name FROM tensors WHERE " + "epoch=1 OR " * n + "epoch=2",
    "texts": lambda n: "SELECT " + "name||" * n + "name FROM tensors",
    "union": lambda n: "SELECT 1" + " UNION SELECT 1" * n,
    "with": lambda n: (
        "WITH x AS (SELECT 1)" + "".join(f", x{i} AS (SELECT 1)" for i in range(n)) + " SELECT 1"
    ),
    "joins": lambda n: "SELECT 1 FROM tensors t" + " JOIN versions v" * n + " ON true" * n,
    "at": lambda n: "SELECT " + "@ " * n + "1",
    "interval": lambda n: "SELECT " + "INTERVAL " * n + "1 DAY",
    "cast": lambda n: "SELECT 1" + "::INT" * n,
    "dots": lambda n: "SELECT name FROM tensors WHERE name = a" + ".a" * n,
    "commas": lambda n: "SELECT 1" + ",1" * n,
    "moments": lambda n: "SELECT name FROM tensors" + " AS OF EPOCH 3" * n,
    "semicolons": lambda n: "SELECT 1" + ";" * n,
    "comment": lambda n: "SELECT 1 /*" + "*" * n + "*/",
    "number": lambda n: "SELECT " + "1" * n,
    "text": lambda n: "SELECT '" + "x" * n + "'",
    "name": lambda n: "SELECT " + "x" * n + " FROM tensors",
    "words": lambda n: "SELECT tensors WHERE name IN (" + "a," * n + "a)",
    "quotes": lambda n: "SELECT " + "'" * n,
    "one word": lambda n: "x" * n,
    "spaces": lambda n: " " * n,
    "joined types": lambda n: "SELECT CAST(1 AS INT" + "[]" * n + ")",
    "windows": lambda n: "SELECT " + "sum(sum(epoch) OVER ()) OVER (), " * n + "1 FROM tensors",
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("count", [40, 300, 3_000, 10_000, 1_000_000])
def test_large_and_deep_texts_end_in_an_answer_or_a_query_error(kind: str, count: int) -> None:
    """The parser alone raises RecursionError for half of these, and takes seconds for others."""
    text = LARGE[kind](count)
    if len(text) > TEXT_CHARACTERS_MAX:
        with pytest.raises(QueryError, match="the limit is 65,536"):
            parse(text)
        return
    try:
        query = parse(text)
    except QueryError:
        return
    assert len(query.sql) <= 3 * len(text) + 100


def test_what_is_within_the_limits_passes() -> None:
    depth = BRACKETS_MAX
    for text in (
        "SELECT " + "(" * depth + "1" + ")" * depth,
        "SELECT * FROM " + "(SELECT * FROM " * 15 + "tensors" + ")" * 15,
        "SELECT 1" + " UNION SELECT 1" * (SELECTS_MAX - 1),
        "SELECT name FROM tensors WHERE " + "epoch=1 OR " * 300 + "epoch=2",
        "SELECT name FROM tensors WHERE name IN (" + "'layer.weight'," * 4000 + "'x')",
    ):
        query = parse(text)
        engine = LockedEngine()
        with engine.relations(query):
            assert engine.rows(query.sql)[1] is not None
        engine.close()


def test_a_caller_deep_in_the_stack_gets_a_query_error() -> None:
    """RecursionError came out where the caller had used most of the stack."""

    def deeper(left: int) -> None:
        if left:
            deeper(left - 1)
        else:
            with pytest.raises(QueryError, match="nested too deep"):
                parse("SELECT tensors WHERE type=((((weights))))")

    frame, used = sys._getframe(), 0
    while frame.f_back is not None:
        frame, used = frame.f_back, used + 1
    deeper(sys.getrecursionlimit() - used - 60)


@pytest.mark.parametrize(
    "text",
    [
        "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i FROM r) SELECT COUNT(*) FROM r",
        "SELECT COUNT(*) FROM range(1000000) a, range(1000000) b, range(1000000) c",
    ],
)
def test_endless_queries_are_interrupted(text: str) -> None:
    """Recursion is allowed, since graphs need it; the engine's timer ends what does not end."""
    engine = LockedEngine()
    with pytest.raises(duckdb.InterruptException):
        engine.rows(parse(text).sql, seconds=0.2)
    assert engine.rows("SELECT 1")[1] == [(1,)]
    engine.close()


@pytest.mark.parametrize(
    "text",
    [
        "WITH RECURSIVE r(s) AS (SELECT 'ab' UNION ALL SELECT s || s FROM r) SELECT MAX(LENGTH(s)) "
        "FROM r",
        "WITH RECURSIVE r(s) AS (SELECT [1, 2] UNION ALL SELECT LIST_CONCAT(s, s) FROM r) "
        "SELECT MAX(LEN(s)) FROM r",
        "SELECT LENGTH(STRING_AGG(REPEAT('x', 1000), '')) FROM range(1000000)",
        "SELECT LIST(range(1000)) FROM range(1000000)",
    ],
)
def test_what_grows_without_end_ends_at_the_memory_limit(text: str) -> None:
    engine = LockedEngine()
    with pytest.raises(duckdb.OutOfMemoryException):
        engine.rows(parse(text).sql, seconds=60)
    assert engine.rows("SELECT 1")[1] == [(1,)]
    engine.close()


@pytest.mark.parametrize(
    "condition",
    [
        "n LIKE '%a%a%a%a%a%a%a%a%a%a%b'",
        "n ILIKE '%_a%_a%_a%_a%_a%_a%_b'",
        "n LIKE '%' || n || '%_%_%_%_%_%b'",
        "n GLOB '*a*a*a*a*a*a*a*a*a*b'",
        "n SIMILAR TO '(a*)*(a*)*(a|aa)*b'",
        "n ~ '(a+)+$b'",
        "REGEXP_MATCHES(n, '(a|a)*(a|aa)*(.*)*b$')",
        "REGEXP_REPLACE(n, '(a*)*', 'b', 'g') = 'c'",
    ],
)
def test_patterns_take_no_exponential_time(condition: str) -> None:
    """A pattern is matched inside one step of the engine, where no timer reaches."""
    engine = LockedEngine()
    text = f"SELECT COUNT(*) FROM (SELECT REPEAT('a', 255) AS n) WHERE {condition}"
    assert engine.rows(parse(text).sql, seconds=30)[1] == [(0,)]
    engine.close()
