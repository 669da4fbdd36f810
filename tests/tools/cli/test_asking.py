"""The command query: tables, TSV, CSV and JSON of what a SELECT answers, and its errors marked."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mldb
from mldb.tools.cli.main import USAGE

Run = Callable[..., Any]


def test_rows_are_separated_by_tabs_where_nobody_looks(ran: Run, store: str) -> None:
    found = ran(
        "query", store, "SELECT name, shape, mean, layer FROM tensors WHERE type = 'weights'"
    )
    assert (found.status, found.err) == (0, "")
    assert found.out == "name\tshape\tmean\tlayer\nconv1_weights\t[4, 8]\t4\tconv1\n"


def test_the_short_form_and_a_moment(ran: Run, store: str) -> None:
    text = "SELECT versions WHERE name = conv1_weights ORDER BY lsn"
    assert ran("query", store, text, "--json").json["count"] == 4
    found = ran("query", store, text, "--as-of", "2", "--json").json
    assert [row[found["columns"].index("epoch")] for row in found["rows"]] == [1, 2]


def test_csv_is_read_back(ran: Run, store: str) -> None:
    with mldb.open(store, durability="os") as db:
        db.store_tensor('a,"b\u202e', np.zeros(2))
    found = ran("query", store, "SELECT name, layer, shape FROM tensors ORDER BY name", "--csv")
    rows = list(csv.reader(io.StringIO(found.out)))
    assert rows[0] == ["name", "layer", "shape"]
    assert rows[1] == ['a,"b\u202e', "", "[2]"], "for a program, as it is"
    assert ran("query", store, "SELECT 1 AS x", "--csv", "--json").status == USAGE


def test_a_limit_says_how_many_more_there_are(ran: Run, store: str) -> None:
    found = ran("query", store, "SELECT epoch FROM versions ORDER BY lsn", "--limit", "3")
    assert len(found.out.splitlines()) == 4
    assert found.err == "5 more rows; --limit shows them\n"
    limited = ran("query", store, "SELECT epoch FROM versions", "-n", "1", "--json").json
    assert (len(limited["rows"]), limited["count"]) == (1, 8)
    nothing = ran("query", store, "SELECT name FROM tensors WHERE epoch > 99")
    assert (nothing.out, nothing.err) == ("", "no row\n")


def test_the_text_comes_from_a_file_or_stdin(
    ran: Run, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\ufeffSELECT name FROM tensors\nWHERE type = 'biases'\n"
    (tmp_path / "q.sql").write_text(text, encoding="utf-8")
    expected = "name\nconv1_biases\n"
    assert ran("query", store, f"@{tmp_path / 'q.sql'}").out == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert ran("query", store, "-").out == expected
    assert ran("query", store, f"@{tmp_path / 'none.sql'}").status == USAGE
    (tmp_path / "q.sql").write_bytes(b"SELECT \xff")
    assert "UTF-8" in ran("query", store, f"@{tmp_path / 'q.sql'}").err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("SELECT nam FROM tensors", ["  SELECT nam FROM tensors", "         ^"]),
        ("SELECT name,\n  nam\nFROM tensors", ["    nam", "    ^"]),
        ("\nSELECT\tnam FROM tensors", ["  SELECT\\tnam FROM tensors", "          ^"]),
    ],
)
def test_the_place_of_an_error_is_marked(ran: Run, store: str, text: str, shown: list[str]) -> None:
    found = ran("query", store, text)
    assert (found.status, found.out) == (USAGE, "")
    message, *lines = found.err.splitlines()
    assert "nam" in message
    assert lines == shown


def test_the_place_is_shown_with_what_stands_around_it(ran: Run, store: str) -> None:
    text = f"SELECT name FROM tensors WHERE {' OR '.join(['epoch = 1'] * 90)} OR nam = 2"
    lines = ran("query", store, text).err.splitlines()
    assert lines[1].index("nam") == lines[2].index("^")
    assert len(lines[1]) < 130


@pytest.mark.parametrize(
    "text",
    ["", "DROP TABLE tensors", "SELECT * FROM read_csv('x')", "SELECT getenv('HOME')", "x" * 5000],
)
def test_what_is_not_allowed_is_a_mistake_of_the_call(ran: Run, store: str, text: str) -> None:
    found = ran("query", store, text)
    assert (found.status, found.out) == (USAGE, "")
    assert found.err


def test_hostile_names_are_escaped(ran: Run, store: str) -> None:
    with mldb.open(store, durability="os") as db:
        db.store_tensor("turn\u202eed", np.zeros(2), {"note": "\x1b[2J"})
    out = ran("query", store, "SELECT name, note FROM tensors WHERE note IS NOT NULL").out
    assert out.splitlines()[1] == "turn\\u202eed\t\\x1b[2J"
