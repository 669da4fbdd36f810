"""Where the bytes of a store are, by whose they are. Pure, NumPy: O(versions)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from mldb.arrays import Bools, Numbers
from mldb.compaction.cold import SizeOf
from mldb.compaction.plan import frame_shares
from mldb.compaction.table import VersionTable
from mldb.log import format as fmt

OwnerOf: TypeAlias = "Callable[[bytes], tuple[str, str, bool]]"
"""From a key to kind and name of what it belongs to, and whether its versions are those of that."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes by owner, most first; every column has a value for each. Lives as long as it is held.

    ``versions`` are those with a value, of every epoch and lineage. ``stored`` is what their frames
    take in the segments, ``decoded`` what they would take one by one as they are read. Of names
    that share bytes the first one has them. ``deduplicated``, ``deltas``, ``patches`` and
    ``compressed`` are the bytes that were not stored because of that. ``file_bytes`` are those of
    all segments: commits and footers besides.
    """

    kinds: tuple[str, ...] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    versions: Numbers = field(repr=False)
    stored: Numbers = field(repr=False)
    decoded: Numbers = field(repr=False)
    deduplicated: Numbers = field(repr=False)
    deltas: Numbers = field(repr=False)
    patches: Numbers = field(repr=False)
    compressed: Numbers = field(repr=False)
    file_bytes: int

    def __len__(self) -> int:
        return len(self.names)


def usage_of(table: VersionTable, owner_of: OwnerOf, size_of: SizeOf) -> Usage:
    """Return who has which bytes of a table. *size_of* is called once for each kind and attr."""
    numbers: dict[tuple[str, str], int] = {}
    kinds_known: dict[str, int] = {}
    owners = np.empty((3, len(table.keys)), np.int64)
    for place, key in enumerate(table.keys):
        kind, name, is_main = owner_of(key)
        owners[0, place] = numbers.setdefault((kind, name), len(numbers))
        owners[1, place] = kinds_known.setdefault(kind, len(kinds_known))
        owners[2, place] = is_main
    owner, kind_of, is_own = (column[table.key] for column in owners)
    decoded = _decoded(table, kind_of, size_of)
    columns = {
        "versions": is_own * (table.flags & fmt.ENTRY_TOMBSTONE == 0),
        "stored": frame_shares(table),
        "decoded": decoded,
        **_saved(table, decoded),
    }
    sums = {
        name: np.bincount(owner, values, minlength=len(numbers)).astype(np.int64)
        for name, values in columns.items()
    }
    order = np.argsort(-sums["stored"], kind="stable")
    found = list(numbers)
    return Usage(
        tuple(found[place][0] for place in order.tolist()),
        tuple(found[place][1] for place in order.tolist()),
        **{name: values[order] for name, values in sums.items()},
        file_bytes=int(table.sizes.sum()),
    )


def _decoded(table: VersionTable, kind_of: Numbers, size_of: SizeOf) -> Numbers:
    """What each version takes when it is read: its stored bytes where nothing encodes it."""
    pairs = kind_of * (len(table.attr) + 1) + table.attr_number
    _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
    sizes = np.fromiter(
        (_size(table, row, size_of) for row in first.tolist()), np.int64, len(first)
    )[inverse]
    return np.where(sizes < 0, table.length, sizes)


def _size(table: VersionTable, row: int, size_of: SizeOf) -> int:
    found = size_of(table.key_of(row), table.attr_of(row))
    return -1 if found is None else found


def _saved(table: VersionTable, decoded: Numbers) -> dict[str, Numbers]:
    """What was not stored, by why."""
    encoding, own = table.encoding, ~table.shared
    referred = (encoding == fmt.ENCODING_REFERENCE) | table.shared
    less = np.maximum(decoded - table.length, 0)

    def where(which: Bools, values: Numbers) -> Numbers:
        return np.where(which, values, 0)

    other = own & (encoding != fmt.ENCODING_RAW) & ~np.isin(encoding, fmt.BUILT_ENCODINGS)
    return {
        "deduplicated": where(referred, decoded),
        "deltas": where(own & (encoding == fmt.ENCODING_DELTA), less),
        "patches": where(own & (encoding == fmt.ENCODING_PATCH), less),
        "compressed": where(other, less),
    }
