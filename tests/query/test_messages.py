"""What a refusal says: where, what, and what to write instead."""

from __future__ import annotations

import pytest

from mldb.errors import QueryError
from tests.support.queries import parse

MESSAGES = [
    ("SELECT nam FROM tensors", "at column 8: unknown column 'nam'; did you mean 'name'?"),
    ("SELECT t.typ FROM tensors t", "at column 8: unknown column 'typ'; did you mean 'type'?"),
    ("SELECT name\nFROM tensors\nWHERE tpye = 3", "at line 3, column 7: unknown column 'tpye'"),
    ("SELECT tensors WHERE typ=weights", "at column 22: unknown column 'typ'; did you mean 'type'"),
    ("SELECT tensors WHERE weights=type", "at column 22: unknown column 'weights'"),
    ("SELECT nam FROM tensors", "The columns of tensors are name, type, layer, position"),
    ("SELECT note FROM versions", "unknown column 'note'. The columns of versions are name, lsn"),
    ("SELECT x.name FROM tensors t", "there is no table 'x' here. The tables of this FROM are t"),
    ("SELECT name FROM tensor", "there is no table 'tensor'; did you mean 'tensors'?"),
    ("SELECT name FROM 'x.csv'", "there is no table 'x.csv'. The tables are tensors, versions"),
    ("WITH a AS (SELECT 1) SELECT 1 FROM b", "splats, segments, a."),
    ("SELECT name FROM main.tensors", "a table is one name, such as tensors"),
    ("SELECT tensor WHERE type=layer", "SELECT tensors WHERE type=weights, where the word behind"),
    ("SELECT tensor WHERE type=layer", "there is no column 'tensor' without a table; did you mean"),
    ("SELECT tensors WHERE name=model.0.weight", "at column 27: model.0.weight has a number"),
    ("SELECT name FROM tensors WHERE name=model.0.weight", "write 'model.0.weight'"),
    ("SELECT tensors WHERE name IN (a.b, layers.10.w)", "write 'layers.10.w'"),
    ("SELECT tensors WHERE name=model.0", "write 'model.0'"),
    ("SELECT tensors WHERE name LIKE enc%", "write name LIKE 'enc%'"),
    ("SELECT tensors WHERE type=order", "As text write 'order' in single quotes"),
    ("SELECT tensors WHERE type=select", "As text write 'select' in single quotes"),
    ("SELECT name FROM tensors; DROP TABLE tensors", "at column 27: a second statement starts at"),
    ("DROP TABLE tensors", "a query starts with SELECT, not with 'DROP'"),
    ("WITH x AS (DELETE FROM tensors) SELECT 1", "is made by SELECT, not by 'DELETE'"),
    (
        "SELECT getenv('HOME')",
        "at column 8: the function 'getenv' cannot be used: it reads or sets",
    ),
    ("SELECT * FROM read_csv('x')", "at column 15: the function 'read_csv' cannot be used: it r"),
    ("SELECT uper(name) FROM tensors", "no function 'uper' in queries; did you mean 'upper'?"),
    ("SELECT list_aggregate(shape, 'sum') FROM tensors", "use list_sum, list_max"),
    ("SELECT levenshtein('a', 'b')", "cannot be interrupted"),
    ("SELECT repeat('a', 100000)", "the length given to repeat must be a number written in the q"),
    ("SELECT range(nbytes) FROM tensors", "range takes whole numbers written in the query"),
    (
        "SELECT replace(name, 'a', type) FROM tensors",
        "the third argument of replace must be a text",
    ),
    ("SELECT * FROM upper('x')", "'upper' gives no table; of functions, range, generate_series do"),
    ("SELECT sum(*) FROM tensors", "sum(*) is not possible; name a column"),
    ("SELECT CAST(name AS STRUCT(a INT)) FROM tensors", "this type cannot be cast to"),
    ("SELECT $1", "parameters are not; write the value itself"),
    ("SELECT tensors FROM tensors", "'tensors' is a table; write a column of it"),
    ("SELECT name FROM tensors NATURAL JOIN versions", "NATURAL JOIN is not allowed; write JOIN"),
    (
        "SELECT name FROM tensors, tensors",
        "two tables are called 'tensors'. Give each its own name",
    ),
    ("SELECT name FROM tensors t(a)", "columns get other names behind SELECT"),
    ("SELECT name FROM tensors USING SAMPLE 3", "'SAMPLE' cannot be used"),
    ("SELECT std FROM (SELECT * FROM tensors)", "a star leaves them out"),
    ("SELECT 1 FROM tensors LEFT JOIN versions", "at column 33: JOIN needs a condition: write US"),
    ("SELECT 0xFF", "at column 8: '0xFF' is neither a number nor a name"),
    ("SELECT name, 'a FROM tensors", "quotes or a comment have no end"),
    ("", "the query is empty. Write SELECT name FROM tensors"),
    (" ; ;", "the query is empty"),
    ("SELECT 'a\x00'", "at column 10: the query holds the character U+0000"),
    ("SELECT name FROM tensors AS OF 3", "AS OF is not complete. Write AS OF EPOCH 3, AS OF LSN"),
    ("SELECT name FROM tensors AS OF TAG best", "at column 26: AS OF is not complete"),
    ("SELECT name FROM tensors AS OF EPOCH 1.5", "takes a whole number from 0 to 2^63 - 1"),
    ("SELECT name FROM tensors AS OF TIMESTAMP 'noon'", "AS OF TIMESTAMP cannot read 'noon'"),
    (
        "SELECT name FROM tensors AS OF EPOCH 3 AS OF EPOCH 4",
        "at column 40: one table has two AS OF",
    ),
    (
        "SELECT 1 FROM tensors, versions AS OF EPOCH 3",
        "for versions alone or for all tables. For ve",
    ),
    (
        "SELECT 1 FROM tensors, versions AS OF EPOCH 3",
        "alone write AS OF EPOCH 3 AS v, with any na",
    ),
    ("SELECT name AS OF EPOCH 3 FROM tensors", "AS OF EPOCH 3 stands behind no table"),
    (
        "SELECT 1 FROM tensors AS OF EPOCH 3 t WHERE name = 'a' AS OF EPOCH 4",
        "every table has an AS OF of its own already",
    ),
]


@pytest.mark.parametrize("text, words", MESSAGES)
def test_a_refusal_says_where_what_and_what_instead(text: str, words: str) -> None:
    with pytest.raises(QueryError) as caught:
        parse(text)
    assert words in str(caught.value)


def test_names_in_messages_are_short_and_printable() -> None:
    with pytest.raises(QueryError) as caught:
        parse('SELECT "' + "\u202ex\u0085" + "y" * 5_000 + '" FROM tensors')
    message = str(caught.value)
    assert message.isprintable()
    assert "?x?yyy" in message
    assert len(message) < 600
