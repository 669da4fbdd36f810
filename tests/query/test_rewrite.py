"""Texts, and what they come to: the contract with the engine, word by word."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from mldb.errors import QueryError
from mldb.log.index.address import Lsn
from mldb.query.parsed import STATISTICS, ParsedQuery, TableUse, fold_name
from mldb.query.rewrite import parse_query
from tests.support.queries import columns_of, parse

AsOf = int | Lsn | datetime | str | None
ROOT = Path(__file__).resolve().parents[2]


def use(
    table: str, number: int, columns: str, as_of: AsOf = None, *, star: bool = False
) -> TableUse:
    names = frozenset(columns.split())
    return TableUse(table, f"{table}__{number}", as_of, None if star else names, names)


CASES: list[tuple[str, str, list[TableUse]]] = [
    # --- the short form
    (
        "SELECT tensors WHERE type=weights ORDER BY creation_time",
        """SELECT * FROM "tensors__0" AS "tensors" WHERE "type" = 'weights' """
        """ORDER BY "creation_time\"""",
        [use("tensors", 0, "type creation_time", star=True)],
    ),
    (
        "SELECT tensors WHERE type=layer ORDER BY position",
        """SELECT * FROM "tensors__0" AS "tensors" WHERE "type" = 'layer' ORDER BY "position\"""",
        [use("tensors", 0, "type position", star=True)],
    ),
    (
        "select Tensors where layer in (conv1, Conv2) and name <> encoder.layer.weight limit 3",
        """SELECT * FROM "tensors__0" AS "Tensors" WHERE "layer" IN ('conv1', 'Conv2') """
        """AND "name" <> 'encoder.layer.weight' LIMIT 3""",
        [use("tensors", 0, "layer name", star=True)],
    ),
    (
        "SELECT tensors AS OF EPOCH 3 WHERE (type = (weights))",
        """SELECT * FROM "tensors__0" AS "tensors" WHERE ("type" = 'weights')""",
        [use("tensors", 0, "type", 3, star=True)],
    ),
    (
        "SELECT tensors WHERE name BETWEEN a.b AND c AND layer LIKE conv AS OF LSN 17",
        """SELECT * FROM "tensors__0" AS "tensors" WHERE "name" BETWEEN 'a.b' AND 'c' """
        """AND "layer" LIKE 'conv'""",
        [use("tensors", 0, "name layer", Lsn(17), star=True)],
    ),
    (
        'SELECT tensors WHERE "type" = "layer"',
        """SELECT * FROM "tensors__0" AS "tensors" WHERE "type" = "layer\"""",
        [use("tensors", 0, "type layer", star=True)],
    ),
    (
        "SELECT metrics WHERE name=loss AND epoch > 3",
        """SELECT * FROM "metrics__0" AS "metrics" WHERE "name" = 'loss' AND "epoch" > 3""",
        [use("metrics", 0, "name epoch", star=True)],
    ),
    (
        "SELECT tensors WHERE std > 1 AND name IN (SELECT name FROM versions WHERE dtype=float32)",
        """SELECT * EXCLUDE ("tensors"."std") FROM "tensors__0" AS "tensors" WHERE "std" > 1 """
        """AND "name" IN (SELECT "name" FROM "versions__0" AS "versions" """
        """WHERE "dtype" = 'float32')""",
        [use("tensors", 0, "std name", star=True), use("versions", 0, "name dtype")],
    ),
    (
        "SELECT segments",
        'SELECT * FROM "segments__0" AS "segments"',
        [use("segments", 0, "", star=True)],
    ),
    # --- moments
    (
        "SELECT a.name FROM tensors AS OF EPOCH 3 a JOIN tensors AS OF EPOCH 7 b USING (name)",
        'SELECT "a"."name" FROM "tensors__0" AS "a" JOIN "tensors__1" AS "b" USING ("name")',
        [use("tensors", 0, "name", 3), use("tensors", 1, "name", 7)],
    ),
    (
        "SELECT a.name FROM tensors a AS OF EPOCH 3 JOIN tensors AS b AS OF LSN 3 USING (name)",
        'SELECT "a"."name" FROM "tensors__0" AS "a" JOIN "tensors__1" AS "b" USING ("name")',
        [use("tensors", 0, "name", 3), use("tensors", 1, "name", Lsn(3))],
    ),
    (
        "SELECT a.std FROM tensors a JOIN versions v USING (name) AS OF TAG 'it''s best'",
        'SELECT "a"."std" FROM "tensors__0" AS "a" JOIN "versions__0" AS "v" USING ("name")',
        [use("tensors", 0, "std name", "it's best"), use("versions", 0, "name", "it's best")],
    ),
    (
        "SELECT a.std FROM tensors as of epoch 1 a JOIN versions v USING (name) as of epoch 2;",
        'SELECT "a"."std" FROM "tensors__0" AS "a" JOIN "versions__0" AS "v" USING ("name")',
        [use("tensors", 0, "std name", 1), use("versions", 0, "name", 2)],
    ),
    (
        "SELECT name FROM tensors EXCEPT (SELECT name FROM tensors AS OF EPOCH 3)",
        'SELECT "name" FROM "tensors__0" AS "tensors" EXCEPT '
        '(SELECT "name" FROM "tensors__1" AS "tensors")',
        [use("tensors", 0, "name"), use("tensors", 1, "name", 3)],
    ),
    (
        "SELECT name FROM tensors EXCEPT SELECT name FROM tensors AS OF EPOCH 3 AS t",
        'SELECT "name" FROM "tensors__0" AS "tensors" EXCEPT '
        'SELECT "name" FROM "tensors__1" AS "t"',
        [use("tensors", 0, "name"), use("tensors", 1, "name", 3)],
    ),
    (
        "WITH old AS (SELECT name, std FROM tensors AS OF EPOCH 3) "
        "SELECT n.name FROM tensors n JOIN old o USING (name) WHERE n.std > o.std",
        'WITH "with__old" AS (SELECT "name", "std" FROM "tensors__0" AS "tensors") SELECT '
        '"n"."name" FROM "tensors__1" AS "n" JOIN "with__old" AS "o" USING ("name") '
        'WHERE "n"."std" > "o"."std"',
        [use("tensors", 0, "name std", 3), use("tensors", 1, "name std")],
    ),
    (
        "SELECT name FROM (SELECT name FROM versions WHERE std > 1) AS OF EPOCH 3",
        'SELECT "name" FROM (SELECT "name" FROM "versions__0" AS "versions" WHERE "std" > 1)',
        [use("versions", 0, "name std", 3)],
    ),
    (
        "SELECT name FROM tensors t WHERE EXISTS "
        "(SELECT 1 FROM versions AS OF TIMESTAMP '2026-01-31' v WHERE v.name = t.name)",
        'SELECT "name" FROM "tensors__0" AS "t" WHERE EXISTS(SELECT 1 FROM "versions__0" AS "v" '
        'WHERE "v"."name" = "t"."name")',
        [use("tensors", 0, "name"), use("versions", 0, "name", datetime(2026, 1, 31, tzinfo=UTC))],
    ),
    (
        "SELECT 'AS OF EPOCH 3' AS of FROM tensors",
        """SELECT 'AS OF EPOCH 3' AS "of" FROM "tensors__0" AS "tensors\"""",
        [use("tensors", 0, "")],
    ),
    # --- bare words where there is a FROM
    (
        "SELECT name FROM tensors WHERE type=weights AND layer=encoder.layer AND dtype='x'",
        """SELECT "name" FROM "tensors__0" AS "tensors" WHERE "type" = 'weights' """
        """AND "layer" = 'encoder.layer' AND "dtype" = 'x'""",
        [use("tensors", 0, "name type layer dtype")],
    ),
    (
        "SELECT name FROM tensors WHERE type=layer",
        'SELECT "name" FROM "tensors__0" AS "tensors" WHERE "type" = "layer"',
        [use("tensors", 0, "name type layer")],
    ),
    (
        "SELECT upper(name) AS big FROM tensors WHERE type = big",
        'SELECT upper("name") AS "big" FROM "tensors__0" AS "tensors" WHERE "type" = "big"',
        [use("tensors", 0, "name type")],
    ),
    (
        "SELECT t.name FROM tensors t, (SELECT max(std) FROM versions) v WHERE t.type = weights",
        'SELECT "t"."name" FROM "tensors__0" AS "t", (SELECT max("std") FROM "versions__0" AS '
        '"versions") AS "v" WHERE "t"."type" = "weights"',
        [use("tensors", 0, "name type"), use("versions", 0, "std")],
    ),
    # --- columns
    (
        "SELECT COUNT(*) FROM versions",
        'SELECT COUNT(*) FROM "versions__0" AS "versions"',
        [use("versions", 0, "")],
    ),
    (
        "SELECT *, std FROM tensors WHERE mean > 1",
        'SELECT * EXCLUDE ("tensors"."mean", "tensors"."std"), "std" FROM "tensors__0" AS '
        '"tensors" WHERE "mean" > 1',
        [use("tensors", 0, "std mean", star=True)],
    ),
    (
        "SELECT t.* EXCLUDE (std, lsn) FROM tensors t WHERE t.std > 1",
        'SELECT "t".* EXCLUDE ("lsn", "std") FROM "tensors__0" AS "t" WHERE "t"."std" > 1',
        [use("tensors", 0, "std", star=True)],
    ),
    (
        'SELECT NAME, "STD", NOTE, "odd-key" FROM "Tensors"',
        'SELECT "NAME", "STD", "NOTE", "odd-key" FROM "tensors__0" AS "Tensors"',
        [
            TableUse(
                "tensors", "tensors__0", None, n := frozenset(["name", "std", "note", "odd-key"]), n
            )
        ],
    ),
    (
        "SELECT name FROM tensors t WHERE EXISTS (SELECT std FROM metrics m WHERE value > lr)",
        'SELECT "name" FROM "tensors__0" AS "t" WHERE EXISTS(SELECT "std" FROM "metrics__0" AS '
        '"m" WHERE "value" > "lr")',
        [use("tensors", 0, "name std lr"), use("metrics", 0, "value")],
    ),
    (
        "SELECT sum(a.std) OVER (PARTITION BY a.layer ORDER BY a.time) FROM tensors a "
        "QUALIFY a.lsn > 1",
        'SELECT sum("a"."std") OVER (PARTITION BY "a"."layer" ORDER BY "a"."time") FROM '
        '"tensors__0" AS "a" QUALIFY "a"."lsn" > 1',
        [use("tensors", 0, "std layer time lsn")],
    ),
    # --- names in each other's way
    (
        "WITH tensors AS (SELECT * FROM tensors WHERE epoch > 3) SELECT name FROM tensors",
        'WITH "with__tensors" AS (SELECT * FROM "tensors__0" AS "tensors" WHERE "epoch" > 3) '
        'SELECT "name" FROM "with__tensors" AS "tensors"',
        [use("tensors", 0, "epoch", star=True)],
    ),
    (
        "WITH tensors__0 AS (SELECT 1 AS x) SELECT t.name FROM tensors t, tensors__0",
        'WITH "with__tensors__0" AS (SELECT 1 AS "x") SELECT "t"."name" FROM "tensors__1" AS "t", '
        '"with__tensors__0" AS "tensors__0"',
        [use("tensors", 1, "name")],
    ),
    (
        "SELECT a.name FROM tensors a, tensors b WHERE a.std > b.mean",
        'SELECT "a"."name" FROM "tensors__0" AS "a", "tensors__0" AS "b" '
        'WHERE "a"."std" > "b"."mean"',
        [use("tensors", 0, "name std mean")],
    ),
    ("SELECT 1 + 1", "SELECT 1 + 1", []),
]


