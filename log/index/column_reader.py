"""Read columns in place: bounds-checked, verified block by block as they are touched."""

from __future__ import annotations

import itertools
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import numpy as np

from mldb.deferred import NamedTuple
from mldb.errors import CorruptError
from mldb.log import format as fmt
from mldb.log.index.columns import (
    COLUMN_TYPES,
    COMPACTED_COLUMNS,
    DIRECTORY_COLUMNS,
    META_PREFIX,
    OPTIONAL_COLUMNS,
)
from mldb.log.index.steps import Column

_OFFSETS: Final = struct.Struct("<QQ")


class ColumnSpan(NamedTuple):
    """Where a column lies in the payload: its first byte, its rows, their size and type."""

    start: int
    rows: int
    size: int
    dtype: np.dtype[Any]


def _kind(code: str) -> tuple[np.dtype[Any], str, int]:
    """A dtype, its code as the directory has it, and its size."""
    dtype = np.dtype(code)
    return dtype, dtype.str, dtype.itemsize


_KINDS: Final = {
    name: _kind(code)
    for name, code in (
        COLUMN_TYPES | OPTIONAL_COLUMNS | DIRECTORY_COLUMNS | COMPACTED_COLUMNS
    ).items()
}
_CODES: Final = _kind("<u4")
_VALUES: Final = _kind("u1")


make_span: Callable[[tuple[int, int, int, np.dtype[Any]]], ColumnSpan] = partial(
    tuple.__new__, ColumnSpan
)
"""Make a ColumnSpan of its fields in order, at half the cost of a call: once for each column."""


def _places(directory: Mapping[Any, object], length: int, file: str) -> dict[str, ColumnSpan]:
    """Check the directory of an index, all at once, since each opening needs most of it."""
    places: dict[str, ColumnSpan] = {}
    for name, place in directory.items():
        kind = _KINDS.get(name) or _kind_of_metadata(name)
        if kind is None:
            continue  # of a newer mldb, which can be done without
        dtype, code, size = kind
        if not isinstance(place, list) or len(place) < 3:  # `match` takes ten times as long
            raise _impossible(name, place, file)
        start, rows = place[0], place[1]  # a slice, or min() below, would double the time of it all
        whole = type(start) is int and type(rows) is int and place[2] == code
        if not whole or start < 0 or rows < 0 or start + rows * size > length:
            raise _impossible(name, place, file)
        places[name] = make_span((start, rows, size, dtype))
    missing = COLUMN_TYPES.keys() - places.keys()
    if missing:
        raise CorruptError(f"the index lacks the columns {sorted(missing)}", file=file)
    return places


def _kind_of_metadata(name: object) -> tuple[np.dtype[Any], str, int] | None:
    if not isinstance(name, str) or not name.startswith(META_PREFIX):
        return None
    if name.endswith(":code"):
        return _CODES
    return _VALUES if name.endswith(":values") else None


def _impossible(name: object, place: object, file: str) -> CorruptError:
    return CorruptError(
        f"the index column {name!r:.80} has an impossible place {place!r:.80}", file=file
    )


class ColumnReader:
    """Bounds-checked, verify-on-touch access to the columns of one index payload.

    Any thread. ``touch(low, high)`` is told the payload range about to be read.
    """

    __slots__ = ("_payload", "_places", "file", "touch")

    def __init__(
        self,
        payload: memoryview,
        directory: Mapping[Any, object],
        file: str,
        touch: Callable[[int, int], None],
    ) -> None:
        self.file = file
        self.touch = touch
        self._payload = payload
        self._places = _places(directory, len(payload), file)

    def copied(self) -> ColumnReader:
        """Return a reader of a private copy, all of it verified: it holds no mapping."""
        self.touch(0, len(self._payload))
        other = ColumnReader.__new__(ColumnReader)
        other.file, other.touch, other._places = self.file, trust, self._places
        other._payload = memoryview(bytes(self._payload))
        return other

    @property
    def length(self) -> int:
        """The bytes of all columns."""
        return len(self._payload)

    def names(self) -> list[str]:
        """The columns present."""
        return list(self._places)

    def has(self, name: str) -> bool:
        """Whether a column is there."""
        return name in self._places

    def count(self, name: str) -> int:
        """How many values a column has."""
        return self._places[name].rows

    def _touched(self, name: str, low: int, high: int) -> memoryview:
        """Return the verified bytes of rows low..high. Raises CorruptError out of range."""
        start, count, size, _ = self._places[name]
        if not 0 <= low <= high <= count:
            raise CorruptError(
                f"the index column {name!r} is asked for rows {low}..{high} of {count}",
                file=self.file,
            )
        begin, end = start + low * size, start + high * size
        self.touch(begin, end)
        return self._payload[begin:end]

    def whole(self, name: str) -> Column:
        """Return all verified values of a column."""
        return self.span(name, 0, self.count(name))

    def span(self, name: str, low: int, high: int) -> Column:
        """Return the verified values low..high of a column. Raises CorruptError out of range."""
        return np.frombuffer(self._touched(name, low, high), self._places[name].dtype)

    def value(self, name: str, row: int) -> int:
        """Return one verified integer; without NumPy, which costs more than the value."""
        data = self._touched(name, row, row + 1)
        return int.from_bytes(data, "little", signed=self._places[name].dtype.kind == "i")

    def heap(self, name: str, item: int) -> bytes:
        """Return item number *item* of a heap column (``key`` or ``attr``)."""
        low, high = _OFFSETS.unpack(self._touched(f"{name}_offset", item, item + 2))
        return bytes(self._touched(f"{name}_heap", low, high))

    def search_right(self, name: str, value: int, low: int, high: int) -> int:
        """Return the first of the rows low..high of an ascending column that is above *value*.

        As ``bisect.bisect_right``, but only the pages on the way are touched.
        """
        step = (1 << fmt.INDEX_BLOCK_LOG2) // self._places[name].size
        while high - low > step:
            middle = (low + high) // 2
            if self.value(name, middle) <= value:
                low = middle + 1
            else:
                high = middle
        return low + bisect_right(self.span(name, low, high), value)


def trust(low: int, high: int) -> None:
    """Stands for the touch of what is verified already, or never."""


def iterate_heap(reader: ColumnReader, name: str, start: int) -> Iterator[bytes]:
    """Yield heap items from *start* on, reading 256 at a time."""
    total = reader.count(f"{name}_offset") - 1
    while start < total:
        stop = min(start + 256, total)
        offsets = reader.span(f"{name}_offset", start, stop + 1).tolist()
        data = reader.span(f"{name}_heap", offsets[0], offsets[-1]).tobytes()
        for low, high in itertools.pairwise(offsets):
            yield data[low - offsets[0] : high - offsets[0]]
        start = stop
