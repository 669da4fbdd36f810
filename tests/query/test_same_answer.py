"""The rewritten SQL says what the text said: the engine gives the same for both.

The text is run on tables that are called as in the text and have all columns; what was made of it
runs on relations that have no more than the columns it says it reads.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from mldb.query.parsed import STATISTICS
from tests.query.corpus import ORDERS, PLAIN, STARS
from tests.support.queries import TYPES, LockedEngine, columns_of, parse


@pytest.fixture(scope="module")
def engine() -> Iterator[LockedEngine]:
    made = LockedEngine()
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole() -> Iterator[LockedEngine]:
    made = LockedEngine()
    with made.tables({table: (table, columns_of(table)) for table in TYPES}):
        yield made
    made.close()


@pytest.mark.parametrize("text", [*PLAIN, *ORDERS, *STARS])
def test_the_engine_answers_the_same(engine: LockedEngine, whole: LockedEngine, text: str) -> None:
    query = parse(text)
    with engine.relations(query):
        names, rows = engine.rows(query.sql)
    expected_names, expected = whole.rows(text)
    assert sorted(map(repr, rows)) == sorted(map(repr, expected))
    assert rows
    assert len(names) == len(expected_names)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM tensors",
        "SELECT * FROM tensors WHERE std > 1 AND mean < 9",
        "SELECT t.* FROM tensors t WHERE t.std > 1 ORDER BY norm",
        "SELECT * EXCLUDE (std) FROM tensors WHERE std >= 0",
        "SELECT * FROM (SELECT * FROM tensors WHERE max > 0)",
        "WITH x AS (SELECT * FROM tensors WHERE max > 0) SELECT x.* FROM x JOIN "
        "(SELECT max(std) AS m FROM tensors) ON m > 0",
    ],
)
def test_a_star_never_has_statistics_whatever_else_a_query_names(
    engine: LockedEngine, text: str
) -> None:
    """A star over a relation with a statistic in it would change with the WHERE behind it."""
    query = parse(text)
    with engine.relations(query):
        names, rows = engine.rows(query.sql)
    assert [n for n in names if n != "m"] == [
        name for name in columns_of("tensors") if name not in STATISTICS
    ]
    assert rows


def test_a_star_and_statistics_of_two_tables(engine: LockedEngine) -> None:
    query = parse(
        "SELECT *, a.std - b.std AS change FROM tensors a JOIN versions AS OF EPOCH 1 b "
        "USING (name) WHERE a.mean > b.mean"
    )
    with engine.relations(query):
        names, _ = engine.rows(query.sql)
    assert names[-1] == "change"
    assert not STATISTICS & set(names)
    assert [sorted(use.named) for use in query.uses] == [["mean", "name", "std"]] * 2


def test_a_metric_called_as_a_statistic_is_in_a_star(engine: LockedEngine) -> None:
    query = parse("SELECT * FROM checkpoints WHERE std > 1")
    with engine.relations(query):
        names, _ = engine.rows(query.sql)
    assert names == columns_of("checkpoints")


def test_arrows_bind_as_the_eye_reads_them(engine: LockedEngine) -> None:
    """To the engine ``detail->>'a' IS NULL`` is ``detail->>('a' IS NULL)``, and an error."""
    query = parse(
        "SELECT detail->>'a' = '1', detail->>'a' IS NULL, NOT detail->>'a' = '1' FROM events "
        "WHERE detail LIKE '{%' AND detail->>'a' = '1'"
    )
    with engine.relations(query):
        _, rows = engine.rows(query.sql)
    assert set(rows) == {(True, False, False)}


def test_texts_and_names_arrive_as_they_are_written(engine: LockedEngine) -> None:
    chance = random.Random(7)
    letters = "ab%_'\"\\\n\t\r {}$:;-/*#@`?é€\u00a0\u2028\U0001f600"
    for _ in range(200):
        word = "".join(chance.choices(letters, k=chance.randint(1, 8)))
        text, name = word.replace("'", "''"), word.replace('"', '""')
        query = parse(f"SELECT '{text}' AS \"{name}\" WHERE '{text}' = '{text}'")
        assert engine.rows(query.sql) == ([word], [(word,)])