@pytest.mark.parametrize("text, sql, uses", CASES, ids=[case[0] for case in CASES])
def test_what_a_text_comes_to(text: str, sql: str, uses: list[TableUse]) -> None:
    is_short = text.lower().startswith(("select tensors", "select metrics", "select segments"))
    assert parse(text) == ParsedQuery(sql, tuple(uses), is_short)


def test_an_epoch_and_an_lsn_of_one_number_are_two_moments() -> None:
    first, second = parse("SELECT 1 FROM tensors AS OF EPOCH 3 a, tensors AS OF LSN 3 b").uses
    assert (type(first.as_of), type(second.as_of)) == (int, Lsn)
    assert first.relation != second.relation


@pytest.mark.parametrize(
    "words, moment",
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31 12:30", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        ("2026-01-31T12:30:05.25Z", datetime(2026, 1, 31, 12, 30, 5, 250_000, tzinfo=UTC)),
        (
            "2026-01-31 12:30+02:00",
            datetime(2026, 1, 31, 12, 30, tzinfo=timezone(timedelta(hours=2))),
        ),
    ],
)
def test_timestamps_are_utc_unless_they_say_otherwise(words: str, moment: datetime) -> None:
    (found,) = parse(f"SELECT name FROM tensors AS OF TIMESTAMP '{words}'").uses
    assert found.as_of == moment
    assert isinstance(found.as_of, datetime)
    assert found.as_of.tzinfo is not None


