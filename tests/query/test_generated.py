"""Texts by the thousand: only QueryError comes out, and what passes reads only what it says.

What passed is read again by the engine's own parser, which has no part in the allow-list; some of
it is run, once on relations that have no more columns than the query says it reads, and once on
relations that have all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import duckdb
import pytest

from mldb.errors import QueryError
from mldb.query.functions import FUNCTIONS
from mldb.query.parsed import ParsedQuery, fold_name
from tests.query.generated import QueryMaker
from tests.support.queries import (
    TYPES,
    EngineReader,
    LockedEngine,
    columns_of,
    parse,
    relation_columns,
)

SEED = 12
# What the engine's parser makes of operators and syntax.
SYNTAX = frozenset(
    {
        *(
            "count_star",
            "list_value",
            "array_extract",
            "array_slice",
            "struct_extract",
            "list_pack",
        ),
        *("->>", "->", "json_extract", "regexp_full_match", "regexp_matches", "~~", "!~~", "~~~"),
        *("~~*", "!~~*", "like_escape", "not_like_escape", "ilike_escape", "not_ilike_escape"),
        *("+", "-", "*", "/", "//", "%", "^", "**", "||", "&", "|", "~", "<<", ">>", "^@", "row"),
        *("date_part", "get_current_time", "get_current_timestamp", "current_date", "unnest"),
        *("add", "subtract", "multiply", "divide", "mod", "pow", "power", "concat", "starts_with"),
        *("to_years", "to_months", "to_days", "to_hours", "to_minutes", "to_seconds", "to_weeks"),
        *("to_quarters", "to_decades", "to_milliseconds", "to_microseconds", "trunc", "strptime"),
        *("current_time", "current_timestamp", "timezone", "grouping", "list_contains", "contains"),
    }
)


@pytest.fixture(scope="module")
def reader() -> Iterator[EngineReader]:
    made = EngineReader()
    yield made
    made.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[LockedEngine]:
    made = LockedEngine()
    yield made
    made.close()


def check_reads_only_its_relations(query: ParsedQuery, reader: EngineReader) -> bool:
    """Compare what the engine's parser sees in *query* with what it says; False if it sees none."""
    parts = reader.parts(query.sql)
    if parts is None:
        return False
    relations = {use.relation for use in query.uses}
    read = {name for name in parts["tables"] if fold_name(name) not in parts["with"]}
    assert read == relations, query.sql
    assert parts["sources"] <= {"range", "generate_series", "unnest"}, query.sql
    assert parts["calls"] <= FUNCTIONS | SYNTAX, query.sql
    for use in query.uses:
        columns = {fold_name(name) for name in columns_of(use.table)}
        assert use.named <= columns
        assert use.columns in (None, use.named)
    return True


def _run_generated(count: int, seed: int, reader: EngineReader) -> tuple[int, int]:
    maker, accepted, seen = QueryMaker(seed), 0, 0
    for _ in range(count):
        text = maker.mixed()
        try:
            query = parse(text)
        except QueryError as error:
            assert str(error).endswith("."), text
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}: {text!r}") from error
        accepted += 1
        seen += check_reads_only_its_relations(query, reader)
    return accepted, seen


@pytest.mark.slow
def test_generated_texts_end_in_a_query_or_a_query_error(
    reader: EngineReader, caplog: pytest.LogCaptureFixture
) -> None:
    print(f"seed {SEED}")
    with caplog.at_level(logging.DEBUG):
        accepted, seen = _run_generated(2_500, SEED, reader)
    assert not caplog.records  # the parser logs what it does not know, to the user's screen
    assert accepted > 400
    assert seen > 0.8 * accepted


@pytest.mark.large
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_generated_texts(seed: int, reader: EngineReader) -> None:
    began = time.monotonic()
    accepted, seen = _run_generated(20_000, seed, reader)
    print(
        f"seed {seed}: {accepted} of 20,000 accepted, {seen} known to the engine's parser, "
        f"{time.monotonic() - began:.1f} s"
    )
    assert accepted > 3_000
    assert seen > 0.8 * accepted


def test_queries_of_the_grammar_are_accepted(reader: EngineReader) -> None:
    print(f"seed {SEED}")
    maker = QueryMaker(SEED)
    for _ in range(500):
        text = maker.query()
        query = parse(text)
        assert check_reads_only_its_relations(query, reader), text


def _outcome(engine: LockedEngine, query: ParsedQuery, *, whole: bool) -> object:
    made = {
        use.relation: (
            use.table,
            columns_of(use.table) if whole and use.columns is not None else relation_columns(use),
        )
        for use in query.uses
    }
    with engine.tables(made):
        try:
            names, rows = engine.rows(query.sql, seconds=2)
        except duckdb.InterruptException:
            return "interrupted"
        except duckdb.Error as error:
            return type(error)
    return names, sorted(map(repr, rows))


def _compare(engine: LockedEngine, texts: Iterator[str], count: int) -> int:
    """Run *count* queries of *texts* on narrow and on whole relations; return how many answered."""
    answered = 0
    before = engine.state()
    while count:
        text = next(texts)
        try:
            query = parse(text)
        except QueryError:
            continue
        if "random" in query.sql or "LIMIT" in query.sql.upper():
            continue  # may differ from run to run
        count -= 1
        narrow = _outcome(engine, query, whole=False)
        if narrow != "interrupted":
            assert narrow == _outcome(engine, query, whole=True), text
        answered += isinstance(narrow, tuple)
    assert engine.state() == before
    return answered


@pytest.mark.slow
def test_the_columns_of_a_query_are_all_that_it_needs(engine: LockedEngine) -> None:
    print(f"seed {SEED}")
    maker = QueryMaker(SEED)
    assert _compare(engine, iter(maker.query, None), 80) > 70


@pytest.mark.slow
def test_what_passes_of_mixed_texts_changes_nothing(engine: LockedEngine) -> None:
    print(f"seed {SEED}")
    maker = QueryMaker(SEED + 1)
    assert _compare(engine, iter(maker.mixed, None), 50) > 15


@pytest.mark.large
def test_many_queries_on_the_engine(engine: LockedEngine) -> None:
    maker = QueryMaker(99)
    assert _compare(engine, iter(maker.query, None), 3_000) > 2_600
    assert _compare(engine, iter(maker.mixed, None), 1_500) > 400


def test_the_tables_of_these_tests_are_those_of_queries() -> None:
    assert set(TYPES) == {"tensors", "versions", "relationships", "checkpoints", "metrics",
                          "events", "splats", "segments"}  # fmt: skip
