"""Every version of a store in one table of columns: what a plan is made from. Pure, NumPy."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mldb.arrays import Bools, Numbers
from mldb.deferred import dataclass
from mldb.log import format as fmt
from mldb.log.directory.key_records import KeyList
from mldb.log.directory.merge_keys import merge_keys
from mldb.log.index.merge_parts import Columns, items_of

NO_ROW: Final = -1


class TableSource(NamedTuple):
    """A segment as the table takes it in: its index columns, its bytes, what stands behind them.

    ``end`` is where the frames end, ``size`` the length of the file as the manifest has it.
    """

    columns: Columns
    end: int
    size: int


@dataclass(frozen=True, slots=True)
class VersionTable:
    """All versions, by key and then by commit; a row is known by its number.

    Every column is int64 with one value for each row but for ``digest`` and the lists of keys.
    ``frame_bytes`` is what the row's frame takes in its file, ``shared`` is true for bytes that an
    earlier row of the same frame has as well.
    ``base_row`` is the row that a reference, delta or patch names, NO_ROW where there is none.
    """

    keys: list[bytes]
    """Ascending."""
    key: Numbers
    commit: Numbers
    segment: Numbers
    frame: Numbers
    offset: Numbers
    length: Numbers
    attr: list[bytes]
    attr_number: Numbers
    flags: Numbers
    encoding: Numbers
    digest: npt.NDArray[Any]
    base_row: Numbers
    frame_bytes: Numbers
    shared: Bools
    sizes: Numbers
    """Bytes of each segment."""
    commits: Numbers
    """How many commits each segment has."""

    def __len__(self) -> int:
        return len(self.key)

    def key_of(self, row: int) -> bytes:
        """The key of a row."""
        return self.keys[int(self.key[row])]

    def attr_of(self, row: int) -> bytes:
        """The attr of a row."""
        return self.attr[int(self.attr_number[row])]

    def keys_where(self, test: Callable[[bytes], bool]) -> Bools:
        """Whether *test* holds for the key of each row."""
        found = np.fromiter(map(test, self.keys), np.bool_, len(self.keys))
        mask: Bools = found[self.key]
        return mask

    def row_of(self, key: bytes, commit: int) -> int:
        """Return the row of one version, NO_ROW where there is none: O(log versions)."""
        number = bisect_left(self.keys, key)
        if number == len(self.keys) or self.keys[number] != key:
            return NO_ROW
        return int(self.find(np.array([number]), np.array([commit]))[0])

    def find(self, key: Numbers, commit: Numbers) -> Numbers:
        """Return the rows of these versions, NO_ROW where there is none."""
        if not len(self):
            return np.full(len(key), NO_ROW, np.int64)
        place = _search(self.key, self.commit, key, commit)
        row = np.minimum(place, len(self) - 1)
        found: Numbers = np.where(
            (self.key[row] == key) & (self.commit[row] == commit), row, NO_ROW
        )
        return found


def make_table(sources: Sequence[TableSource]) -> VersionTable:
    """Return the table of all versions of these segments, which are in log order."""
    lists = [KeyList(own["key_offset"], own["key_heap"]) for own, _, _ in sources]
    merged = merge_keys(lists) if lists else None
    keys: list[bytes] = [] if merged is None else merged.keys.items()
    numbers = {key: number for number, key in enumerate(keys)}
    parts: dict[str, list[Numbers]] = {name: [] for name in _COLUMNS}
    digests: list[npt.NDArray[Any]] = [np.empty(0, "V16")]
    attrs: dict[bytes, int] = {}
    owners: list[Numbers] = []
    for place, (own, end, _) in enumerate(sources):
        assert merged is not None
        counts = np.diff(own["key_row"]).astype(np.int64)
        rows = len(own["row_commit"])
        parts["key"].append(np.repeat(merged.numbers[place].astype(np.int64), counts))
        parts["segment"].append(np.full(rows, place, np.int64))
        for name in ("commit", "frame", "offset", "length", "flags", "encoding", "base"):
            parts[name].append(own[f"row_{name}"].astype(np.int64))
        parts["attr"].append(_numbered(own, "attr", attrs))
        parts["bytes"].append(_frame_bytes(own, end))
        owners.append(_owner_keys(own, numbers, parts["key"][-1]))
        digests.append(own["row_digest"])
    columns = {name: _joined(found) for name, found in parts.items()}
    order = np.lexsort((columns["commit"], columns["key"]))
    columns = {name: values[order] for name, values in columns.items()}
    table = VersionTable(
        keys,
        columns["key"],
        columns["commit"],
        columns["segment"],
        columns["frame"],
        columns["offset"],
        columns["length"],
        list(attrs),
        columns["attr"],
        columns["flags"],
        columns["encoding"],
        np.concatenate(digests)[order],
        np.full(len(order), NO_ROW, np.int64),
        columns["bytes"],
        _shared(columns),
        np.array([size for _, _, size in sources], np.int64),
        np.array([len(own["commit_lsn"]) for own, _, _ in sources], np.int64),
    )
    named = np.flatnonzero(np.isin(table.encoding, fmt.BUILT_ENCODINGS) & (columns["base"] > 0))
    owner = _joined(owners)[order]
    table.base_row[named] = table.find(owner[named], columns["base"][named])
    return table


_COLUMNS: Final = (
    *("key", "commit", "segment", "frame", "offset", "length", "flags", "encoding", "base"),
    *("attr", "bytes"),
)


def _joined(parts: Sequence[Numbers]) -> Numbers:
    return np.concatenate([np.empty(0, np.int64), *parts])


def _numbered(own: Columns, name: str, known: dict[bytes, int]) -> Numbers:
    """The numbers of the items of a heap among all that are *known*, row by row."""
    items = items_of(own[f"{name}_offset"], own[f"{name}_heap"].tobytes())
    ids = np.array([known.setdefault(item, len(known)) for item in items] or [0], np.int64)
    return ids[own[f"row_{name}"]]


def _owner_keys(own: Columns, numbers: dict[bytes, int], keys: Numbers) -> Numbers:
    """The number of the key that each row's base belongs to; NO_ROW for one that nothing has."""
    if "row_owner" not in own:
        return keys
    items = items_of(own["owner_offset"], own["owner_heap"].tobytes())
    ids = np.array([0, *(numbers.get(item, NO_ROW) for item in items)], np.int64)
    stated = own["row_owner"].astype(np.int64)
    return np.where(stated == 0, keys, ids[stated])