def test_the_short_form_may_give_the_first_column_alone() -> None:
    text = "SELECT relationships WHERE kind=feeds_into ORDER BY lsn"
    query = parse_query(text, columns_of, first_only=True)
    assert query.sql == (
        'SELECT "source" FROM "relationships__0" AS "relationships" '
        """WHERE "kind" = 'feeds_into' ORDER BY "lsn\""""
    )
    assert query.uses == (use("relationships", 0, "source kind lsn"),)
    long = "SELECT name FROM tensors"
    assert parse_query(long, columns_of, first_only=True) == parse(long)


def test_columns_are_asked_for_once_for_each_table_that_is_used() -> None:
    asked: list[str] = []

    def columns(table: str) -> list[str]:
        asked.append(table)
        return columns_of(table)

    parse_query("SELECT a.name FROM tensors a, tensors b, (SELECT name FROM versions) c", columns)
    assert asked == ["tensors", "versions"]
    asked.clear()
    parse_query("SELECT tensors WHERE type=x", columns, first_only=True)
    assert asked == ["tensors"]


def test_what_columns_of_raises_comes_through() -> None:
    def broken(table: str) -> list[str]:
        raise OSError(table)

    with pytest.raises(OSError, match="tensors"):
        parse_query("SELECT name FROM tensors", broken)


