"""Keys of metadata as columns: which there are, what they are called, and their values.

DuckDB tells names apart without case, and a table has columns of its own. A key that clashes with
one that is there is reached as ``metadata_KEY``, and if that is taken as ``metadata_KEY_2``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mldb.query.columns import ColumnData, typed
from mldb.query.parsed import STATISTICS, fold_name

FIELDS_MAX: Final = 1000
"""Keys that get a column: the most frequent ones. The column ``metadata`` has all of them."""
_KEY_CHARACTERS_MAX: Final = 200
HIDDEN: Final = "mldb__"
"""What names begin with that the engine uses itself."""


def count_keys_in(metadata: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Return how many of *metadata* have each key."""
    counts: Counter[str] = Counter()
    for one in metadata:
        counts.update(one.keys())
    return counts


def name_fields(
    counts: Mapping[str, int], fixed: Sequence[str], prefix: str = "metadata"
) -> dict[str, str]:
    """Return the columns of keys: column name to key, in the order of the keys.

    *fixed* are the names that are taken. Pure: the same for the same keys.
    """
    usable = [key for key in counts if len(key) <= _KEY_CHARACTERS_MAX and "\0" not in key]
    chosen = sorted(usable, key=lambda key: (-counts[key], key))[:FIELDS_MAX]
    taken = {fold_name(name) for name in fixed} | STATISTICS
    found: dict[str, str] = {}
    for key in sorted(chosen):
        name, number = key, 1
        while not name or fold_name(name) in taken or fold_name(name).startswith(HIDDEN):
            name = f"{prefix}_{key}" if number == 1 else f"{prefix}_{key}_{number}"
            number += 1
        taken.add(fold_name(name))
        found[name] = key
    return found


def field_columns(
    fields: Mapping[str, str], metadata: Sequence[Mapping[str, Any]]
) -> dict[str, ColumnData]:
    """Return the columns of some *fields* (name to key); *metadata* has one dict for each row."""
    return {name: typed([one.get(key) for one in metadata]) for name, key in fields.items()}
