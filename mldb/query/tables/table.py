"""What every table of a query is: columns that it always has, keys at a moment, rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mldb.query.catalogue import StoreMoment
from mldb.query.columns import TableColumns


class TableAsk(NamedTuple):
    """What a query wants of a table: fixed columns by name, and keys by the column's name.

    ``statistics``: it names one.
    """

    columns: frozenset[str]
    fields: Mapping[str, str]
    statistics: bool


def _no_keys(moment: StoreMoment) -> Counter[str]:
    return Counter()


class TableKind(NamedTuple):
    """One table.

    ``columns`` are those that it always has, in order. ``keys_at`` counts the keys of metadata at
    a moment, which get columns of their own; ``prefix`` stands before those that clash.
    ``read`` makes the rows; it may give more than what is asked. Both raise what reading raises.
    ``is_kept``: at one commit the rows never change.
    """

    columns: tuple[str, ...]
    read: Callable[[StoreMoment, TableAsk], TableColumns]
    keys_at: Callable[[StoreMoment], Counter[str]] = _no_keys
    prefix: str = "metadata"
    is_kept: bool = True
