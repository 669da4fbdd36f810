"""``mldb query``: SQL over a store."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from mldb.errors import QueryError
from mldb.printable import printable
from mldb.tools.cli.command import Call, store_command
from mldb.tools.cli.main import OK, USAGE
from mldb.tools.cli.output import plain
from mldb.tools.cli.progress import patience
from mldb.tools.cli.values import MOMENT_TYPE, shown_time
from mldb.tools.cli.wrapping import print_fitted

if TYPE_CHECKING:
    from mldb.history.as_of import AsOf

_ROWS: Final = 100
"""Rows that are shown in a terminal."""
_TEXT_MAX: Final = 1 << 20
_AROUND: Final = 60
"""Characters that are shown on each side of the place of an error."""
_PLACE: Final = re.compile(r"at (?:line (\d{1,9}), )?column (\d{1,9})\b", re.ASCII)


@store_command("query", "SQL")
@click.option(
    "--as-of",
    "as_of",
    type=MOMENT_TYPE,
    default=None,
    help="The moment of the tables that carry no AS OF; now by default.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds after which a query is ended.",
)
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(0),
    default=None,
    help=f"Rows that are shown; {_ROWS} in a terminal, else all.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def command(call: Call, as_of: AsOf, timeout: float, limit: int | None, as_csv: bool) -> int:
    """Ask with a SELECT over tensors, versions, relationships, checkpoints, metrics and others.

    The others are events, splats and segments. Keys of metadata are columns. The columns mean, std,
    min, max, norm, zero_share and nan_share of a tensor are computed when a query names them.
    Behind a table may stand AS OF EPOCH 3, LSN 17, TAG 'best' or TIMESTAMP '...'. SQL may be `-` to
    read the text from stdin, or `@FILE`.

    \b
    mldb query run "SELECT tensors WHERE type=weights ORDER BY creation_time"
    mldb query run "SELECT name, std FROM tensors WHERE layer = 'conv1'"
    mldb query run "SELECT epoch, norm FROM versions WHERE name = 'w'" --csv
    """
    if as_csv and call.out.as_json:
        raise click.UsageError("--csv and --json exclude each other")
    text = _text_of(call.words[0])
    try:
        with patience("asking", quiet=call.out.as_json):
            result = call.store.sql(text, as_of=as_of, timeout=timeout)
    except QueryError as error:
        _print_error(error, text)
        return USAGE
    if limit is None and call.out.is_terminal and not as_csv:
        limit = _ROWS
    rows: Sequence[Sequence[Any]] = result.fetchall()
    _print(call, list(result.columns), rows[:limit], len(rows), as_csv=as_csv)
    return OK


def _text_of(word: str) -> str:
    """The text of the query: the word itself, stdin, or a file. Raises click.UsageError."""
    if word != "-" and not word.startswith("@"):
        return word
    try:
        if word == "-":
            data = sys.stdin.buffer.read(_TEXT_MAX + 1)
        else:
            with open(word[1:], "rb") as file:
                data = file.read(_TEXT_MAX + 1)
        if len(data) > _TEXT_MAX:
            raise click.UsageError(f"the text is longer than {_TEXT_MAX} bytes")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise click.UsageError(f"cannot read {word[1:]!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise click.UsageError(f"the text is not UTF-8: {error}") from None


def _print_error(error: QueryError, text: str) -> None:
    """Print what is wrong, and the line of the text with the place marked."""
    message = str(error)
    print_fitted(f"mldb: {printable(message)}", sys.stderr)
    place = _PLACE.search(message)
    if place is None:
        return
    number, column = int(place[1] or 1), int(place[2]) - 1
    lines = text.split("\n")
    if place[1] is None:
        # A text of one line may stand between empty ones; the column counts in its own.
        number = next((at for at, line in enumerate(lines, 1) if line.strip()), 1)
    if number > len(lines) or column > len(lines[number - 1]):
        return
    line, start = lines[number - 1], max(column - _around(), 0)
    before, after = printable(line[start:column]), printable(line[column : column + _around()])
    print(f"  {before}{after}", file=sys.stderr)
    print(f"  {' ' * len(before)}^", file=sys.stderr)


def _around() -> int:
    import shutil

    return min(_AROUND, max(shutil.get_terminal_size().columns // 2 - 2, 8))


def _print(
    call: Call, columns: list[str], rows: Sequence[Sequence[Any]], count: int, *, as_csv: bool
) -> None:
    if call.out.as_json:
        call.out.document({"columns": columns, "rows": rows, "count": count})
        return
    if as_csv:
        _print_csv(columns, rows)
    elif rows:
        right = {name for place, name in enumerate(columns) if _is_number(rows[0][place])}
        call.out.table(columns, ([_cell(value) for value in row] for row in rows), right=right)
    elif not count:
        print("no row", file=sys.stderr)
    if count > len(rows):
        print(f"{count - len(rows):,} more rows; --limit shows them", file=sys.stderr)


def _print_csv(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """RFC 4180 but for the line ends, NULL as nothing. Escaped where a terminal would obey."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for row in (columns, *rows):
        cells = ["" if value is None else _csv_cell(value) for value in row]
        writer.writerow(map(printable, cells) if sys.stdout.isatty() else cells)


def _csv_cell(value: Any) -> str:
    found = plain(value)
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if hasattr(value, "astimezone"):
        return shown_time(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_cell, value))}]"
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
