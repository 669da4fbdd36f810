"""What a query text comes to: SQL for the engine, and the relations that it reads."""

from __future__ import annotations

import string
from datetime import datetime
from typing import Final

from mldb.deferred import dataclass
from mldb.log.index.address import Lsn

QUERY_TABLES: Final = (
    *("tensors", "versions", "relationships", "checkpoints"),
    *("metrics", "events", "splats", "segments"),
)
STATISTICS: Final = frozenset(
    {"mean", "std", "min", "max", "norm", "zero_share", "nan_share"},
)
"""Columns that are computed when a query names them; a star leaves them out."""

STATISTICS_TABLES: Final = frozenset({"tensors", "versions"})

_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def fold_name(name: str) -> str:
    """Return *name* as the engine compares it: without case, in ASCII alone."""
    return name.lower() if name.isascii() else name.translate(_LOWER)


@dataclass(frozen=True, slots=True)
class TableUse:
    """One table at one moment, as a query uses it. Immutable.

    ``columns`` are those the query can touch, folded, none for COUNT(*); None: all but statistics
    (a star). ``named`` are those it names, with a star as well, so statistics are among them.
    """

    table: str
    relation: str
    as_of: int | Lsn | datetime | str | None
    columns: frozenset[str] | None
    named: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ParsedQuery:
    """SQL over the relations of ``uses``, and nothing else. Immutable.

    ``is_short``: it was written in the short form, without FROM.
    """

    sql: str
    uses: tuple[TableUse, ...]
    is_short: bool
