"""Words of the errors: where in the text, and what may have been meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from mldb.errors import QueryError

_SHOWN_MAX = 60
_LISTED_MAX = 40

NUMBERED_NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*\.\d\w*(?:\.\w+)*", re.ASCII)
"""A name such as model.0.weight, which SQL reads as numbers and words."""


def refusal(text: str, offset: int | None, message: str) -> QueryError:
    """Return the error that says *message* of the character at *offset* of *text*."""
    where = "" if offset is None else f"at {place_in(text, offset)}: "
    return QueryError(f"{where}{message.rstrip('.')}.")


def place_in(text: str, offset: int) -> str:
    """Say where *offset* is: ``column 5``, or ``line 2, column 5``; both count from 1."""
    before = text[:offset]
    line, column = before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1
    return f"line {line}, column {column}" if "\n" in text.strip() else f"column {column}"


def shown_word(word: str) -> str:
    """Return *word* for a message: short, printable, in quotes."""
    cut = word if len(word) <= _SHOWN_MAX else word[: _SHOWN_MAX - 1] + "…"
    return "'" + "".join(one if one.isprintable() else "?" for one in cut) + "'"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'type'?`` where one of *known* is close to *word*, else a dot."""
    close = difflib.get_close_matches(word[:_SHOWN_MAX].lower(), list(known), n=1, cutoff=0.7)
    return f"; did you mean {shown_word(close[0])}?" if close else "."


def comma_list(names: Iterable[str]) -> str:
    """Return *names* with commas; the first of many."""
    found = list(names)
    more = f" and {len(found) - _LISTED_MAX} more" if len(found) > _LISTED_MAX else ""
    return ", ".join(shown_word(name)[1:-1] for name in found[:_LISTED_MAX]) + more
