"""Small tables in HTML, for notebooks and pages: everything escaped, no script, no style. Pure.

Without a style of its own a table looks as the notebook's theme has it, light or dark.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

from mldb.printable import printable

ROWS_MAX: Final = 20
"""Rows of a table that a notebook shows of something by itself."""
CELL_MAX: Final = 120
"""Characters of a cell; what is cut ends in an ellipsis."""


def escaped(value: object, *, limit: int | None = CELL_MAX) -> str:
    """Return *value* as text that means nothing in HTML, also between quotes.

    Control characters and marks that turn the direction of writing are shown as escapes. Cut to
    *limit* characters before it is escaped.
    """
    text = value if isinstance(value, str) else str(value)
    if limit is not None:
        text = text[: limit + 1]  # no name makes the rest of this slow
    return html.escape(printable(text, limit=limit))


def html_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    caption: str = "",
    right: Iterable[str] = (),
    limit: int = ROWS_MAX,
    rest: str = "more",
) -> str:
    """Return a table of the first *limit* rows, and a line that says *rest* where there are others.

    No more of *rows* is taken than one row beyond these. *right*: the columns aligned to the right.
    """
    taken = list(islice(rows, limit + 1))
    aligned = frozenset(right)
    ends = [' align="right"' if column in aligned else "" for column in columns]
    head = "".join(
        f"<th{end}>{escaped(column)}</th>" for column, end in zip(columns, ends, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{end}>{escaped(cell)}</td>" for cell, end in zip(row, ends, strict=True))
        + "</tr>"
        for row in taken[:limit]
    )
    more = ""
    if len(taken) > limit:
        more = f'<tr><td colspan="{len(columns)}">… {escaped(rest)}</td></tr>'
    title = f"<caption>{escaped(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}{more}</tbody></table>"


def html_pairs(pairs: Mapping[str, object], *, caption: str = "") -> str:
    """Return a table of names with their values, a line each."""
    body = "".join(
        f'<tr><th align="left">{escaped(name)}</th><td align="left">{escaped(value)}</td></tr>'
        for name, value in pairs.items()
    )
    title = f"<caption>{escaped(caption)}</caption>" if caption else ""
    return f"<table>{title}<tbody>{body}</tbody></table>"


def html_of(thing: object, make: Callable[[], str]) -> str:
    """Return what *make* makes; where it raises, the plain form of *thing* and what is wrong.

    A notebook shows the traceback of a form that raises in the place of the thing itself: a store
    that was closed, or is damaged, says so in a line.
    """
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to show nothing
        problem = f"{type(error).__name__}: {error}"
    try:
        plain = repr(thing)
    except Exception:  # noqa: BLE001
        plain = f"<{type(thing).__name__}>"
    return f"<pre>{escaped(plain)}\n{escaped(problem, limit=400)}</pre>"
