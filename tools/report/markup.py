"""Text and figures as HTML. Pure. Whatever comes from a store passes through here.

Names and metadata may hold anything that is UTF-8: markup, quotation marks, marks that turn the
direction of writing, a megabyte of text. Here they become harmless and of bounded length.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

from mldb.tools.cli.output import plain
from mldb.tools.cli.printable import printable

NAME_MAX: Final = 100
"""Characters of a name that are shown, in text and in tables."""

_NOT_OF_HTML: Final = re.compile("[\ufdd0-\ufdef\ufffe\uffff]")


def safe(text: object, limit: int = NAME_MAX) -> str:
    """Return text for an element or a quoted attribute: escaped, cut, without marks that act."""
    return escape(_NOT_OF_HTML.sub("\ufffd", printable(str(text), limit=limit)), quote=True)


def script_json(value: Any) -> str:
    """Return JSON to stand inside a script element, which nothing in it can end."""
    text = json.dumps(plain(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def slug(kind: str, number: int) -> str:
    """Return an id of the page: never made of a name, so that no name can be one."""
    return f"{kind}-{number}"


def figure_text(value: float | None, digits: int = 4) -> str:
    """A number for people: four digits, ``-`` for none, NaN and the infinities by name."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.{digits}g}"


def short_count(value: float) -> str:
    """A count for people: ``950``, ``12.3 k``, ``10.5 M``, ``2.1 G``."""
    for unit in ("", " k", " M", " G"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.4g} T"


def counted(count: int, what: str) -> str:
    """A number of things: ``1 tag``, ``2 tags``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str, text: int = 1
) -> str:
    """Return a table; the first *text* columns are text, the others numbers, aligned right."""
    head = "".join(
        f'<th scope="col"{"" if at < text else _NUMBER}>{safe(name)}</th>'
        for at, name in enumerate(columns)
    )
    lines = []
    for row in rows:
        cells = [
            f"<td{'' if at < text else _NUMBER}>{safe(cell)}</td>" for at, cell in enumerate(row)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{safe(caption)}"><table>'
        f"<caption>{safe(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


_NUMBER: Final = ' class="n"'


def folded(summary: str, inside: str) -> str:
    """Return what opens at Enter or a click; *summary* is text, *inside* is HTML."""
    return f"<details><summary>{safe(summary)}</summary>{inside}</details>"


def remark(text: str) -> str:
    """Return a line that explains or says that there is nothing to show."""
    return f'<p class="note">{safe(text, 2000)}</p>'
