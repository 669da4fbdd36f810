"""Tables and JSON say what is there, and a terminal obeys nothing that came from a store."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mldb.log.index.address import Lsn
from mldb.tools.cli.output import Output, plain
from mldb.tools.cli.printable import printable
from mldb.tools.cli.values import moment, shown_bytes, shown_shape


@given(st.text())
def test_nothing_printed_moves_a_cursor_or_turns_the_text(text: str) -> None:
    safe = printable(text)
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in safe)
    assert not set(safe) & set("\u202e\u2028\u200b\u2066\ufeff")


def test_escapes_name_what_stood_there() -> None:
    assert printable("a\x1b[2Jb\n\u202ec") == "a\\x1b[2Jb\\n\\u202ec"
    assert printable("long name", limit=5) == "long…"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Lsn(7), 7),
        (math.nan, "NaN"),
        (-math.inf, "-Infinity"),
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        ({"a": (1, None, True)}, {"a": [1, None, True]}),
        (1 + 2j, [1.0, 2.0]),
        (b"\x00\xff", "00ff"),
        (datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=1))), "2026-01-02T02:00:00Z"),
    ],
)
def test_json_holds_every_value(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    json.dumps(plain(value), allow_nan=False)


def test_columns_are_separated_by_tabs_where_nobody_looks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Output(as_json=False).table(("name", "bytes"), [("a\tb", 1), ("c", 20)])
    assert capsys.readouterr().out == "name\tbytes\na\\tb\t1\nc\t20\n"


def test_an_empty_table_says_so_beside_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).table(("name",), [], empty="no tensor")
    found = capsys.readouterr()
    assert (found.out, found.err) == ("", "no tensor\n")


def test_moments() -> None:
    assert moment("head") is None
    assert moment("-1") == -1
    assert moment("3") == 3
    assert not isinstance(moment("3"), Lsn)
    assert moment("lsn:3") == Lsn(3)
    assert isinstance(moment("lsn:3"), Lsn)
    assert moment("tag:3") == "3"
    assert moment("epoch-3") == "epoch-3"
    assert moment("2026-11-30T09:00Z") == datetime(2026, 11, 30, 9, tzinfo=UTC)


@pytest.mark.parametrize("text", ["lsn:", "lsn:x", "2026-11-30T09:00", "2026-13-30", "lsn:٣"])
def test_moments_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        moment(text)


def test_sizes_for_people() -> None:
    assert [shown_bytes(n) for n in (0, 999, 1000, 1536, 20 << 30)] == [
        *("0 B", "999 B", "0.977 KiB", "1.5 KiB", "20 GiB"),
    ]
    assert (shown_shape(()), shown_shape((2, 3))) == ("scalar", "2x3")