def test_a_query_is_a_str() -> None:
    for wrong in (None, b"SELECT 1", 3, ["SELECT 1"]):
        with pytest.raises(QueryError, match="a query is a str"):
            parse_query(wrong, columns_of)  # type: ignore[arg-type]


def test_names_fold_as_the_engine_folds_them() -> None:
    """The engine takes Ä and ä for two names: it folds ASCII alone."""
    assert fold_name("Layer.É") == "layer.É"
    assert parse_query('SELECT "É" FROM tensors', lambda _: ["name", "É"]).sql
    with pytest.raises(QueryError, match="unknown column 'é'"):
        parse_query('SELECT "é" FROM tensors', lambda _: ["name", "É"])


def test_statistics_are_columns_that_the_tables_have() -> None:
    assert set(columns_of("tensors")) >= STATISTICS
    assert set(columns_of("versions")) >= STATISTICS


def test_the_parser_is_imported_by_the_first_query() -> None:
    script = (
        "import sys\n"
        "from mldb.query.rewrite import parse_query\n"
        "assert 'sqlglot' not in sys.modules\n"
        "parse_query('SELECT name FROM tensors', lambda table: ['name'])\n"
        "assert 'sqlglot' in sys.modules and 'duckdb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_threads_parse_at_once() -> None:
    texts = [
        f"SELECT name, std + {i} AS x{i} FROM tensors AS OF EPOCH {i} t WHERE type = w{i}"
        for i in range(8)
    ]
    expected = [parse(text) for text in texts]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(parse, texts * 20))
    finally:
        sys.setswitchinterval(interval)
    assert found == expected * 20
