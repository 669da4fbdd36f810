"""One block of a lake, as the segment that holds it is mapped: gathers, checks, private copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from mldb.arrays import Numbers
from mldb.errors import MissingError
from mldb.history.splats import BlockColumn, BlockInfo
from mldb.lake.rows.take import take_rows
from mldb.log import native
from mldb.log.index.address import Entry
from mldb.tensors.scope import Scope

UNLABELLED: Final = -1
"""The label of a row that was added without one; labels below 0 are none."""

Selection: TypeAlias = slice | Numbers
"""Row numbers 0..N-1: a slice of step 1, or an array in any order."""


Copier: TypeAlias = Callable[[Numbers, npt.NDArray[Any]], bool]
"""Copies rows of one column to an array of its dtype and size, in one call; False where it cannot.

The array holds anything then, and the rows are gathered as others are.
"""


class MappedBlock:
    """One block, mapped. Any thread; arrays are read-only views made when first asked for."""

    __slots__ = (
        *("_arrays", "_key", "_lake", "_places", "_scope", "_span", "_verified", "_verify"),
        *("entry", "info", "start", "stop"),
    )

    def __init__(
        self, scope: Scope, key: bytes, entry: Entry, info: BlockInfo, start: int, lake: str
    ) -> None:
        """*start* counts the rows stored before it; *key* is that of the block in the index."""
        self.entry = entry
        self.info = info
        self.start = start
        self.stop = start + info.rows
        self._scope = scope
        self._key = key
        self._lake = lake
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._places = {c.name: (c.offset, c.row_bytes) for c in info.columns}
        self._verify = scope.source.door.verify
        self._verified: set[str] = set()  # columns that need no further check
        self._span = 0, 0  # rows of mu that were prepared last, one run: so do they

    def column(self, name: str) -> BlockColumn:
        """The place of a column. Raises MissingError."""
        column = self.info.column(name)
        if column is None:
            raise MissingError(f"a block of lake {self._lake!r} has no column {name!r}")
        return column

    def array(self, name: str) -> npt.NDArray[Any]:
        """A column as it is stored, not verified."""
        array = self._arrays.get(name)
        if array is None:
            column = self.column(name)
            high = column.offset + self.info.rows * column.row_bytes
            door, at = self._scope.source.door, (self._scope.view, self._key, self.entry)
            data = door.unverified(*at, column.offset, high, self._lake)
            array = np.frombuffer(data, column.dtype).reshape(self.info.rows, *column.shape)
            self._arrays[name] = array
        return array

    def gather(self, name: str, rows: Selection, out: npt.NDArray[Any]) -> None:
        """Copy rows of a column to *out*, whose dtype has room for it."""
        array = self._arrays.get(name)
        if array is None:
            if name == "label" and self.info.column(name) is None:
                out.fill(UNLABELLED)
                return
            array = self.array(name)
        if name not in self._verified:
            self.verify(name, rows)
        if isinstance(rows, slice):
            np.copyto(out, array[rows])
        elif array.dtype == out.dtype:
            take_rows(array, rows, out)
        else:  # other blocks have a wider one
            np.copyto(out, np.take(array, rows, 0, mode="clip"))
        if name == "id" and self.info.base:
            np.add(out, self.info.base, out=out, casting="unsafe")

    def copier(self, name: str) -> Copier | None:
        """What copies rows of a column that needs no further check; None for any other one."""
        if name not in self._verified or self.info.base:
            return None
        array, table = self.array(name), (self.array(name),)
        if not len(array):
            return None
        dtype, width = array.dtype, array.nbytes // len(array)

        def copy(rows: Numbers, out: npt.NDArray[Any]) -> bool:
            twin = native.twin
            if twin is None or out.dtype != dtype:
                return False
            return twin.gather_rows(table, rows, out, 1, width) is True

        return copy

    def verify(self, name: str, rows: Selection) -> None:
        """Check the stored blocks that hold these rows of a column, each once."""
        if name == "mu" and isinstance(rows, slice) and self._is_prepared(rows):
            return
        place, row_bytes = self._places[name]
        door, at = self._scope.source.door, (self._scope.view, self._key, self.entry)
        if isinstance(rows, slice):
            low, high = place + rows.start * row_bytes, place + rows.stop * row_bytes
            door.part(*at, self.entry.length, low, high, self._lake)
        elif row_bytes:
            door.touch_rows(*at, place, row_bytes, rows, self._lake)
        if self._verify == "always":
            return
        end = place + self.info.rows * row_bytes
        view = self._scope.view
        if self._verify == "never" or door.is_verified(view, self.entry, place, end):
            self._verified.add(name)

    def _is_prepared(self, rows: slice) -> bool:
        """Whether all of these rows of mu are; not the last ones, which say that of the column."""
        start, stop = self._span
        is_inside: bool = start <= rows.start and rows.stop <= stop < self.info.rows
        return is_inside

    def prepare(self, rows: slice) -> None:
        """Bring in the pages of these rows of mu, and verify them, before they are read.

        Raises CorruptError.
        """
        self._scope.source.log.fs.populate(self._unverified(rows))
        if self._verify == "always":
            return  # each read verifies anew
        self.verify("mu", rows)
        start, stop = self._span
        self._span = (start if start <= rows.start <= stop else rows.start), rows.stop

    def read_ahead(self, rows: slice) -> None:
        """Ask for these rows of mu from the disk."""
        self._scope.source.log.fs.read_ahead(self._unverified(rows))

    def is_resident(self, rows: slice) -> bool:
        """Whether these rows of mu would come from memory."""
        return self._scope.source.log.fs.is_resident(self._unverified(rows))

    def _unverified(self, rows: slice) -> memoryview:
        place, row_bytes = self._places["mu"]
        low, high = place + rows.start * row_bytes, place + rows.stop * row_bytes
        door, at = self._scope.source.door, (self._scope.view, self._key, self.entry)
        return door.unverified(*at, low, high, self._lake)

    def is_verified(self, name: str) -> bool:
        """Whether a column needs no further check."""
        return name in self._verified

    def private_mu(self, rows: slice) -> npt.NDArray[np.float32]:
        """Rows of mu in a new private mapping: writable, and no write reaches the file.

        Who asks has verified them.
        """
        column = self.column("mu")
        low = column.offset + rows.start * column.row_bytes
        high = column.offset + rows.stop * column.row_bytes
        door, at = self._scope.source.door, (self._scope.view, self._key, self.entry)
        size = self.entry.length
        data = door.private(*at, size, self._lake, low=low, high=high, is_verified=True)
        return np.frombuffer(data, np.float32).reshape(rows.stop - rows.start, *column.shape)
