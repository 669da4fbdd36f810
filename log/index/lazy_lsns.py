"""The commit LSNs of a key with many versions, which a search looks at a few of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mldb.log.index.column_reader import ColumnReader


class LazyLsns(Sequence[int]):
    """The commit LSNs of a key with many versions, read where they are looked at. Any thread."""

    __slots__ = ("_count", "_first", "_reader")

    def __init__(self, reader: ColumnReader, first: int, count: int) -> None:
        self._reader = reader
        self._first = first
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at: Any) -> Any:
        if not 0 <= at < self._count:
            raise IndexError(at)
        return self._reader.value("row_commit", self._first + at)