def _frame_bytes(own: Columns, end: int) -> Numbers:
    """What the frame of each row takes: up to the next frame, commit, or the end."""
    frames = own["row_frame"].astype(np.int64)
    bounds = [frames, own["commit_start"].astype(np.int64), own["commit_end"].astype(np.int64)]
    borders = np.unique(np.concatenate([*bounds, [end]]))
    following = borders[np.minimum(np.searchsorted(borders, frames, "right"), len(borders) - 1)]
    return following - frames


def _shared(columns: dict[str, Numbers]) -> Bools:
    """Which rows share their bytes with one before them."""
    places = [columns[name] for name in ("length", "offset", "frame", "segment")]
    order = np.lexsort(places)
    of_bytes = np.stack(places)[:, order]
    shared = np.zeros(len(order), np.bool_)
    shared[order[1:]] = (of_bytes[:, 1:] == of_bytes[:, :-1]).all(axis=0)
    return shared & (columns["length"] > 0)


def _search(keys: Numbers, commits: Numbers, key: Numbers, commit: Numbers) -> Numbers:
    """Where each (key, commit) stands among pairs that ascend."""
    low = np.searchsorted(keys, key, "left")
    high = np.searchsorted(keys, key, "right")
    while True:
        open_ = low < high
        if not open_.any():
            return low
        middle = (low + high) // 2
        below = commits[np.minimum(middle, len(commits) - 1)] < commit
        low = np.where(open_ & below, middle + 1, low)
        high = np.where(open_ & ~below, middle, high)
