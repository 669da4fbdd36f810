"""What commands print: aligned tables and lines for people, JSON for programs.

With ``--json`` a command prints one JSON document on stdout, or, where it goes on (``--follow``),
one document a line. Numbers that JSON has not (NaN, the infinities) are strings; times are ISO 8601
in UTC, spans are seconds. In a terminal a table is drawn with rich and cut to its width; elsewhere
columns are separated by tabs, so that ``cut`` and ``awk`` can read them.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from mldb.printable import printable
from mldb.tools.cli.wrapping import print_fitted

_LABEL_MAX: Final = 24


class Output:
    """Where one command prints. For the thread that runs it; nothing is kept."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at stdout."""
        return not self.as_json and sys.stdout.isatty()

    def document(self, value: object) -> None:
        """Print one JSON document, indented for a person in a terminal."""
        indent = 2 if sys.stdout.isatty() else None
        print(json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent))

    def line_of(self, value: object) -> None:
        """Print one JSON document on one line and flush: for streams."""
        print(json.dumps(plain(value), ensure_ascii=False, allow_nan=False), flush=True)

    def text(self, text: str = "") -> None:
        """Print a line that may hold names: what a terminal would obey is escaped.

        In a terminal it is broken where it is wider than that.
        """
        print_fitted(printable(text), sys.stdout)

    def problem(self, text: str) -> None:
        """Print what is wrong with a store on stderr; with --json the document has it."""
        if not self.as_json:
            print_fitted(f"mldb: {printable(text)}", sys.stderr)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        right: Iterable[str] = (),
        empty: str = "nothing",
    ) -> None:
        """Print rows below their columns; *right* names those aligned to the right.

        Cells are str, or anything that str() shows well. Without rows *empty* is said on stderr.
        """
        cells = [[printable(str(cell)) for cell in row] for row in rows]
        if not cells:
            print(printable(empty), file=sys.stderr)
        elif self.is_terminal:
            _draw(columns, cells, frozenset(right))
        else:
            for row in (columns, *cells):
                print("\t".join(row))

    def pairs(self, pairs: Mapping[str, object] | Sequence[tuple[str, object]]) -> None:
        """Print names with their values, a line each, values in a column."""
        items = list(pairs.items()) if isinstance(pairs, Mapping) else pairs
        lines = [
            (printable(name, limit=_LABEL_MAX), printable(str(value))) for name, value in items
        ]
        width = max((len(name) for name, _ in lines), default=0)
        for name, value in lines:
            print_fitted(f"{name:<{width}}  {value}".rstrip(), sys.stdout, hang=width + 2)


def _draw(columns: Sequence[str], cells: Sequence[Sequence[str]], right: frozenset[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    for row in cells:
        table.add_row(*map(Text, row))
    Console().print(table)


def plain(value: Any) -> Any:
    """Return *value* as JSON has it: dicts, lists, text, numbers, booleans, None."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _spelled(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if hasattr(value, "tolist"):  # NumPy, which is not imported for this
        return plain(value.tolist())
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    if isinstance(value, complex):
        return [plain(value.real), plain(value.imag)]
    return str(value)


def _spelled(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
