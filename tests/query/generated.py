"""Texts by chance, from a seed: queries of the grammar, and pieces of good and bad ones mixed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from tests.query.attacks import attack_texts
from tests.query.corpus import ORDERS, PLAIN, STARS
from tests.support.queries import TYPES

_WORD = re.compile(r"\s+|\w+|'(?:[^']|'')*'|\"[^\"]*\"|[^\w\s]")
_MOMENTS = ("EPOCH 3", "LSN 17", "TAG 'best'", "TIMESTAMP '2026-01-31'", "EPOCH 3", "EPOCH 7")
_PIECES = (
    *("(", ")", ",", ";", "'", '"', "*", ".", "=", "::", "->", "[", "]", "{", "}", "$1", "?", "@"),
    *("/*", "*/", "--", "\n", "\x00", "\u202e", "ſ", "％", "$$", "E'", "0x", "1e9", "||", "%"),
    *("SELECT", "FROM", "WITH x AS (", "UNION", "LATERAL", "AS OF EPOCH 3", "AS OF", "TABLE"),
    *("information_schema.tables", "read_csv('x')", "'x.csv'", "getenv('HOME')", "PRAGMA"),
    *("range(1000000000)", "repeat('x', 1000000000)", "VALUES (1)", "x -> x", "CASE WHEN", "END"),
    *("tensors", "tensors__0", "duckdb_settings()", "COLUMNS(*)", "DISTINCT ON (", "OVER ()"),
    *("PIVOT", "QUALIFY", "EXCLUDE (std)", "ORDER BY ALL", "INTERVAL", "::STRUCT(a INT)", "#1"),
)


class QueryMaker:
    """Makes texts. Two of one seed make the same ones. One thread."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._texts = [*PLAIN, *ORDERS, *STARS, *attack_texts()]

    def mixed(self) -> str:
        """Return a text that may be anything, often close to a query."""
        chance = self._random
        text = self.query() if chance.random() < 0.4 else chance.choice(self._texts)
        for _ in range(chance.choice((0, 1, 1, 2, 3, 6))):
            text = chance.choice(self._mutations())(text)
        return text[:4000]

    def _mutations(self) -> list[Callable[[str], str]]:
        return [
            self._cut,
            self._spliced,
            self._with_piece,
            self._with_piece,
            self._swapped,
            self._with_noise,
            lambda text: f"SELECT * FROM ({text})",
            lambda text: f"WITH tensors AS ({text}) SELECT * FROM tensors",
            lambda text: f"{text} UNION ALL {self._random.choice(self._texts)}",
            lambda text: f"{text} AS OF {self._random.choice(_MOMENTS)}",
            lambda text: text.swapcase(),
        ]

    def _cut(self, text: str) -> str:
        words = _WORD.findall(text)
        if len(words) < 2:
            return text
        start = self._random.randrange(len(words))
        return "".join(words[:start] + words[start + self._random.randint(1, 4) :])

    def _spliced(self, text: str) -> str:
        first, second = _WORD.findall(text), _WORD.findall(self._random.choice(self._texts))
        at, to = self._random.randint(0, len(first)), self._random.randint(0, len(second))
        return "".join([*first[:at], *second[to:]])

    def _with_piece(self, text: str) -> str:
        words = _WORD.findall(text)
        words.insert(self._random.randint(0, len(words)), f" {self._random.choice(_PIECES)} ")
        return "".join(words)

    def _swapped(self, text: str) -> str:
        words = _WORD.findall(text)
        if len(words) < 2:
            return text
        one, other = self._random.randrange(len(words)), self._random.randrange(len(words))
        words[one], words[other] = words[other], words[one]
        return "".join(words)

    def _with_noise(self, text: str) -> str:
        at = self._random.randint(0, len(text))
        count = self._random.randint(1, 3)
        noise = "".join(
            chr(self._random.choice((34, 39, 40, 41, 46, 59, 955))) for _ in range(count)
        )
        return text[:at] + noise + text[at:]

    # --- the grammar --------------------------------------------------------------------------

    def query(self, depth: int = 2) -> str:
        """Return a query that is well formed, over tables and columns that there are."""
        chance = self._random
        roll = chance.random()
        if roll < 0.12:
            table, columns = self._table()
            moment = chance.choice(("", f" AS OF {chance.choice(_MOMENTS)}"))
            where = chance.choice(("", " WHERE " + self._condition("", columns, 0)))
            return f"SELECT {table}{moment}{where}"
        if depth and roll < 0.2:
            operator = chance.choice(("UNION", "UNION ALL", "EXCEPT", "INTERSECT"))
            return f"(SELECT name FROM {self._source('')}) {operator} ({self._names(depth)})"
        if depth and roll < 0.3:
            return f"WITH x AS ({self._names(depth)}) SELECT x.name FROM x WHERE name > 'a'"
        if depth and roll < 0.35:
            return f"WITH tensors AS ({self._names(depth)}) SELECT name FROM tensors"
        return self._select(depth)

    def _names(self, depth: int) -> str:
        chance = self._random
        table = chance.choice(("tensors", "versions", "metrics", "events", "checkpoints"))
        where = self._condition("", list(TYPES[table].items()), depth - 1)
        return f"SELECT name FROM {self._moment(table)} WHERE {where}"

    def _select(self, depth: int) -> str:
        chance = self._random
        table, columns = self._table()
        text = f"FROM {self._source('a', table)}"
        if chance.random() < 0.35:
            other, more = self._table()
            kind = chance.choice(("JOIN", "LEFT JOIN", "SEMI JOIN"))
            text += f" {kind} {self._source('b', other)} "
            text += chance.choice(("ON a.epoch = b.epoch", "USING (epoch)"))
            if "epoch" not in dict(columns) or "epoch" not in dict(more):
                text = f"FROM {self._source('a', table)}"
        if chance.random() < 0.7:
            text += f" WHERE {self._condition('a.', columns, depth)}"
        shown = [self._value("a.", columns, depth) for _ in range(chance.randint(1, 3))]
        if chance.random() < 0.2:
            shown.append(chance.choice(("*", "a.*")))
        if chance.random() < 0.2:
            key = f"a.{self._quoted(chance.choice(columns)[0])}"
            return (
                f"SELECT {key}, COUNT(*), MAX(a.lsn) {text} GROUP BY {key}"
                if ("lsn" in dict(columns))
                else f"SELECT {key}, COUNT(*) {text} GROUP BY ALL HAVING COUNT(*) > 1"
            )
        order = chance.choice(
            ("", " ORDER BY 1", f" ORDER BY a.{self._quoted(columns[0][0])} DESC")
        )
        limit = chance.choice(("", " LIMIT 5", " LIMIT 3 OFFSET 1"))
        distinct = chance.choice(("", "", "DISTINCT "))
        order = "" if distinct else order
        return f"SELECT {distinct}{', '.join(shown)} {text}{order}{limit}"

    def _table(self) -> tuple[str, list[tuple[str, str]]]:
        table = self._random.choice(list(TYPES))
        return table, list(TYPES[table].items())

    def _source(self, alias: str, table: str | None = None) -> str:
        return f"{self._moment(table or 'tensors', alias)}"

    def _moment(self, table: str, alias: str = "") -> str:
        moment = f" AS OF {self._random.choice(_MOMENTS)}" if self._random.random() < 0.3 else ""
        # With a name behind it, AS OF at the end of the text is not meant for all tables.
        return f"{table}{moment} {alias or ('AS ' + table if moment else '')}".rstrip()

    def _quoted(self, name: str) -> str:
        return f'"{name}"' if not name.isidentifier() or self._random.random() < 0.2 else name

    def _column(self, prefix: str, columns: list[tuple[str, str]], *kinds: str) -> str | None:
        fitting = [name for name, kind in columns if not kinds or kind in kinds]
        if not fitting:
            return None
        use = prefix if self._random.random() < 0.8 else ""
        return f"{use or prefix}{self._quoted(self._random.choice(fitting))}"

    def _value(self, prefix: str, columns: list[tuple[str, str]], depth: int) -> str:
        chance = self._random
        text = self._column(prefix, columns, "VARCHAR")
        number = self._column(prefix, columns, "DOUBLE", "BIGINT", "INTEGER")
        values = [f"{self._column(prefix, columns)}"]
        if text:
            values += [f"UPPER({text})", f"{text} || '.'", f"LPAD({text}, 9, ' ')"]
            values += [f"CASE {text} WHEN 'conv1' THEN 1 END", f"REPLACE({text}, 'c', 'k')"]
        if number:
            values += [f"{number} + 1", f"CAST({number} AS VARCHAR)", f"ROUND({number}, 1)"]
            values += [f"SUM({number}) OVER (ORDER BY {number})", f"COALESCE({number}, 0)"]
        if depth:
            values.append("(SELECT MAX(v.std) FROM versions v)")
            values.append(f"(SELECT COUNT(*) FROM metrics m WHERE m.epoch = {number or 1})")
        return chance.choice(values)

    def _condition(self, prefix: str, columns: list[tuple[str, str]], depth: int) -> str:
        chance = self._random
        text = self._column(prefix, columns, "VARCHAR")
        number = self._column(prefix, columns, "DOUBLE", "BIGINT", "INTEGER")
        choices = ["TRUE"]
        if text:
            choices += [f"{text} = 'conv1'", f"{text} LIKE 'c%'", f"{text} IN ('a.b', 'layer')"]
            choices += [f"{text} = weights", f"{text} <> encoder.layer", f"{text} IN (conv1, d.e)"]
        if number:
            choices += [f"{number} > 1", f"{number} BETWEEN 0 AND 2", f"{number} IS NOT NULL"]
        if depth:
            inner = "SELECT 1 FROM versions v"
            choices.append(f"EXISTS ({inner} WHERE v.std > {number or 0})")
            choices.append(f"NOT ({self._condition(prefix, columns, depth - 1)})")
            joined = chance.choice(("AND", "OR"))
            left, right = (self._condition(prefix, columns, depth - 1) for _ in range(2))
            choices.append(f"({left} {joined} {right})")
        return chance.choice(choices)
